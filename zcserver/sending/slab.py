"""Headers that travel by reference are in flight too: they live in pool pages of the same principal."""

from typing import Final

from zcserver.kernel.calls import memory_at, pointer_to
from zcserver.memory import PAGE, Buffer, Principal
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
