"""Headers that travel by reference are in flight too: they live in pool pages of the same principal."""

from typing import Final

from zcserver.kernel.calls import span
from zcserver.memory import PAGE, Buffer
from zcserver_protocol.frames import HEADER_SIZE

_LAST: Final = PAGE - HEADER_SIZE


class HeaderSlab:
    """One page of frame headers. It goes home when its last header has been acknowledged.

    Call ``take`` for a place and write the header into ``view`` there; count ``live`` down when its frame
    is acknowledged. The page is sealed like any sent buffer, but headers are still appended to it: no
    place in it is ever written twice.
    """

    __slots__ = ("_used", "address", "buffer", "live", "view")

    def __init__(self, buffer: Buffer) -> None:
        buffer.seal()
        self.buffer = buffer
        self.address = buffer.address
        self.view = memoryview(span(buffer.address, PAGE))
        self.live = 0
        self._used = 0

    def take(self) -> int:
        """Reserve room for one header; return its offset in the page, or -1 when the page is full."""
        position = self._used
        if position > _LAST:
            return -1
        self._used = position + HEADER_SIZE
        self.live += 1
        return position
