"""Standard input, output and error, which whoever starts a command may have closed."""

import os
import sys
from typing import Final

from .exits import CommandError, ExitCode

_STREAMS: Final = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def occupy() -> None:
    """Have /dev/null where one of them is closed. Call it before anything else is opened.

    What is opened next would get its number, and be read or written instead (libuv aborts on that).
    """
    for fd, (name, mode) in enumerate(_STREAMS):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            setattr(sys, name, os.fdopen(fd, mode, closefd=False))


def standard_input() -> int:
    """Its descriptor; CommandError if there is none to get data from."""
    if sys.__stdin__ is None:
        raise CommandError("standard input is closed: redirect it from a file or a pipe", ExitCode.USAGE)
    return sys.stdin.fileno()


def standard_output() -> int:
    """Its descriptor; CommandError if there is none for data to go to."""
    if sys.__stdout__ is None:
        raise CommandError("standard output is closed: redirect it, or give -o another name", ExitCode.USAGE)
    return sys.stdout.fileno()
