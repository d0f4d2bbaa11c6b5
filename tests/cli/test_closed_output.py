"""Standard output that is closed: results that nobody can get are a failure, and nothing else is."""

import os
import select
import signal

import pytest

from tests.cli.commands import PATIENCE, failing, running, zcserver


def without_output():
    os.close(1)


@pytest.mark.parametrize(
    "command",
    ["ls URL/", "ls --json URL/", "stat URL/file", "stat --json URL/file", "doctor", "doctor --json",
     "get --json URL/file", "sync --dry-run URL/ copy", "sync --json URL/ copy", "--version", "ls --help"],
)  # fmt: skip
def test_results_that_have_nowhere_to_go_are_a_wrong_command_line(url, served, local, command):
    (served / "file").touch()
    words = command.replace("URL", url).split()
    assert "standard output is closed" in failing(2, *words, preexec_fn=without_output)


def test_a_server_serves_without_it(served, tmp_path):
    socket = tmp_path / "socket"
    address = f"zc+unix://{str(socket).replace('/', '%2F')}/"
    (served / "file").touch()
    ours, theirs = os.pipe()
    with running(
        "serve", served, "--bind", f"unix:{socket}", "--bind", "127.0.0.1:0", "--stdin", "t",
        preexec_fn=without_output, stdin=ours,
    ) as server:  # fmt: skip
        os.close(theirs)
        select.select([server.stderr], [], [], PATIENCE)  # it listens, since its input has ended
        assert zcserver("ls", address).stdout == "file\n"
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE) == 0
    os.close(ours)
