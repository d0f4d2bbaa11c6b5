"""Ctrl-C at every time in a command's life: one line, exit code 130, and with ``--json`` the document."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.cli.commands import PATIENCE, running

# ``when`` runs in the command's process, and arranges for ``interrupted`` to be called.
_COMMAND = """
import os, signal, sys
import zcserver.cli

def interrupted(*_):
    os.kill(os.getpid(), signal.{name})

{when}
zcserver.cli.main()
"""
IMPORTING = """
class Finder:
    def find_spec(name, *_):
        if name == "zcserver.cli.app":
            interrupted()
sys.meta_path.insert(0, Finder)
"""
BEFORE_THE_WORK = """
import zcserver.cli.get as module
by_server = module.by_server
module.by_server = lambda urls: (interrupted(), by_server(urls))[1]
"""
AFTER_THE_WORK = """
import zcserver.cli.session as session
session.Outcome.finish = interrupted
"""


def ended(when, *arguments, number=signal.SIGINT):
    """Of a command that got the signal at that time: exit code, stdout, stderr."""
    code = _COMMAND.format(name=number.name, when=when)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(os.fspath, arguments)],
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("when", [IMPORTING, AFTER_THE_WORK], ids=["importing", "after"])
def test_a_command_says_that_it_was_interrupted(when, url, big, local):
    assert ended(when, "get", f"{url}/big", "-q") == (130, "", "zcserver: interrupted\n")


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_before_the_work_is_told_as_json(number, code, word, url, big, local):
    status, output, words = ended(BEFORE_THE_WORK, "get", f"{url}/big", "--json", number=number)
    assert (status, words) == (code, f"zcserver: {word}\n")
    assert json.loads(output)["failures"] == [{"path": "", "error": word, "code": code}]
    assert os.listdir(local) == []


def test_a_command_that_waits_for_its_settings_can_be_interrupted(local):
    os.mkfifo("settings")
    with running("serve", ".", "--config", "settings") as process, open("settings", "w"):
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stderr.read() == "zcserver: interrupted\n"


def test_a_signal_that_is_ignored_from_the_beginning_stays_so(local):
    os.mkfifo("settings")
    ignored = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    with running("serve", ".", "--config", "settings", **ignored) as process:
        with open("settings", "w") as settings:
            process.send_signal(signal.SIGINT)
            settings.write("nonsense")
        assert process.wait(PATIENCE) == 2
