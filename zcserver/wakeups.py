"""Who waits for what on a stream: woken by its channel, which knows no stream and so keeps none alive."""

import logging
from collections.abc import Callable
from typing import Final

import anyio

from .channel import Channel

# Besides bytes: empty messages queue up too, and must not do so without bound.
QUEUED_MESSAGES: Final = 4096
_log = logging.getLogger("zcserver")


class Wakeups:
    """Of one stream; whoever is woken looks at the channel again. ``on_change`` is the application's."""

    __slots__ = ("_channel", "_committed", "_few", "_news", "_replied", "_room", "on_change")

    def __init__(self, channel: Channel, high_water: int) -> None:
        self.on_change: Callable[[], object] = _ignore
        self._channel = channel
        self._few = high_water >> 1  # bytes
        self._news: anyio.Event | None = None
        self._room: anyio.Event | None = None
        self._replied: anyio.Event | None = None
        self._committed: anyio.Event | None = None
        channel.on_news = self._on_news
        channel.on_room = self._on_room
        channel.on_reply = self._on_reply
        channel.on_commit = self._on_commit

    def news(self) -> anyio.Event:
        """For the one who receives: set when there is something new."""
        self._news = anyio.Event()
        self._channel.wants_news = True
        return self._news

    async def room(self) -> None:
        """Until half of what may queue is gone: a wake-up for every frame would cost more than the frame."""
        if self._room is None:
            self._room = anyio.Event()
            self._channel.room_below = self._few
        await self._room.wait()

    async def reply(self) -> None:
        if self._replied is None:
            self._replied = anyio.Event()
        await self._replied.wait()

    async def commit(self) -> None:
        if self._committed is None:
            self._committed = anyio.Event()
        await self._committed.wait()

    def _on_news(self) -> None:
        if self._news is not None:
            self._channel.wants_news = False
            self._news.set()

    def _on_room(self) -> None:
        room, channel = self._room, self._channel
        if room is not None and (
            (channel.queued <= self._few and len(channel.outgoing) <= QUEUED_MESSAGES >> 1)
            or channel.error is not None
        ):
            self._room = None
            channel.room_below = -1
            room.set()

    def _on_reply(self) -> None:
        replied, self._replied = self._replied, None
        if replied is not None:
            replied.set()

    def _on_commit(self) -> None:
        committed, self._committed = self._committed, None
        if committed is not None:
            committed.set()
        try:
            self.on_change()
        except Exception:  # noqa: BLE001 – the program's; it costs nobody the connection
            state = self._channel.state
            _log.exception("on_change of stream %d, %s %r, raised", state.id, state.method, state.path)


def _ignore() -> None:
    pass
