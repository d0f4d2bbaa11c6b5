"""Errors after which no other file could be written, met in a worker thread: they end the tree."""

import errno
import json
import os
import subprocess
import sys

import pytest

from tests.cli.commands import PATIENCE, serving
from tests.client.connected import client_for, filled

COMMAND = """
import os, sys
from zcserver.cli import main

number = int(sys.argv.pop())

def mkdir(path, *_, **__):
    raise OSError(number, "no room for it", path)

os.mkdir = mkdir
main()
"""


def failing_with(number):
    """What a system call does that fails so."""

    def call(path, *_, **__):
        raise OSError(number, os.strerror(number), os.fspath(path))

    return call


@pytest.mark.anyio
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE])
@pytest.mark.parametrize("call", ["mkdir", "utime"])
async def test_it_is_noted_once_and_nothing_else_is_tried(
    served, local, make_context, monkeypatch, number, call
):
    for name in ("a", "b"):
        (served / name).mkdir()
        os.utime(served / name, (0, 0))  # or a copy made in the same tick of the clock has its time already
    async with client_for(served, make_context) as client:
        with monkeypatch.context() as patched:
            patched.setattr(os, call, failing_with(number))
            report = await client.fetch_tree("/", local)
    assert [(name, error.errno) for name, error in report.failures] == [("/", number)]


@pytest.mark.anyio
async def test_one_met_while_removing_ends_that(served, local, make_context, monkeypatch):
    for name in ("a", "b"):
        filled(local / name, 10)
    async with client_for(served, make_context) as client:
        with monkeypatch.context() as patched:
            patched.setattr(os, "unlink", failing_with(errno.EROFS))
            report = await client.sync("/", local, delete=True)
    assert [(name, error.errno) for name, error in report.failures] == [("/", errno.EROFS)]
    assert report.deleted == []


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [("sync URL copy", errno.EROFS, 5), ("sync URL copy", errno.ENOSPC, 12),
     ("get -r URL -o copy", errno.EMFILE, 17)],
)  # fmt: skip
def test_the_command_has_a_line_and_a_code_for_it(served, local, command, number, code):
    (served / "folder").mkdir()
    with serving(served) as server:
        words = command.replace("URL", f"{server.url}/").split()
        for option in ([], ["--json"]):
            done = subprocess.run(
                [sys.executable, "-c", COMMAND, *words, *option, str(number)],
                capture_output=True, text=True, cwd=local, timeout=PATIENCE, check=False,
            )  # fmt: skip
            assert done.returncode == code
            (line,) = done.stderr.splitlines()
            assert line.startswith("zcserver: copy: no room for it")
    (failure,) = json.loads(done.stdout)["failures"]
    assert (failure["path"], failure["code"]) == ("/", code)
