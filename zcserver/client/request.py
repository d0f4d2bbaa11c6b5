"""One request of the file protocol: a stream that is given up when its block ends before it did."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import anyio

from zcserver.connection import Connection
from zcserver.errors import TransferError
from zcserver.stream import Stream
from zcserver_protocol.control import MAX_INTEGER, MIN_INTEGER
from zcserver_protocol.errors import ErrorCode


@contextlib.asynccontextmanager
async def opened(connection: Connection, method: str, path: str, **args: Any) -> AsyncIterator[Stream]:
    """A stream with these arguments (None: left out) whose sending half stays open."""
    given = {name: value for name, value in args.items() if value is not None}
    stream = await connection.open(method, path, **given)
    try:
        yield stream
    finally:
        stream.reset(ErrorCode.CANCELLED, "the client gave up")


@contextlib.asynccontextmanager
async def request(connection: Connection, method: str, path: str, **args: Any) -> AsyncIterator[Stream]:
    """A stream with these arguments (None: left out) on which nothing more is sent."""
    async with opened(connection, method, path, **args) as stream:
        await stream.end()
        yield stream


async def reply_of(stream: Stream) -> dict[str, Any]:
    """The reply; StreamResetError when the server refuses, TransferError when it is no file server."""
    try:
        return await stream.response()
    except anyio.EndOfStream:
        raise TransferError(
            f"the server did not answer {stream.method}: is it a zcserver file server?"
        ) from None


async def ask(connection: Connection, method: str, path: str, **args: Any) -> dict[str, Any]:
    """A request whose answer is its reply."""
    async with request(connection, method, path, **args) as stream:
        reply = await reply_of(stream)
        await finished(stream)
        return reply


async def finished(stream: Stream) -> None:
    """Wait for the stream's end, which says that all went well. Messages on the way mean nothing."""
    while True:
        try:
            await stream.receive()
        except anyio.EndOfStream:
            return


def number(reply: dict[str, Any], name: str, least: int = 0, most: int = 2**63 - 1) -> int:
    """A whole number of a reply; TransferError if there is none from ``least`` to ``most``."""
    value = reply.get(name)
    if not isinstance(value, int) or not least <= value <= most:
        raise TransferError(f"the server's reply has no usable {name!r}: is it a zcserver file server?")
    return value


def modified(reply: dict[str, Any]) -> int:
    """The modification time of a reply in nanoseconds, which needs 64 bits after April 2262."""
    return number(reply, "mtime_ns", least=MIN_INTEGER, most=MAX_INTEGER)


def text(reply: dict[str, Any], name: str) -> str:
    """A text of a reply; TransferError if there is none."""
    value = reply.get(name)
    if not isinstance(value, str):
        raise TransferError(f"the server's reply has no usable {name!r}: is it a zcserver file server?")
    return value
