"""The incoming half of a transport: received pieces into ``data_received`` or the protocol's own buffers."""

import asyncio
from typing import Any, Final

from zcserver.channel import Channel
from zcserver.engine import Engine

_JOINED: Final = 256 * 1024  # bytes, about as many as asyncio reads at once


class Input:
    """Hands on what the inbox holds. ``calling`` names the protocol's method in work, for reports."""

    __slots__ = ("_buffered", "_channel", "_engine", "_inbox", "_protocol", "_rest", "calling")

    def __init__(self, engine: Engine, channel: Channel) -> None:
        self._engine = engine
        self._channel = channel
        self._inbox = channel.inbox
        self._protocol: Any = None
        self._buffered = False
        self._rest: memoryview | None = None  # of a piece that a BufferedProtocol paused in
        self.calling = ""

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        self._buffered = isinstance(protocol, asyncio.BufferedProtocol)

    @property
    def empty(self) -> bool:
        return not self._inbox.pieces and self._rest is None

    @property
    def ended(self) -> bool:
        """The peer has ended its direction; its last bytes may still be here."""
        return self._inbox.ended

    @property
    def at_end(self) -> bool:
        return self._inbox.ended and self.empty

    def deliver(self) -> bool:
        """One call of the protocol; False when there was nothing for it."""
        view, self._rest = self._rest, None
        if view is None:
            view = self._inbox.take_chunk()
            if view is None:
                return False
        if not view:
            return True
        if self._buffered:
            self._fill(view)
            return True
        self.calling = "data_received"
        self._protocol.data_received(self._joined(view))
        return True

    def _joined(self, view: memoryview) -> bytes:
        """This piece, with those that have come behind it: calls cost more than bytes."""
        inbox = self._inbox
        if not inbox.pieces:
            whole = view.obj
            return whole if whole.__class__ is bytes and len(whole) == len(view) else bytes(view)
        views = [view]
        nbytes = len(view)
        while nbytes < _JOINED and (following := inbox.take_chunk()) is not None:
            views.append(following)
            nbytes += len(following)
        return b"".join(views)

    def _fill(self, view: memoryview) -> None:
        self.calling = "get_buffer"
        with memoryview(self._protocol.get_buffer(len(view))) as target:  # of any shape and kind of items
            room = target.nbytes
            if not room:
                raise RuntimeError("get_buffer() returned an empty buffer")
            if room < len(view):
                self._rest = view[room:]
                view = view[:room]
            with target.cast("B") as space:
                space[: len(view)] = view
        self.calling = "buffer_updated"
        self._protocol.buffer_updated(len(view))

    def skip(self) -> None:
        """Take what there is, for nobody."""
        self._rest = None
        while self._inbox.take_chunk() is not None:
            pass

    def grant(self) -> None:
        """What was taken may be followed by more."""
        if self._inbox.grant_due:
            self._engine.grant(self._channel)

    def close(self) -> None:
        """Drop what nobody will take."""
        self._rest = None
        self._inbox.drop()
