# make demo   set up, serve a directory, fetch it zero-copy, stream, verify, print what was copied
# make test   set up and run the test suite
# make test-compiled  the same with the compiled modules (see compiled), on the real kernel alone
# make test-docker  build the image and run the compose file's profiles (needs Docker; see tests/docker)
# make lint   ruff and mypy --strict
# make compiled  build zcserver with its hot modules compiled into build/compiled (needs a C compiler and
#             Python's headers: gcc and python3-dev)
# make bench  compare with raw C, asyncio and uvloop (without a C compiler some rows are left out)
# make bench-files  compare file servers with nginx, aiohttp and http.server (those that are installed)
# PYTHON=python3.13 chooses the interpreter; VENV=path the environment (default .venv)

VENV ?= .venv
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := $(VENV)/bin

.PHONY: demo test test-compiled test-docker lint compiled bench bench-files clean check-python

demo: $(VENV)/.run
	$(BIN)/zcserver demo

test: $(VENV)/.test
	$(BIN)/python -m pytest

test-compiled: $(VENV)/.test compiled
	PYTHONPATH=build/compiled ZCSERVER_TEST_COMPILED=1 ZCSERVER_TEST_KERNELS=reference \
	$(BIN)/pytest -p zcserver.engine -m "not docker and not interpreted" $(TESTS)

test-docker: $(VENV)/.test
	$(BIN)/python -m pytest -m docker tests/docker

lint: $(VENV)/.lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

compiled: $(VENV)/.run
	@rm -rf build/compiled
	HATCH_BUILD_HOOK_ENABLE_CUSTOM=true \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/compiled .

bench: $(VENV)/.test
	-$(MAKE) --no-print-directory compiled
	$(BIN)/python -m benchmarks

bench-files: $(VENV)/.test
	$(BIN)/python -m benchmarks.files

check-python:
	@test -n "$(PYTHON)" || { echo "zcserver needs Python 3.11 or newer. On Debian or Ubuntu: \
	apt-get install python3 python3-venv. Or name one: make PYTHON=/path/to/python3.13 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module. \
	On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }

# The stamps are made anew when the project's dependencies change.
$(VENV)/.run: pyproject.toml | check-python
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lint]'
	@touch $@

clean:
	rm -rf $(VENV) .demo build dist benchmarks/build .pytest_cache .mypy_cache .ruff_cache .hypothesis
