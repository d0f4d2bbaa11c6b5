"""What the commands say about themselves: in ``docs/cli.md`` and in a terminal."""

import os
from pathlib import Path

import pytest
import typer.main

from tests.cli.commands import zcserver
from zcserver.cli.app import app
from zcserver.cli.manual import manual

COMMANDS = list(typer.main.get_command(app).commands)


def test_the_manual_is_up_to_date():
    written = Path(__file__, "../../../docs/cli.md").resolve().read_text()
    assert written == manual(), "run `python -m zcserver.cli.manual > docs/cli.md`"


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_has_examples_and_fits_the_terminal(command):
    arguments = ["--help"] if command is None else [command, "--help"]
    shown = zcserver(*arguments, env={**os.environ, "COLUMNS": "80", "TERM": "dumb"}).stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert f"    zcserver {command or 'serve'}" in shown
