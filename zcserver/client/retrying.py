"""A stream that is opened again when its connection is lost: how long to wait, what is worth another try."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Final

import anyio

from zcserver.connection import Connection
from zcserver.errors import ConnectionLostError, StreamResetError, TransferError
from zcserver.stream import Stream
from zcserver_protocol.errors import ErrorCode

if TYPE_CHECKING:
    from .client import Client

_log = logging.getLogger("zcserver.client")
_FIRST: Final = 0.1
_DOUBLED: Final = 7
_LONGEST: Final = 10.0

INTERRUPTED: Final = (ConnectionLostError, StreamResetError, anyio.EndOfStream)
"""What ends a stream early, perhaps to be opened again."""


@dataclass(frozen=True, slots=True)
class Retry:
    """A connection was lost or could not be made: the next try comes ``delay`` seconds from now.

    ``attempt`` counts the tries, from 1 on, since something was accepted or received, or a stream held for
    long.
    """

    error: Exception
    delay: float
    attempt: int

    def __str__(self) -> str:
        reason = str(self.error) or "the server ended the stream"
        return f"{reason}; trying again in {self.delay:.1f} s"


OnRetry = Callable[[Retry], object]


def log_retry(retry: Retry) -> None:
    """Say so in the log ``zcserver.client``, as a warning."""
    _log.warning("%s", retry)


class Retrying:
    """Opens streams on the client's connection, and on a new one when that is lost.

    ``seconds`` is for how long in a row to try; ``on_retry`` is told of every try. Call ``progressed`` when
    something was accepted or received, and ``failed`` with what ended a stream, which waits or raises, then
    ``open`` again.
    """

    def __init__(self, client: "Client", seconds: float = inf, on_retry: OnRetry = log_retry) -> None:
        self.reconnections = 0
        self._client = client
        self._seconds = seconds
        self._on_retry = on_retry
        self._attempt = 0
        self._deadline = inf
        self._is_lost = False
        self._replied = 0.0

    async def open(self, method: str, path: str, **args: Any) -> tuple[Stream, dict[str, Any]]:
        """A stream and the server's reply. Raises one of INTERRUPTED: go on with ``failed``."""
        if _is_ending(self._client.connection):
            await self._client.reconnect(self._client.connection)
        connection = self._client.connection
        connection.engine.check_alive()
        if connection.engine.codec.goaway_received:
            raise ConnectionLostError(f"{connection.name} is closing the connection")
        given = {name: value for name, value in args.items() if value not in (None, "")}
        stream = await connection.open(method, path, **given)
        try:
            reply = await stream.response()
        except BaseException:
            stream.reset(reason="given up before there was a reply")
            raise
        if self._is_lost:
            self.reconnections += 1
        self._is_lost = False
        self._replied = time.monotonic()
        return stream, reply

    def progressed(self) -> None:
        """It works: the next failure is a first one. A reply alone is not enough, nothing may follow it."""
        self._attempt = 0

    async def failed(self, error: Exception, stream: Stream | None = None) -> None:
        """Wait before the next try; raise ``error`` if another one is of no use, or time is up."""
        if is_refusal(error):
            raise error
        if not self._client.can_reconnect:
            raise error if isinstance(error, TransferError) else _ended(stream)
        now = time.monotonic()
        if not self._is_lost:
            self._is_lost = True
            self._deadline = now + self._seconds
            if now - self._replied > _LONGEST:
                self.progressed()  # nothing was to be had, perhaps
        if now >= self._deadline:
            raise error if isinstance(error, TransferError) else _ended(stream)
        # Spread, so that all clients of a server that was restarted do not come at once.
        delay = min(_FIRST * 2 ** min(self._attempt, _DOUBLED), _LONGEST) * random.uniform(0.5, 1.0)
        delay = min(delay, self._deadline - now)
        self._attempt += 1
        self._on_retry(Retry(error, delay, self._attempt))
        await anyio.sleep(delay)


def is_refusal(error: Exception) -> bool:
    """Whether the server would say the same again. A stream is cancelled when the server closes."""
    return isinstance(error, StreamResetError) and error.code != ErrorCode.CANCELLED


def _is_ending(connection: Connection) -> bool:
    """Whether it takes no more streams. One that does is left alone: others use it, too."""
    engine = connection.engine
    return connection.is_closed or engine.error is not None or engine.codec.goaway_received


def _ended(stream: Stream | None) -> ConnectionLostError:
    return ConnectionLostError(f"the server ended {stream!r}" if stream else "the server ended the stream")
