"""Reading a file of the server like a local one, from an event loop."""

import contextlib
import io
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Final, Self

import anyio

from zcserver.connection import Connection
from zcserver.errors import MisuseError
from zcserver.file_protocol import GET
from zcserver.pace import Pace
from zcserver.stream import Stream

from .download import bytes_of, expect_end, fill
from .progress import VerificationError
from .request import ask, modified, number, reply_of, request, text

_CHUNK: Final = 1 << 20


class RemoteFile:
    """``async with client.open(path) as file``: ``read``, ``readinto``, ``seek``, or iterate over chunks.

    All reads see one state of the file: they raise StreamResetError (code CHANGED) when it has changed.
    Reading on and on is one stream from the server; a read after a ``seek`` asks for just its bytes.
    One task reads at a time. ``size`` (bytes), ``mtime_ns`` and ``validator`` are known from the start.
    """

    def __init__(self, connection: Connection, pace: Pace, path: str) -> None:
        self._connection = connection
        self._pace = pace
        self._path = path
        self._position = 0
        self._until = 0  # where the running stream ends
        self._sought = False
        self._is_open = False
        self._stream: Stream | None = None
        self._closing = contextlib.AsyncExitStack()
        self.size = self.mtime_ns = 0
        self.validator = ""

    async def __aenter__(self) -> Self:
        # Not STAT, which tells of directories and of what may not be read, too.
        reply = await ask(self._connection, GET, self._path, length=0)
        self.size = number(reply, "size")
        self.mtime_ns = modified(reply)
        self.validator = text(reply, "validator")
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_open = False
        await self._drop()

    def tell(self) -> int:
        return self._position

    async def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset (bytes) from the beginning, the current position or the end; return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        position = base + offset
        if position < 0:
            raise MisuseError(f"cannot seek to {position}, before the beginning of {self._path}")
        if position != self._position:
            await self._drop()
            self._position = position
            self._sought = True
        return position

    async def readinto(self, memory: Any) -> int:
        """Fill ``memory`` (writable, contiguous) from the current position; fewer bytes only at the end."""
        if not self._is_open:
            raise MisuseError(f"{self._path} is not open: read inside `async with client.open(path) as file`")
        sink = bytes_of(memory)
        wanted = min(len(sink), max(0, self.size - self._position))
        if not wanted:
            return 0
        try:
            stream = await self._stream_for(wanted)
            count = await fill(stream, sink[:wanted], self._pace)
            if count != wanted:
                raise VerificationError(
                    f"{self._path}: {count} bytes came, {wanted} were due: fetch it again"
                )
            self._position += count
            if self._position == self._until:
                await expect_end(stream)
                await self._drop()
        except BaseException:
            await self._drop()  # a part of them has gone
            raise
        return count

    async def read(self, nbytes: int = -1) -> bytes:
        """The next ``nbytes`` (default: all the rest); fewer only at the end of the file."""
        left = max(0, self.size - self._position)
        memory = bytearray(left if nbytes < 0 else min(nbytes, left))
        await self.readinto(memory)
        return bytes(memory)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self.read(_CHUNK):
            yield chunk

    async def _stream_for(self, wanted: int) -> Stream:
        """The running stream, or a new one from here: to the end, or after a seek for these bytes only."""
        if self._stream is None:
            left = self.size - self._position
            length = wanted if self._sought else left
            self._sought = False
            self._until = self._position + length
            stream = await self._closing.enter_async_context(
                request(
                    self._connection,
                    GET,
                    self._path,
                    offset=self._position,
                    length=length,
                    validator=self.validator,
                )
            )
            await reply_of(stream)
            self._stream = stream
        return self._stream

    async def _drop(self) -> None:
        self._stream = None
        with anyio.CancelScope(shield=True):
            await self._closing.aclose()
        self._closing = contextlib.AsyncExitStack()
