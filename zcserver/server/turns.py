"""What a connection may have under way at a time, so that it does not keep the others waiting."""

import weakref
from typing import Final

import anyio

from zcserver.stream import Stream

LISTINGS: Final = 16
"""They hold names and pages in memory for as long as the peer takes to read them."""
DIGESTS: Final = 2
"""So many processors one connection may keep busy."""


class Turns:
    """At most ``most`` of each connection's requests at a time; its others wait at nobody else's cost."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limiters: weakref.WeakKeyDictionary[object, anyio.CapacityLimiter] = weakref.WeakKeyDictionary()

    def of(self, stream: Stream) -> anyio.CapacityLimiter:
        """To be used as ``async with``, once per request."""
        limiter = self._limiters.get(stream.connection)
        if limiter is None:
            limiter = self._limiters[stream.connection] = anyio.CapacityLimiter(self._most)
        return limiter
