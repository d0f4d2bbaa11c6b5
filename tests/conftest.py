"""Every test that touches a connection runs on three event loops and three kinds of kernel.

``kernel``: "reference" is the real one; "forbidden" answers EPERM to vmsplice, as Podman's default seccomp
profile does; "copies" behaves like a kernel whose vmsplice copies. Set ``ZCSERVER_TEST_KERNELS=reference``
to run only the first while developing.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernels import CopyingKernel, ForbiddenKernel
from tests.mutants import MUTANTS
from zcserver import Context, engine
from zcserver.kernel.calls import Kernel

# A suite that was started in the background ignores Ctrl-C, and so would the commands that it interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Under CI pytest shows whole differences, and those of megabytes take it minutes.
for name in ("CI", "BUILD_NUMBER"):
    os.environ.pop(name, None)

KERNELS: dict[str, type[Kernel]] = {
    "reference": Kernel,
    "forbidden": ForbiddenKernel,
    "copies": CopyingKernel,
}
_wanted = os.environ.get("ZCSERVER_TEST_KERNELS", ",".join(KERNELS)).split(",")


def pytest_configure() -> None:
    """`make test-compiled` is to test what it says."""
    if "ZCSERVER_TEST_COMPILED" in os.environ and not str(engine.__file__).endswith(".so"):
        raise pytest.UsageError(f"these tests want compiled modules, and found {engine.__file__}")


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
        pytest.param(("trio", {}), id="trio"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=_wanted)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return KERNELS[request.param]()


@pytest.fixture
def make_context(kernel: Kernel) -> Iterator[Any]:
    """A factory of contexts on the kernel under test; what the test leaves open is closed after it."""
    contexts: list[Context] = []

    def make(**settings: Any) -> Context:
        settings.setdefault("kernel", kernel)
        context = Context(**settings)
        contexts.append(context)
        return context

    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A directory to be served."""
    directory = tmp_path / "served"
    directory.mkdir()
    return directory


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """One at the client's side."""
    directory = tmp_path / "local"
    directory.mkdir()
    return directory


@pytest.fixture(autouse=True)
def planted_mutant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Break the rule that ``ZCSERVER_MUTANT`` names (see tests/mutants.py)."""
    name = os.environ.get("ZCSERVER_MUTANT")
    if name:
        MUTANTS[name][2](monkeypatch)
