"""What it means when a handler raises: its stream pays for it, and nobody else."""

import asyncio
import logging
import math
from typing import TYPE_CHECKING

import anyio

from zcserver_protocol.errors import ErrorCode

from .drivers import in_trio
from .errors import ConnectionLostError, StreamResetError, TransferError, leaves_of, parted

if TYPE_CHECKING:
    from .connection import Handler
    from .stream import Stream

_log = logging.getLogger("zcserver")


async def handle(handler: "Handler", stream: "Stream") -> None:
    """Run the handler. Only what ends more than this stream comes out: cancellation, KeyboardInterrupt."""
    beyond: BaseException | None = None
    try:
        await handler(stream)
    except BaseException as error:  # noqa: BLE001 – it is judged
        beyond = _settle(stream, error)
    if beyond is not None:
        raise beyond


def _settle(stream: "Stream", error: BaseException) -> BaseException | None:
    """Let the stream pay for the error; return what of it is not for this stream alone."""
    cancelled = anyio.get_cancelled_exc_class()
    ours, failure = parted(error, cancelled)
    if failure is not None and parted(failure, Exception)[1] is not None:
        return error
    if ours is not None and anyio.current_effective_deadline() > -math.inf:  # no scope around it is cancelled
        if failure is None and _task_is_cancelled():
            stream.reset(ErrorCode.CANCELLED, "the handler was cancelled")
            return None
        ours, failure = None, error  # it awaited what somebody else had cancelled
    if failure is not None:
        try:
            _fail(stream, failure)
        except Exception:  # noqa: BLE001 – a StreamResetError with a code that is none, say
            _refuse(stream, failure)
    return ours


def _task_is_cancelled() -> bool:
    """Whether somebody called ``cancel`` of this very task, as asyncio does at its end with all of them."""
    if in_trio():
        return False
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _fail(stream: "Stream", failure: BaseException) -> None:
    causes = leaves_of(failure)
    first = causes[0]
    connection = stream.connection
    if all(isinstance(cause, StreamResetError) for cause in causes):
        assert isinstance(first, StreamResetError)
        stream.reset(first.code, str(first.reason))
    elif (connection.is_closed or connection.engine.error is not None) and all(
        isinstance(cause, ConnectionLostError | StreamResetError) for cause in causes
    ):
        _log.debug("%r: %s", stream, first)  # the same error reaches whoever waits on the connection
    else:
        _refuse(stream, failure)


def _refuse(stream: "Stream", failure: BaseException) -> None:
    outside = all(isinstance(cause, TransferError) for cause in leaves_of(failure))
    _log.error("the handler of %r failed: %s", stream, failure, exc_info=None if outside else failure)
    stream.reset(ErrorCode.INTERNAL, "the handler failed")
