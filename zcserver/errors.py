"""Two families: what the caller did wrong, and what the peer or the system did.

``MisuseError`` is a bug in the program that uses zcserver: fix the program. ``TransferError`` is trouble
from outside: report it, retry, or resume. Messages name the limit, the value and the way out.
"""

from typing import Final

from zcserver_protocol.errors import ErrorCode

RESET_NAMES: Final[dict[int, str]] = {code.value: code.name for code in ErrorCode}
"""The names of reset codes. Protocols above ZCP/1 add theirs."""


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


def first_of(error: BaseException) -> BaseException:
    """The error itself, or of a group, as task groups raise them, the first one in it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


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
    ``zcserver.topic_protocol``, or a plain int that the application chose.
    """

    def __init__(self, code: int, reason: str) -> None:
        name = RESET_NAMES.get(code, str(code))
        super().__init__(f"stream reset ({name}): {reason}" if reason else f"stream reset ({name})")
        self.code = code
        self.reason = reason


class MessageTooLargeError(TransferError):
    """A message is larger than this end assembles; read it with ``receive_into`` or in ``chunks``."""
