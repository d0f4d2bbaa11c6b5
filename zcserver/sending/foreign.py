"""Memory that is not the pool's (bytes, numpy arrays, mmaps), sent by reference to a trusted peer.

It cannot be cut loose: the pages belong to somebody else's allocator. So a view of it is held until the
acknowledgement, and with that it can neither move nor go away; if the connection dies first, the view is kept
on for a while (nothing tells when the dead peer's references end, so the time is an estimate), bounded in
bytes and counted.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable

from zcserver.kernel.calls import address_of


class ForeignQuarantine:
    """Views of foreign memory whose connection died, and the account of those in flight.

    ``limit`` (bytes) bounds both together: past it foreign memory goes by the copy lane. A timer of its own
    lets go of what was kept, since its owner waits for that: also when nothing is sent any more, the event
    loop is over or the context closed.
    """

    def __init__(self, limit: int, seconds: float, clock: Callable[[], float]) -> None:
        self.limit = limit
        self.in_flight = 0
        self.quarantined = 0
        self._seconds = seconds
        self._clock = clock
        self._kept: deque[tuple[float, memoryview]] = deque()
        self._timed = False
        self._lock = threading.RLock()  # re-entrant, for the garbage collector may run anything

    def admits(self, nbytes: int) -> bool:
        """Whether ``nbytes`` more may go by reference without passing the limit."""
        if self._kept:
            self.sweep()
        return self.in_flight + self.quarantined + nbytes <= self.limit

    def keep(self, view: memoryview) -> None:
        """Hold ``view`` until the estimate of the dead peer's references has passed."""
        with self._lock:
            self.quarantined += view.nbytes
            self._kept.append((self._clock() + self._seconds, view))
            if not self._timed:
                self._time()

    def sweep(self) -> None:
        """Let go of what has been kept long enough."""
        over = []
        with self._lock:
            now = self._clock()
            while self._kept and self._kept[0][0] <= now:
                _, view = self._kept.popleft()
                self.quarantined -= view.nbytes
                over.append(view)
        for view in over:
            view.release()

    def _time(self) -> None:
        """Sweep when the time of the first one is over."""
        timer = threading.Timer(min(self._kept[0][0] - self._clock(), threading.TIMEOUT_MAX), self._on_time)
        timer.daemon = True  # a process that ends frees nothing that the kernel still refers to
        with contextlib.suppress(RuntimeError):  # the user's limit on threads: then the next sending sweeps
            timer.start()
            self._timed = True

    def _on_time(self) -> None:
        self.sweep()
        with self._lock:
            self._timed = False
            if self._kept:
                self._time()


class ForeignMemory:
    """One message's hold on foreign memory. ``address`` and ``nbytes`` are fixed while it is held."""

    __slots__ = ("_quarantine", "address", "data", "nbytes")

    def __init__(self, view: memoryview, quarantine: ForeignQuarantine) -> None:
        self.data = view
        self.address = address_of(view)
        self.nbytes = view.nbytes
        self._quarantine = quarantine
        quarantine.in_flight += self.nbytes

    def home(self) -> None:
        """The peer acknowledged: the owner may change and free the memory."""
        self._quarantine.in_flight -= self.nbytes
        self.data.release()

    def abandon(self) -> None:
        """The connection died: the peer may still read these pages."""
        self._quarantine.in_flight -= self.nbytes
        self._quarantine.keep(self.data)
