"""One file, or memory, to the server, where it appears whole under its name or not at all."""

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from zcserver.connection import Connection
from zcserver.context import MIB
from zcserver.errors import MisuseError, TransferError
from zcserver.file_protocol import ALGORITHM, PUT, hides_its_size, mtime_of, validator_of
from zcserver.pace import Pace
from zcserver.sending.completion import Completion
from zcserver.stream import Stream
from zcserver.views import as_bytes
from zcserver_protocol.errors import ErrorCode

from .descriptors import read_some
from .hashing import hash_file, hash_memory
from .progress import ChangedError, Progress, Transferred
from .request import finished, number, opened, reply_of

# Pieces take about a quarter of a second each: long beside a round trip, short for who watches progress.
_SECONDS: Final = 0.25
_PIECE_LEAST: Final = MIB
_PIECE_MOST: Final = 64 * MIB
# Bytes from which on a file is sent under a name by which an interrupted upload goes on.
_WORTH_RESUMING: Final = MIB
# O_NONBLOCK: opening a FIFO does not wait for a writer, and is refused below.
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
OpenFile = Callable[[Path, int], int]
_in_thread = anyio.to_thread.run_sync


class _Source:
    """What is sent: an open file, or memory."""

    def __init__(self, data: Any, open_file: OpenFile) -> None:
        self.target: Path | None = None
        self.mtime_ns: int | None = None
        self.resume: str | None = None
        self._fd = -1
        if isinstance(data, (str, os.PathLike)):
            self.target = Path(data)
            self._fd = open_file(self.target, _READ)
            status = os.fstat(self._fd)
            try:
                self._check_type(status)
            except OSError as error:
                self.close()
                raise OSError(error.errno, error.strerror, str(data)) from None
            self.size, self.mtime_ns = status.st_size, mtime_of(status)
            self._validator = validator_of(status)
            if self.size >= _WORTH_RESUMING:
                # (A file's mtime can be set back, the time of its inode cannot.)
                self.resume = f"{self._validator}-{status.st_dev}-{status.st_ctime_ns}"
        else:
            self._memory = as_bytes(data)
            self.size = len(self._memory)

    def _check_type(self, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            raise OSError(errno.EISDIR, "is a directory")
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no regular file: send it as standard input")
        if not status.st_size and hides_its_size(self._fd):  # (``check`` finds one that has grown)
            raise OSError(errno.EINVAL, "does not tell its size: send it as standard input")

    def digest(self) -> str:
        hasher = hashlib.new(ALGORITHM)
        if self._fd < 0:
            hash_memory(hasher, self._memory)
        else:
            hash_file(hasher, self._fd, self.size)
        return hasher.hexdigest()

    async def send(self, stream: Stream, position: int, nbytes: int) -> Completion:
        if self._fd < 0:
            return await stream.send(self._memory[position : position + nbytes])
        try:
            return await stream.send_file(self._fd, position, nbytes)
        except MisuseError:  # the file no longer has these bytes
            raise self._changed() from None

    def check(self) -> None:
        """ChangedError unless the file is what it was when it was opened."""
        if self._fd >= 0 and validator_of(os.fstat(self._fd)) != self._validator:
            raise self._changed()

    def _changed(self) -> ChangedError:
        return ChangedError(f"{self.target} was changed while it was sent: send it again")

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


async def upload(
    connection: Connection,
    pace: Pace,
    source: Any,
    path: str,
    *,
    mtime_ns: int | None,
    create: bool,
    validator: str | None,
    verify: bool,
    progress: Progress,
    expected: bool,
    open_file: OpenFile = os.open,
) -> Transferred:
    """Send ``source`` (a path, or memory) as the file ``path``. See :meth:`Client.put`.

    ``expected``: the progress knows of this file already. ``open_file`` opens the path, with these flags.
    An upload of the same file that was interrupted goes on where the server says that it ended.
    """
    begin = time.monotonic()
    file = await _in_thread(_Source, source, open_file)
    with contextlib.closing(file):
        if not expected:
            progress.expect(1, file.size)
        digest = await _in_thread(file.digest) if verify else None
        async with opened(
            connection,
            PUT,
            path,
            size=file.size,
            mtime_ns=file.mtime_ns if mtime_ns is None else mtime_ns,
            create=create or None,
            validator=validator,
            digest=digest,
            resume=file.resume,
        ) as stream:
            offset = number(await reply_of(stream), "offset", most=file.size)
            progress.started(path, file.size, offset)
            with _telling_failure(progress, path):
                await _send(stream, file, offset, path, pace, progress)
    progress.finished(path)
    return Transferred(path, file.target, file.size, offset, time.monotonic() - begin, digest or "")


async def _send(
    stream: Stream, file: _Source, position: int, path: str, pace: Pace, progress: Progress
) -> None:
    """The bytes, a look whether they still are the file's, the end; then the server's word for it."""
    piece = _PIECE_LEAST
    left = file.size - position
    under_way: tuple[Completion, int] | None = None
    began = anyio.current_time()
    while under_way is None or left:  # at least one message: there must be one to commit
        nbytes = min(piece, pace.piece, left)
        await pace.spend(nbytes)
        completion = await file.send(stream, position, nbytes)
        if under_way is not None:  # the next piece is queued: the socket need not wait for us
            await _gone(under_way, path, progress)
            now = anyio.current_time()
            piece = min(2 * piece, _PIECE_MOST) if now - began < _SECONDS else max(piece // 2, _PIECE_LEAST)
            began = now
        under_way = completion, nbytes
        position += nbytes
        left -= nbytes
    await _gone(under_way, path, progress)
    try:
        file.check()
    except ChangedError as error:
        stream.reset(ErrorCode.CHANGED, str(error))
        raise
    await _commit(stream, path)


async def upload_from(
    connection: Connection,
    pace: Pace,
    fd: int,
    path: str,
    *,
    mtime_ns: int | None,
    create: bool,
    validator: str | None,
    progress: Progress,
) -> Transferred:
    """Send what an open descriptor gives until its end as the file ``path``. See :meth:`Client.put`."""
    begin = time.monotonic()
    progress.expect(1, 0)
    async with opened(
        connection, PUT, path, size=-1, mtime_ns=mtime_ns, create=create or None, validator=validator
    ) as stream:
        await reply_of(stream)
        progress.started(path, 0, 0)
        nbytes = 0
        most = min(MIB, pace.piece)
        with _telling_failure(progress, path):
            with _while_open(stream, path):
                while (data := await read_some(fd, most)) or not nbytes:  # nothing at all is an empty message
                    await pace.spend(len(data))
                    await stream.send(data)
                    if not data:
                        break
                    nbytes += len(data)
                    progress.moved(path, len(data))
            await _commit(stream, path)
    progress.finished(path)
    return Transferred(path, None, nbytes, 0, time.monotonic() - begin, "")


@contextlib.contextmanager
def _while_open(stream: Stream, path: str) -> Iterator[None]:
    """Give up what is waited for inside, and raise what ended the stream, when that is over before."""
    with anyio.CancelScope() as scope:

        def look() -> None:
            if stream.is_over:
                scope.cancel()

        stream.on_change = look
        look()  # it may be over already
        try:
            yield
        finally:
            stream.on_change = lambda: None
    if scope.cancelled_caught:
        stream.check_open()
        raise _uncommitted(path)


async def _commit(stream: Stream, path: str) -> None:
    await stream.end()
    await finished(stream)
    if stream.committed < 1:
        raise _uncommitted(path)


def _uncommitted(path: str) -> TransferError:
    return TransferError(f"the server ended the upload of {path} without committing it: send it again")


async def _gone(piece: tuple[Completion, int], path: str, progress: Progress) -> None:
    completion, nbytes = piece
    await completion
    progress.moved(path, nbytes)


@contextlib.contextmanager
def _telling_failure(progress: Progress, path: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        progress.failed(path)
        raise
