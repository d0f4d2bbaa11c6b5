"""Receive memory: an account of its own (rule 3), so that a full send pool never stops reading.

The account counts bytes that may come (granted credit) and bytes that are here (received messages, until
their last view is gone). Credit is only granted while there is room, so whatever arrives has a place.
"""

import mmap
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final

from zcserver.memory import Pool

# Below this a `bytes` object is as good as pages, and the allocator is faster.
SMALL: Final = 16 * 1024


class ReceiveMemory:
    """Memory for what comes in, bounded by ``limit`` bytes, shared by the connections of one context.

    ``take`` gives a writable view; the memory returns by itself when no slice, cast or array of it is
    alive any more. ``when_free`` callbacks run when room may have come back to a full account.
    """

    def __init__(self, limit: int, pool: Pool) -> None:
        self.limit = limit
        self.promised = 0  # bytes of credit that peers have and have not used
        self._pool = pool
        self._starved: deque[Callable[[], object]] = deque()
        self._returns = 0  # times that memory came back through a destructor, in whatever thread
        self._returns_at_refusal = 0
        self._elsewhere = 0  # bytes that are here, but not in the pool
        self._freed_elsewhere: deque[int] = deque()
        pool.on_return(self._returned)

    @property
    def used(self) -> int:
        """Bytes promised, queued or still referenced."""
        while self._freed_elsewhere:
            self._elsewhere -= self._freed_elsewhere.popleft()
        return self.promised + self._pool.live + self._elsewhere

    def reserve(self, nbytes: int) -> bool:
        """Promise ``nbytes`` of credit; False when the account is full: see ``when_free``."""
        returns = self._returns
        if self.used + nbytes > self.limit:
            self._returns_at_refusal = returns
            return False
        self.promised += nbytes
        return True

    def roomy(self, nbytes: int) -> bool:
        """Whether ``nbytes`` more would leave half the account free."""
        return self.used + nbytes <= self.limit >> 1

    def unreserve(self, nbytes: int) -> None:
        """``nbytes`` of credit were used or given up."""
        self.promised -= nbytes
        if self._starved:
            self._wake()

    def take(self, nbytes: int) -> memoryview:
        """A writable view of ``nbytes``, counted until its last view is gone."""
        view = self._pool.lend(nbytes, "received messages")
        if view is not None:
            return view
        # Only fragmentation leads here: the account has already admitted these bytes.
        mapping = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._elsewhere += nbytes
        weakref.finalize(mapping, self.dropped, nbytes).atexit = False
        return memoryview(mapping)

    def hold(self, nbytes: int) -> None:
        """``nbytes`` that came are kept outside the pool until ``let_go``, or ``dropped`` in a destructor."""
        self._elsewhere += nbytes

    def let_go(self, nbytes: int) -> None:
        self._elsewhere -= nbytes
        if self._starved:
            self._wake()

    def dropped(self, nbytes: int) -> None:
        """As ``let_go``, wherever a destructor runs."""
        self._freed_elsewhere.append(nbytes)
        self._returned()

    def _returned(self) -> None:
        # Runs wherever the last view died: in any thread, or within the garbage collector.
        self._returns += 1
        self._wake()

    def when_free(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` once, from any thread, when room may have come back since ``reserve`` refused."""
        self._starved.append(callback)
        if self._returns != self._returns_at_refusal:  # another thread had nobody to wake
            self._wake()

    def _wake(self) -> None:
        while self._starved:
            try:
                callback = self._starved.popleft()
            except IndexError:  # another thread was faster
                return
            callback()

    def held(self) -> str:
        """Who has the memory, for error messages."""
        used = self.used
        return (
            f"{used} of {self.limit} bytes of receive memory are in use: {used - self.promised} in received "
            f"messages that are queued or still referenced, {self.promised} promised to peers as credit"
        )

    def close(self) -> None:
        """Give the memory back once the last view is gone."""
        self._pool.close()
