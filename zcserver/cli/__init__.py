"""The ``zcserver`` command. Only this package imports uvloop, typer and rich.

``app``       all commands together, and how they end
``exits``     exit codes, and what each error says and does
``loop``      uvloop, and an orderly end on Ctrl-C
``standard``  standard input, output and error, even where they are closed
``options``   what several commands share: sizes, lanes, how amounts are written
``*_commands``  the commands as typer sees them: their options and help
``serve*``, ``get``, ``put``, ``remote``, ``pub``, ``sub``, ``doctor``, ``demo*``   what they do
"""

import contextlib
import os
import signal
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line and exit. A user's error is one line on stderr, never a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started this ignores it
        signal.signal(signal.SIGINT, _interrupted)
    from .app import run  # takes its time, in which Ctrl-C may come already

    run()


def _interrupted(*_: object) -> NoReturn:
    """Ctrl-C, wherever no ``loop.Interruption`` looks for it. What was begun is cleaned up on the way out."""
    with contextlib.suppress(OSError):
        os.write(2, b"zcserver: interrupted\n")
    raise SystemExit(130)
