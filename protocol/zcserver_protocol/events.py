"""What `Codec.feed` reports. `Data` is one reused object: take what you need of it before the next `feed`."""

from typing import TypeAlias, final

from .limits import Limits
from .streams import Args, StreamState


@final
class Hello:
    """The handshake is complete: ``limits`` are the peer's, ``features`` those that both ends list."""

    __slots__ = ("features", "limits", "software", "version")

    def __init__(self, limits: Limits, version: int, features: frozenset[str], software: str) -> None:
        self.limits = limits
        self.version = version
        self.features = features
        self.software = software


@final
class Data:
    """A DATA header: ``length`` payload bytes come next (``Codec.payload_left`` counts them down).

    ``stream`` is None for a stream that is finished: read the payload all the same, and throw it away.
    ``remaining`` bytes of the same message follow this frame (``UNKNOWN`` if the sender cannot tell).
    """

    __slots__ = ("crc", "flags", "length", "remaining", "stream")

    def __init__(self) -> None:
        self.stream: StreamState | None = None
        self.length = 0
        self.remaining = 0
        self.flags = 0
        self.crc = 0


@final
class Acked:
    """The peer has copied out every DATA byte of this connection below ``upto``: that memory is free."""

    __slots__ = ("upto",)

    def __init__(self, upto: int) -> None:
        self.upto = upto


@final
class Credited:
    """``stream`` may send more: ask ``Codec.sendable``."""

    __slots__ = ("stream",)

    def __init__(self, stream: StreamState) -> None:
        self.stream = stream


@final
class Committed:
    """The peer's application has processed the first ``count`` messages that we sent on ``stream``."""

    __slots__ = ("count", "stream")

    def __init__(self, stream: StreamState, count: int) -> None:
        self.stream = stream
        self.count = count


@final
class Opened:
    """The peer opened ``stream`` (its method, path and args are there): answer by ``reply`` or ``reset``."""

    __slots__ = ("stream",)

    def __init__(self, stream: StreamState) -> None:
        self.stream = stream


@final
class Replied:
    """The peer accepted a stream of ours, and may have granted credit with it."""

    __slots__ = ("args", "stream")

    def __init__(self, stream: StreamState, args: Args) -> None:
        self.stream = stream
        self.args = args


@final
class Reset:
    """The peer gave ``stream`` up; it has left the table. ``code``: an ErrorCode or the application's own."""

    __slots__ = ("code", "reason", "stream")

    def __init__(self, stream: StreamState, code: int, reason: str) -> None:
        self.stream = stream
        self.code = code
        self.reason = reason


@final
class Goaway:
    """No stream can be opened any more. ``code`` other than 0: the connection is dead, abort it.

    Streams of ours above ``last_stream`` were not processed; the peer resets each of them as REFUSED.
    """

    __slots__ = ("code", "last_stream", "reason")

    def __init__(self, code: int, reason: str, last_stream: int) -> None:
        self.code = code
        self.reason = reason
        self.last_stream = last_stream


@final
class Pong:
    """The answer to ``Codec.ping(token)`` (or, with token 0, to a keep-alive of the codec's own)."""

    __slots__ = ("token",)

    def __init__(self, token: int) -> None:
        self.token = token


Event: TypeAlias = Hello | Data | Acked | Credited | Committed | Opened | Replied | Reset | Goaway | Pong
