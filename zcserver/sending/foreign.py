"""Memory that is not the pool's (bytes, numpy arrays, mmaps), sent by reference to a trusted peer.

It cannot be cut loose: the pages belong to somebody else's allocator. So its buffer export is held until
the acknowledgement; if the connection dies first, the export is kept on for a while (nothing tells when
the dead peer's references end, so the time is an estimate), bounded in bytes and counted.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from zcserver.kernel.calls import address_of, hold, release


class ForeignQuarantine:
    """Exports of foreign memory whose connection died, and the account of those in flight.

    ``limit`` (bytes) bounds both together: past it foreign memory goes by the copy lane.
    """

    def __init__(self, limit: int, seconds: float, clock: Callable[[], float]) -> None:
        self.limit = limit
        self.in_flight = 0
        self.quarantined = 0
        self._seconds = seconds
        self._clock = clock
        self._kept: deque[tuple[float, Any, int]] = deque()

    def admits(self, nbytes: int) -> bool:
        """Whether ``nbytes`` more may go by reference without passing the limit."""
        self.sweep()
        return self.in_flight + self.quarantined + nbytes <= self.limit

    def keep(self, export: Any, nbytes: int) -> None:
        """Hold ``export`` until the estimate of the dead peer's references has passed."""
        self.quarantined += nbytes
        self._kept.append((self._clock() + self._seconds, export, nbytes))

    def sweep(self) -> None:
        """Let go of what has been kept long enough."""
        now = self._clock()
        while self._kept and self._kept[0][0] <= now:
            _, export, nbytes = self._kept.popleft()
            self.quarantined -= nbytes
            release(export)

    def close(self) -> None:
        """The context is closed: hold what is left for as long as was meant, though nobody asks any more."""
        if self._kept:
            kept, self._kept = self._kept, deque()
            timer = threading.Timer(kept[-1][0] - self._clock(), kept.clear)  # dropping an export releases it
            timer.daemon = True  # a process that ends frees nothing that the kernel still refers to
            timer.start()


class ForeignMemory:
    """One message's hold on foreign memory. ``address`` and ``nbytes`` are fixed while it is held."""

    __slots__ = ("_export", "_quarantine", "address", "data", "nbytes")

    def __init__(self, view: memoryview, quarantine: ForeignQuarantine) -> None:
        self._export = hold(view)
        self.data = view
        self.address = address_of(view)
        self.nbytes = view.nbytes
        self._quarantine = quarantine
        quarantine.in_flight += self.nbytes

    def home(self) -> None:
        """The peer acknowledged: the owner may change and free the memory."""
        self._quarantine.in_flight -= self.nbytes
        release(self._export)

    def abandon(self) -> None:
        """The connection died: the peer may still read these pages."""
        self._quarantine.in_flight -= self.nbytes
        self._quarantine.keep(self._export, self.nbytes)
