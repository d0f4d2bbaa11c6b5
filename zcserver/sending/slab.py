"""Headers that travel by reference are in flight too: they live in pool pages of the same principal."""

from typing import Final

from zcserver.kernel.calls import memory_at, pointer_to
from zcserver.memory import PAGE, Buffer, Pool, Principal
from zcserver_protocol.frames import HEADER_SIZE

PLACES: Final = PAGE // HEADER_SIZE
"""How many headers a page holds."""


class HeaderSlab:
    """One page of frame headers, used round and round. It goes home when none of its headers is in flight.

    ``take`` places, unless all ``PLACES`` are ``live``, and write headers into ``view`` there; count ``live``
    down when those frames are acknowledged. Frames are acknowledged in the order of their headers, so
    the next place is free whenever any is. The page is sealed like any sent buffer, yet written to: never
    where a header is in flight. ``shared``: for whose messages its headers are, if not the connection's own.
    """

    __slots__ = ("_next", "address", "buffer", "live", "shared", "view")

    def __init__(self, buffer: Buffer, shared: Principal | None) -> None:
        buffer.seal()
        self.buffer = buffer
        self.address = buffer.address
        self.view = memoryview(memory_at(pointer_to(buffer.address), PAGE))
        self.shared = shared
        self.live = 0
        self._next = 0

    @property
    def row(self) -> int:
        """How many places are free side by side."""
        return min(PLACES - self.live, (PAGE - self._next) // HEADER_SIZE)

    def take(self, count: int) -> int:
        """The next ``count`` places, at most a ``row``, as an offset in the page."""
        place = self._next
        self._next = (place + count * HEADER_SIZE) & (PAGE - 1)
        self.live += count
        return place


class HeaderPages:
    """A connection's header pages: the one in use, and earlier ones until their headers are acknowledged."""

    __slots__ = ("_current", "_holder", "_pool", "_principal")

    def __init__(self, pool: Pool, principal: Principal, holder: str) -> None:
        self._pool = pool
        self._principal = principal
        self._holder = holder
        self._current: HeaderSlab | None = None

    def page(self, shared: Principal | None) -> HeaderSlab | None:
        """One with a free place, of the same principal as the payload; None: then that has to be copied."""
        slab = self._current
        if slab is not None and slab.live < PLACES and slab.shared is shared:
            return slab
        self.drop()
        buffer = self._pool.try_acquire(PAGE, shared or self._principal, self._holder)
        if buffer is None:
            return None
        if not buffer.by_reference:
            buffer.release()
            return None
        self._current = slab = HeaderSlab(buffer, shared)
        return slab

    def acknowledged(self, slab: HeaderSlab, count: int) -> None:
        """``count`` more of the page's headers were."""
        slab.live -= count
        if not slab.live and slab is not self._current:
            slab.buffer.home()

    def drop(self) -> None:
        """Use no page any longer than for what is in flight."""
        slab, self._current = self._current, None
        if slab is not None and not slab.live:
            slab.buffer.home()

    def abandon(self, slabs: set[HeaderSlab]) -> None:
        """The connection is dead, and these have headers in flight."""
        if self._current is not None:
            slabs.add(self._current)
            self._current = None
        for slab in slabs:
            slab.buffer.abandon()
