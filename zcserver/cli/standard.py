"""Standard input, output and error, which whoever starts a command may have closed, or not read from."""

import contextlib
import io
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final

from zcserver.client.descriptors import writing

from .exits import CommandError, ExitCode

_STREAMS: Final = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


class _Closed(io.TextIOBase):
    """Standard output where it is closed: results must not get lost without a word."""

    def write(self, text: str) -> int:
        return standard_output()

    def fileno(self) -> int:
        return 1


def prepare() -> None:
    """Have /dev/null where one of them is closed, and all names printable. Call it first of all.

    What is opened next would get the number of a closed one, and its data (libuv aborts on that).
    """
    for fd, (name, mode) in enumerate(_STREAMS):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            setattr(sys, name, _Closed() if fd == 1 else os.fdopen(fd, mode, closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def standard_input() -> int:
    """Its descriptor; CommandError if there is none to get data from."""
    if sys.__stdin__ is None:
        raise CommandError("standard input is closed: redirect it from a file or a pipe", ExitCode.USAGE)
    return sys.stdin.fileno()


def standard_output() -> int:
    """Its descriptor; CommandError if there is none for data to go to."""
    if sys.__stdout__ is None:
        raise CommandError("standard output is closed: redirect it to a file or a pipe", ExitCode.USAGE)
    return sys.stdout.fileno()


def say(text: str, end: str = "\n") -> None:
    """Print to standard error. That it cannot be written changes nothing about what is done."""
    with contextlib.suppress(OSError, ValueError):  # (ValueError: it was closed)
        print(text, end=end, file=sys.stderr, flush=True)


def part() -> None:
    """Call it last of all: what a stream could not take is tried again at exit, which would end with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def printing() -> Iterator[Callable[[Iterable[str]], Awaitable[None]]]:
    """A function that prints lines. ``print`` would stop the loop, and signals, until somebody reads them."""
    with writing(standard_output()) as write:

        async def show(lines: Iterable[str]) -> None:
            text = "".join(f"{line}\n" for line in lines)
            await write([memoryview(text.encode(sys.stdout.encoding, "backslashreplace"))])

        yield show
