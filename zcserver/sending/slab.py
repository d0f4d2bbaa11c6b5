"""Headers that travel by reference are in flight too: they live in pool pages of the same principal."""

from typing import Final

from zcserver.kernel.calls import memory_at, pointer_to
from zcserver.memory import PAGE, Buffer
from zcserver_protocol.frames import HEADER_SIZE

LAST_HEADER: Final = PAGE - HEADER_SIZE
"""The last place in a page where a header fits."""


class HeaderSlab:
    """One page of frame headers. It goes home when its last header has been acknowledged.

    Write a header into ``view`` at ``used``, which must not be past ``LAST_HEADER``, then move ``used`` on
    and count ``live`` up; count it down when that frame is acknowledged. The page is sealed like any sent
    buffer, but headers are still appended to it: no place is written twice while anything in it is live.
    """

    __slots__ = ("address", "buffer", "live", "used", "view")

    def __init__(self, buffer: Buffer) -> None:
        buffer.seal()
        self.buffer = buffer
        self.address = buffer.address
        self.view = memoryview(memory_at(pointer_to(buffer.address), PAGE))
        self.live = 0
        self.used = 0
