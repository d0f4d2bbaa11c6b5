"""The counterpart of ``loop.sendfile``: from the page cache to the peer, never through user memory."""

import asyncio
import io
import os
import stat
from typing import Any, Final

from zcserver.errors import StreamResetError

from .transport import ZeroCopyTransport, as_lost

_CHUNK: Final = 256 * 1024


async def sendfile(
    transport: ZeroCopyTransport,
    file: Any,
    offset: int = 0,
    count: int | None = None,
    *,
    fallback: bool = True,
) -> int:
    """As ``loop.sendfile``: send ``count`` bytes of a file opened in binary mode from ``offset`` on.

    Returns the bytes sent once the *peer* has acknowledged them, and leaves the file positioned behind them
    (behind those that were put on the way, when it fails). Cancelling ends the waiting; only ``abort`` stops
    it. What is no regular file is read in a thread and written, or refused with ``fallback=False``
    (SendfileNotAvailableError). The file must not be written to meanwhile; one that becomes shorter breaks
    the byte stream off (StreamLostError).
    """
    _check(file, offset, count)
    if transport.is_closing():
        raise RuntimeError("Transport is closing")
    try:
        fd = file.fileno()
        information = os.fstat(fd)
        regular = stat.S_ISREG(information.st_mode)
    except (AttributeError, io.UnsupportedOperation):
        regular = False
    if not regular:
        if not fallback:
            raise asyncio.SendfileNotAvailableError("not a regular file")
        return await _copy(transport, file, offset, count)
    left = max(0, information.st_size - offset)
    nbytes = left if count is None else min(count, left)
    if nbytes:
        outgoing = transport.send_file(fd, offset, nbytes)
        try:
            await outgoing
        except StreamResetError as error:
            raise as_lost(error) from error
        finally:
            file.seek(offset + (nbytes if outgoing.error is None else outgoing.framed))
    return nbytes


async def _copy(transport: ZeroCopyTransport, file: Any, offset: int, count: int | None) -> int:
    loop = asyncio.get_running_loop()
    if offset:
        file.seek(offset)
    sent = 0
    while count is None or sent < count:
        size = _CHUNK if count is None else min(_CHUNK, count - sent)
        data = await loop.run_in_executor(None, file.read, size)
        if not data:
            break
        await transport.send(bytes(data))
        sent += len(data)
    return sent


def _check(file: Any, offset: int, count: int | None) -> None:
    if "b" not in getattr(file, "mode", "b"):
        raise ValueError("file should be opened in binary mode")
    if not isinstance(offset, int):
        raise TypeError(f"offset must be a non-negative integer (got {offset!r})")
    if offset < 0:
        raise ValueError(f"offset must be a non-negative integer (got {offset!r})")
    if count is not None:
        if not isinstance(count, int):
            raise TypeError(f"count must be a positive integer (got {count!r})")
        if count <= 0:
            raise ValueError(f"count must be a positive integer (got {count!r})")
