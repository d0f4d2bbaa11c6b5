"""Progress of a stream without an end: one line on stderr, rewritten, and what it came to in the end."""

import sys
import time
from collections.abc import Iterable
from typing import Final

from zcserver.client import Missing, Retry
from zcserver.errors import printable

from .options import amount, rate
from .standard import say

_EVERY: Final = 0.5


class Ticker:
    """On a terminal the line is rewritten while it runs. ``quiet``: say nothing but what went wrong."""

    def __init__(self, verb: str, quiet: bool) -> None:
        self.messages = 0
        self.nbytes = 0
        self.missed = 0
        self._verb = verb
        self._quiet = quiet
        self._shows = not quiet and sys.stderr.isatty()
        self._begin = time.monotonic()
        self._next = self._begin + _EVERY

    def add(self, nbytes: int) -> None:
        """One message more."""
        self.messages += 1
        self.nbytes += nbytes
        if self._shows and (now := time.monotonic()) >= self._next:
            self._next = now + _EVERY
            say(f"\r\x1b[K{self._words()}", end="")

    def say(self, line: str) -> None:
        """Something that went wrong, on a line of its own."""
        clear = "\r\x1b[K" if self._shows else ""
        say(f"{clear}zcserver: {printable(line)}")

    def miss(self, gaps: Iterable[Missing], missed: int) -> None:
        """Tell what did not come; ``missed`` messages in all."""
        for missing in gaps:
            self.say(str(missing))
        self.missed = missed

    def retrying(self, retry: Retry) -> None:
        """A connection was lost."""
        self.say(str(retry))

    def finish(self) -> None:
        """The last line."""
        if not self._quiet:
            clear = "\r\x1b[K" if self._shows else ""
            say(f"{clear}{self._words()}")

    def _words(self) -> str:
        seconds = time.monotonic() - self._begin
        messages = "1 message" if self.messages == 1 else f"{self.messages} messages"
        words = f"{messages} {self._verb}, {amount(self.nbytes)}, {rate(self.nbytes, seconds)}"
        return f"{words}, {self.missed} missed" if self.missed else words
