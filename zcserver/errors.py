"""Two families: what the caller did wrong, and what the peer or the system did.

``MisuseError`` is a bug in the program that uses zcserver: fix the program. ``TransferError`` is trouble
from outside: report it, retry, or resume. Messages name the limit, the value and the way out.
"""

from typing import Final

from zcserver_protocol.errors import ErrorCode

RESET_NAMES: Final[dict[int, str]] = {code.value: code.name for code in ErrorCode}
"""The names of reset codes. Protocols above ZCP/1 add theirs."""

_LARGEST_CODE: Final = 2**32 - 1


class ZCServerError(Exception):
    """Base of everything zcserver raises on purpose."""


class MisuseError(ZCServerError, RuntimeError):
    """The caller broke a contract; nothing was changed by the call that raised this."""


class BufferStateError(MisuseError):
    """A buffer was used after it was sent, sent twice, or released twice."""


class ViewsAliveError(MisuseError):
    """A buffer was sent while slices, casts or arrays of it are alive and could still write to it."""


class RequestTooLargeError(MisuseError):
    """More memory was asked for than can ever be free."""


def printable(text: str) -> str:
    """One line without control characters: part of it may come from a peer."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def leaves_of(error: BaseException) -> list[BaseException]:
    """The error itself, or of a group, as task groups raise them, those in it."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaves_of(each)]
    return [error]


def first_of(error: BaseException) -> BaseException:
    """The error itself, or of a group, as task groups raise them, the first one in it."""
    return leaves_of(error)[0]


def parted(
    error: BaseException, kind: type[BaseException]
) -> tuple[BaseException | None, BaseException | None]:
    """What of an error or a group is of this kind, and the rest of it."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(kind)
    return (error, None) if isinstance(error, kind) else (None, error)


class TransferError(ZCServerError):
    """Trouble from outside the program: the peer, the network or the system."""


class PoolTimeoutError(TransferError, TimeoutError):
    """No memory came free in time; the message names who holds it."""


class ConnectionLostError(TransferError, ConnectionError):
    """The connection ended before the work was done."""


class StreamLostError(ConnectionLostError, ConnectionResetError):
    """A byte stream was broken off; also a ConnectionResetError, for programs written for asyncio."""


class HandshakeError(ConnectionLostError):
    """The other end does not speak ZCP/1, or no version, limit or feature suits both."""


class PeerTimeoutError(ConnectionLostError, TimeoutError):
    """The peer made no progress (no acknowledgement, no sign of life) for the configured time."""


class StreamResetError(TransferError):
    """One end gave this stream up; the connection lives on.

    ``code`` is an :class:`zcserver_protocol.errors.ErrorCode`, one of those in ``zcserver.file_protocol`` and
    ``zcserver.topic_protocol``, or a plain int that the application chose, 0 to 2**32 - 1. Raises MisuseError
    for others.
    """

    def __init__(self, code: int, reason: str) -> None:
        if not 0 <= code <= _LARGEST_CODE:
            raise MisuseError(f"{code} is no reset code: choose one of 0 to {_LARGEST_CODE}")
        name = RESET_NAMES.get(code, str(code))
        super().__init__(f"stream reset ({name}): {reason}" if reason else f"stream reset ({name})")
        self.code = code
        self.reason = reason


class MessageTooLargeError(TransferError):
    """A message is larger than this end assembles; read it with ``receive_into`` or in ``chunks``."""
