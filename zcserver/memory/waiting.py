"""The queue for memory: first come first served within a holder, turn by turn between holders.

Who does not fit is passed over, so that one large request does not stop the others; but only for so long:
after ``PATIENCE`` grants to others it has to be served next, or large requests would starve.

Pure bookkeeping, apart from the event that wakes a waiter.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import anyio

from zcserver.memory.account import Account
from zcserver.memory.buffer import Buffer
from zcserver.memory.region import pages_of

PATIENCE: Final = 64
"""Grants to others after which a request that did not fit blocks the queue until it fits."""


class Waiter:
    """One request: all of ``sizes`` (bytes) at once, or nothing. Create it inside the event loop."""

    __slots__ = (
        "account", "buffers", "by_reference_ok", "event", "holder", "most", "pages", "refused_at", "sizes",
    )  # fmt: skip

    def __init__(self, sizes: Sequence[int], account: Account, holder: object, by_reference_ok: bool) -> None:
        self.sizes = sizes
        pages = [pages_of(size) for size in sizes]
        self.pages = sum(pages)
        self.most = max(pages)
        """Pages of the largest buffer asked for."""
        self.account = account
        self.holder = holder
        self.by_reference_ok = by_reference_ok
        self.buffers: list[Buffer] | None = None
        """What was granted."""
        self.refused_at: int | None = None
        """The queue's count of grants when this waiter first did not fit although it was its turn."""
        self.event = anyio.Event()


class FairQueue:
    """Waiters, by holder. ``grants`` counts what was given to anyone, waiting or not."""

    __slots__ = ("_refused", "_turns", "grants", "waiting")

    def __init__(self) -> None:
        self._turns: dict[object, deque[Waiter]] = {}  # whose turn is next comes first
        self._refused: Waiter | None = None  # the first in turn that did not fit
        self.grants = 0
        self.waiting = 0

    def add(self, waiter: Waiter, tried: bool) -> None:
        """Queue up. ``tried``: had it been admitted, it would have been refused, and not for its quota."""
        line = self._turns.setdefault(waiter.holder, deque())
        if tried and not line and not self._blocked():
            waiter.refused_at = self.grants
        line.append(waiter)
        self.waiting += 1

    def withdraw(self, waiter: Waiter) -> None:
        """Forget a waiter that was cancelled or timed out. Unknown ones (granted meanwhile) are ignored."""
        line = self._turns.get(waiter.holder)
        if line is None or waiter not in line:
            return
        line.remove(waiter)
        self.waiting -= 1
        if waiter is self._refused:
            self._refused = None
        if not line:
            del self._turns[waiter.holder]

    def admits(self, holder: object) -> bool:
        """Whether a newcomer of this holder may take what is free, past those who wait.

        If it then takes something, count it in ``grants``.
        """
        return holder not in self._turns and not self._blocked()

    def serve(
        self,
        entitled: Callable[[Waiter], bool],
        take: Callable[[Waiter], list[Buffer] | None],
        hopeless: Callable[[Waiter], bool],
    ) -> None:
        """Grant to whom it fits, turn by turn, until it fits nobody.

        ``entitled`` says whether a waiter's own quota lets it have memory now; one that it does not is no
        reason to hold up others. ``take`` hands the buffers over, or ``None``. ``hopeless`` saves asking
        again those who were refused before: thousands may be waiting.
        """
        self._refused = None
        progress = True
        while progress:
            progress = False
            for holder in list(self._turns):
                line = self._turns[holder]
                waiter = line[0]
                if not entitled(waiter):
                    continue
                idle = waiter.refused_at is not None and hopeless(waiter)
                buffers = None if idle else take(waiter)
                if buffers is not None:
                    self._grant(waiter, line, buffers)
                    progress = True
                elif self._refuse(waiter):
                    return

    def drain(self) -> list[Waiter]:
        """Take everybody out (the pool closes); the caller wakes them."""
        waiters = [waiter for line in self._turns.values() for waiter in line]
        self._turns.clear()
        self._refused = None
        self.waiting = 0
        return waiters

    def _grant(self, waiter: Waiter, line: deque[Waiter], buffers: list[Buffer]) -> None:
        line.popleft()
        del self._turns[waiter.holder]
        if line:
            self._turns[waiter.holder] = line  # behind all others
        if waiter is self._refused:
            self._refused = None
        self.waiting -= 1
        self.grants += 1
        waiter.buffers = buffers
        waiter.event.set()

    def _refuse(self, waiter: Waiter) -> bool:
        """Note that it did not fit; whether it is out of patience, so that nobody else is served."""
        if waiter.refused_at is None:
            waiter.refused_at = self.grants
        if self._refused is None:
            self._refused = waiter
        return self._out_of_patience(waiter)

    def _blocked(self) -> bool:
        return self._refused is not None and self._out_of_patience(self._refused)

    def _out_of_patience(self, waiter: Waiter) -> bool:
        return waiter.refused_at is not None and self.grants - waiter.refused_at >= PATIENCE
