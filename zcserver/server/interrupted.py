"""Uploads that lost their client, kept for a while: the same upload goes on where they ended.

The same is one with equal arguments, ``resume`` among them. It may come before the server has noticed that
the old one's connection is dead, which is ended then.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

import anyio

from zcserver.stream import Stream
from zcserver_protocol.errors import ErrorCode

from .staging import Upload, Wanted

MOST: Final = 16
SECONDS: Final = 24 * 3600.0


class InterruptedUploads:
    """At most ``most`` of them, each for up to ``seconds``; past that, the oldest go first.

    They keep their temporary files: whatever ``surplus`` and ``clear`` return is to be discarded. Belongs to
    one event loop.
    """

    def __init__(
        self, most: int = MOST, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._kept: dict[Wanted, tuple[float, Upload]] = {}  # the oldest first
        self._running: dict[Wanted, tuple[Stream, anyio.Event]] = {}

    @contextlib.asynccontextmanager
    async def turn(self, wanted: Wanted, stream: Stream) -> AsyncIterator[None]:
        """Be alone inside with these arguments: end the one before, wait until it and all earlier are out."""
        if wanted.resume is None:
            yield
            return
        before, mine = self._running.get(wanted), (stream, anyio.Event())
        self._running[wanted] = mine
        try:
            if before is not None:
                before[0].reset(ErrorCode.REFUSED, "another connection goes on with this upload")
                with anyio.CancelScope(shield=True):  # whoever waits for this one waits for that, too
                    await before[1].wait()
            yield
        finally:
            if self._running[wanted] is mine:
                del self._running[wanted]
            mine[1].set()

    def take(self, wanted: Wanted) -> Upload | None:
        """The interrupted upload with these arguments."""
        kept = self._kept.pop(wanted, None)
        return None if kept is None else kept[1]

    def keep(self, upload: Upload) -> None:
        """Keep it for the next ``take``."""
        self._kept[upload.wanted] = self._clock(), upload

    @property
    def nbytes(self) -> int:
        """What they hold on disk."""
        return sum(upload.written for _, upload in self._kept.values())

    def surplus(self) -> list[Upload]:
        """Keep those no longer that are too old or too many, and return them."""
        oldest = self._clock() - self._seconds
        too_many = len(self._kept) - self._most
        old = [
            wanted
            for number, (wanted, (since, _)) in enumerate(self._kept.items())
            if number < too_many or since < oldest
        ]
        return [self._kept.pop(wanted)[1] for wanted in old]

    def clear(self) -> list[Upload]:
        """Keep none any longer, and return them."""
        kept, self._kept = self._kept, {}
        return [upload for _, upload in kept.values()]
