"""The error codes of the wire, and the two families of exceptions the codec raises.

`RemoteProtocolError`: the peer broke the protocol; the connection is over.
`LocalProtocolError`: the caller asked for an illegal event; nothing has changed and the connection lives on.
"""

from enum import IntEnum, unique


@unique
class ErrorCode(IntEnum):
    """Why a stream was reset or a connection ended (SPEC.md, "Error codes"). The number is what travels."""

    NO_ERROR = 0
    PROTOCOL = 1
    VERSION = 2
    FRAME_SIZE = 3
    FLOW_CONTROL = 4
    ACKNOWLEDGEMENT = 5
    STREAM_STATE = 6
    INTEGRITY = 7
    REFUSED = 8
    CANCELLED = 9
    NOT_FOUND = 10
    FORBIDDEN = 11
    TOO_LARGE = 12
    CHANGED = 13
    INTERNAL = 14
    TIMEOUT = 15
    LIMIT = 16


class ProtocolError(Exception):
    """Base of what the codec raises."""


class RemoteProtocolError(ProtocolError):
    """The peer misbehaved, or fell silent. `code` is what the closing GOAWAY tells it.

    The codec is dead afterwards: send what `Codec.take_control()` still returns (best effort), then abort the
    connection. Memory in flight must not be reused on the strength of anything this peer said last.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message


class NotZCPError(RemoteProtocolError):
    """The peer speaks something else; `began` are its first 8 bytes."""

    def __init__(self, began: bytes) -> None:
        super().__init__(ErrorCode.PROTOCOL, f"the other end does not speak ZCP: it began with {began!r}")
        self.began = began


class LocalProtocolError(ProtocolError):
    """The caller asked for what the state does not allow. Nothing was changed and nothing will be sent."""


class TooManyStreams(LocalProtocolError):  # noqa: N818 - a reason to wait, not a fault
    """`open` would exceed the peer's `max_streams`. Wait until `Codec.openable` is positive, then retry."""
