"""What a descriptor gives, cut into messages: lines, pieces of one size, all of it, or as it comes."""

import os
import select
import stat
from collections.abc import Awaitable, Callable
from typing import Final

import anyio.to_thread
import typer

from zcserver.client.descriptors import read_some, ready
from zcserver.errors import MessageTooLargeError
from zcserver.memory import Buffer

from .options import parse_size

LINES: Final = -1
WHOLE: Final = -2
AS_IT_COMES: Final = 0
_READ: Final = 1 << 20
# Pieces of these sizes are read straight into pool memory and go by reference.
_LEAST: Final = 64 << 10
_MOST: Final = 4 << 20
Acquire = Callable[[int], Awaitable[Buffer | None]]


def parse_form(text: str) -> int:
    """``lines``, ``frame`` (all of it), or a size: of each message but the last."""
    if text in ("lines", "frame", ""):
        return {"lines": LINES, "frame": WHOLE, "": AS_IT_COMES}[text]
    size = parse_size(text)
    if not size:
        raise typer.BadParameter("a message has at least one byte")
    return size


class Pieces:
    """``form``: LINES (each with its newline), WHOLE, AS_IT_COMES, or a size in bytes.

    ``acquire`` gives pool memory, or None when there is none now; ``most`` bounds a message, in bytes.
    """

    def __init__(self, fd: int, form: int, acquire: Acquire, most: int) -> None:
        self._fd = fd
        self._form = form
        self._acquire = acquire
        self._most = most
        self._rest = bytearray()
        self._lines: list[bytes] = []  # the next one last
        self._ended = False

    async def next(self) -> Buffer | bytes | None:
        """The next message; None at the end. MessageTooLargeError when there is none within ``most``."""
        if self._form == LINES:
            return await self._line()
        if self._form == AS_IT_COMES:
            return await read_some(self._fd, min(_READ, self._most)) or None
        if self._ended:
            return None
        if self._form == WHOLE:
            self._ended = True
            return await self._whole()
        return await self._piece(self._form)

    async def _line(self) -> bytes | None:
        while not self._lines and not self._ended:
            self._check(len(self._rest), "a line")
            data = await read_some(self._fd, _READ)
            self._ended = not data
            *lines, last = data.split(b"\n")
            if lines:
                lines[0] = bytes(self._rest) + lines[0]
                self._rest.clear()
                self._lines = [line + b"\n" for line in reversed(lines)]
            self._rest += last
            if self._ended and self._rest:
                self._lines = [bytes(self._rest)]
        if not self._lines:
            return None
        line = self._lines.pop()
        self._check(len(line), "a line")
        return line

    async def _whole(self) -> Buffer | bytes:
        status = os.fstat(self._fd)
        if stat.S_ISREG(status.st_mode) and _LEAST <= status.st_size <= _MOST:
            piece = await self._piece(status.st_size)
            return piece if piece is not None else b""
        content = bytearray()
        while data := await read_some(self._fd, _READ):
            content += data
            self._check(len(content), "the whole input")
        return bytes(content)

    async def _piece(self, size: int) -> Buffer | bytes | None:
        self._check(size, "a piece")
        buffer = await self._acquire(size) if _LEAST <= size <= _MOST else None
        if buffer is None:
            content = bytearray()
            while len(content) < size and (data := await read_some(self._fd, size - len(content))):
                content += data
            return bytes(content) or None
        filled = 0
        try:
            while filled < size and (count := await _read_into(self._fd, buffer, filled)):
                filled += count
            if filled == size:
                return buffer
            self._ended = True
            short = bytes(buffer.view[:filled])
        except BaseException:
            buffer.release()
            raise
        buffer.release()
        return short or None

    def _check(self, nbytes: int, what: str) -> None:
        if nbytes > self._most:
            raise MessageTooLargeError(
                f"{what} of {nbytes} bytes or more is over the topic's limit of {self._most} bytes: "
                "cut it by size (pub --chunk, serve --stdin-as), or have the server retain more (--retain, "
                "of which 64M count here)"
            )


async def _read_into(fd: int, buffer: Buffer, start: int) -> int:
    """As ``read_some``, into the buffer from ``start`` on; how many bytes."""
    with buffer.view[start:] as rest:
        if await ready(fd, select.EPOLLIN):
            return os.readv(fd, [rest])
        return await anyio.to_thread.run_sync(os.readv, fd, [rest])
