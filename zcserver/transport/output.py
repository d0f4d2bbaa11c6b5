"""The outgoing half of a transport: who owns what was written, and how much the peer has not acknowledged.

Small writes are joined: copying one is cheaper than a frame of its own, for both ends.
"""

from typing import Any, Final

from zcserver.channel import Channel
from zcserver.memory import Buffer
from zcserver.sending.completion import Completion
from zcserver.sending.files import FileRegion
from zcserver.sending.foreign import ForeignMemory
from zcserver.sending.lanes import REFERENCE_THRESHOLD
from zcserver.sending.message import Outgoing, end_marker
from zcserver.views import as_bytes

from .link import Link

# Writes below this are joined, unless they may go by reference.
_SMALL: Final = 128 * 1024
# Joined writes leave in messages of about this many bytes.
_JOINED: Final = 256 * 1024
# Memory that the caller may change is offered to the socket in pieces of this many bytes, so that no more
# than the untaken rest, and less than one piece besides, is copied.
_PIECE: Final = 256 * 1024


def bytes_to_write(data: Any) -> memoryview:
    """As `as_bytes`, but asyncio's TypeError for what has no buffer protocol."""
    try:
        memoryview(data)
    except TypeError:
        raise TypeError(
            f"data argument must be a pool buffer or a bytes-like object, not {type(data).__name__!r}"
        ) from None
    return as_bytes(data)


class Output:
    """What the application wrote. ``push`` hands to the engine what was kept to be joined."""

    __slots__ = ("_channel", "_engine", "_joining", "_joining_bytes", "_last", "_link", "_small")

    def __init__(self, link: Link, channel: Channel) -> None:
        self._link = link
        self._engine = link.engine
        self._channel = channel
        self._joining: list[bytes] = []
        self._joining_bytes = 0
        self._last: Completion | None = None
        by_reference = link.trusts_peer and link.context.by_reference
        self._small = REFERENCE_THRESHOLD if by_reference else _SMALL

    @property
    def size(self) -> int:
        """Bytes that the peer has not acknowledged, the headers of those in flight included."""
        return self._joining_bytes + self._engine.unacknowledged(self._channel)

    @property
    def waiting(self) -> int:
        """Bytes that are not on their way yet, for want of credit, window or room in the socket."""
        return self._joining_bytes + self._channel.queued

    @property
    def undelivered(self) -> bool:
        """Something that was written will never arrive."""
        if self._link.over or self._channel.error is not None:
            return bool(self._joining) or (self._last is not None and self._last.error is not None)
        return False

    def write(self, data: bytes | memoryview) -> bool:
        """Queue bytes, which the caller may change afterwards; True when `push` is due."""
        nbytes = len(data)
        if nbytes < self._small:
            self._joining.append(data if data.__class__ is bytes else bytes(data))
            self._joining_bytes += nbytes
            if self._joining_bytes < _JOINED:
                return True
            self.push()
            return False
        self.push()
        if data.__class__ is bytes:
            self._send(self._immutable(memoryview(data)))
        else:
            self._borrow(data)  # type: ignore[arg-type]
        return False

    def push(self) -> None:
        joining = self._joining
        if not joining:
            return
        data = joining[0] if len(joining) == 1 else b"".join(joining)
        joining.clear()
        self._joining_bytes = 0
        self._send(Outgoing(len(data), None, memoryview(data)))

    def flush(self) -> None:
        """Hand over what was written, and write of it what may be written now."""
        self.push()
        self._engine.flush()

    def _send(self, outgoing: Outgoing) -> None:
        self._last = outgoing
        self._engine.send(self._channel, outgoing)

    def _immutable(self, view: memoryview) -> Outgoing:
        """Memory that stays as it is until it is acknowledged: by reference if the peer is trusted."""
        link = self._link
        nbytes = view.nbytes
        if (
            link.trusts_peer
            and link.context.by_reference
            and nbytes >= REFERENCE_THRESHOLD
            and link.context.foreign.admits(nbytes)
        ):
            memory = ForeignMemory(view, link.context.foreign)
            return Outgoing(nbytes, memory, view, memory.address)
        return Outgoing(nbytes, None, view)

    def _borrow(self, view: memoryview) -> None:
        """Let the socket copy what it takes now, and keep a copy of the rest."""
        pieces = [
            Outgoing(len(piece), None, piece)
            for piece in (view[start : start + _PIECE] for start in range(0, len(view), _PIECE))
        ]
        for piece in pieces:
            self._send(piece)
        self._engine.flush()
        for piece in pieces:
            piece.keep_rest()

    def send(self, data: Any, allow_views: bool) -> Completion:
        """Queue memory that nobody changes before it is acknowledged; see ``ZeroCopyTransport.send``."""
        if data.__class__ is Buffer:
            data.seal(allow_views)
            link = self._link
            mine = data.by_reference and data.principal is link.principal and link.context.by_reference
            outgoing = Outgoing(data.nbytes, data, None, data.address if mine else 0)
        else:
            outgoing = self._immutable(bytes_to_write(data))
        self.push()
        self._send(outgoing)
        return outgoing

    def send_file(self, fd: int, offset: int, nbytes: int) -> Outgoing:
        """Queue a region of a file."""
        context = self._link.context
        region = FileRegion(fd, offset, nbytes, context.kernel, context.pipes, context.splices_files)
        self.push()
        outgoing = Outgoing(nbytes, file=region)
        self._send(outgoing)
        return outgoing

    def end(self) -> None:
        """No more will be written: the END flag."""
        self.push()
        self._engine.send(self._channel, end_marker())
