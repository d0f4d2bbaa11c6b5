"""PUT, MKDIR, RENAME and REMOVE, for servers started writable. Whatever touches the disk runs in a thread.

An upload reaches its name whole or not at all: COMMIT is sent after content, name and directory would
survive a power cut (``staging``). One that is interrupted can go on later (``interrupted``).
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Final

import anyio
import anyio.to_thread

from zcserver.errors import StreamResetError
from zcserver.file_protocol import MISMATCH, NO_SPACE
from zcserver.pace import Pace
from zcserver.stream import Stream
from zcserver_protocol.control import MIN_INTEGER
from zcserver_protocol.errors import ErrorCode

from . import arguments, editing
from .access import Request
from .disk import Disk
from .interrupted import InterruptedUploads
from .paths import Root
from .refusals import shown
from .roots import Roots
from .staging import Staging, Upload, Wanted

_BATCH: Final = 2 << 20  # bytes written per thread hop: the hop costs 0.1 ms
_BATCH_PIECES: Final = 512  # pwritev takes at most 1024
_WRITERS: Final = 16


class Writer:
    """The methods that change something. Close it at the end.

    Making it empties the roots' staging directories; raises OSError when one cannot be made or used.
    """

    def __init__(self, roots: Roots, served: Sequence[Root], disk: Disk) -> None:
        self._roots = roots
        self._disk = disk
        self._interrupted = InterruptedUploads()
        # A disk that is slow to sync must not take the threads that open files for reading.
        self._writers = anyio.CapacityLimiter(_WRITERS)
        with contextlib.ExitStack() as opened:
            self._staging: dict[Root, Staging] = {}
            for root in served:
                self._staging[root] = staging = Staging(root, disk)
                opened.callback(staging.close)
            self._opened = opened.pop_all()

    def close(self) -> None:
        for upload in self._interrupted.clear():
            upload.discard()
        self._opened.close()

    async def put(self, stream: Stream, request: Request, pace: Pace) -> None:
        wanted = Wanted(
            stream.path,
            await self._announced(stream),
            arguments.number(stream, "mtime_ns", MIN_INTEGER),
            arguments.text(stream, "validator"),
            arguments.flag(stream, "create"),
            arguments.text(stream, "digest"),
            arguments.text(stream, "resume"),
        )
        root = self._roots.find(stream.path, new=True)
        async with self._interrupted.turn(wanted, stream):
            await self._discard(self._interrupted.surplus())
            upload = self._interrupted.take(wanted) or Upload(root, self._staging[root], wanted)
            refusal: StreamResetError | None = None
            try:
                await self._begin(upload)
                await stream.reply(offset=upload.written)
                await self._receive(stream, upload, request, pace)
                await self._in_thread(upload.commit)
            except StreamResetError as error:
                refusal = error
                raise
            finally:
                await self._put_away(upload, stream, refusal)
        await stream.commit(1)
        await stream.end()

    async def _begin(self, upload: Upload) -> None:
        """If the disk is too full, what was kept for others makes room, should that be enough."""
        try:
            await self._in_thread(upload.begin)
        except StreamResetError as error:
            if error.code != NO_SPACE or upload.shortfall > self._interrupted.nbytes:
                raise
            await self._discard(self._interrupted.clear())
            await self._in_thread(upload.begin)

    async def _put_away(self, upload: Upload, stream: Stream, refusal: StreamResetError | None) -> None:
        """Keep one that was interrupted, for which another may have to go; nothing is left of any other."""
        if _to_be_kept(upload, stream.failed, refusal):
            self._interrupted.keep(upload)
            await self._discard(self._interrupted.surplus())
        elif refusal is not None and refusal.code == NO_SPACE and not upload.shortfall:  # for the next try
            await self._discard([upload, *self._interrupted.clear()])
        else:
            await self._discard([upload])

    async def _discard(self, uploads: list[Upload]) -> None:
        with anyio.CancelScope(shield=True):
            for upload in uploads:
                await self._in_thread(upload.discard)

    async def _in_thread(self, work: Callable[[], None]) -> None:
        await anyio.to_thread.run_sync(work, limiter=self._writers)

    async def _announced(self, stream: Stream) -> int | None:
        """The size that was announced in bytes, None for −1."""
        size = arguments.number(stream, "size", -1)
        if size is None:
            raise StreamResetError(ErrorCode.REFUSED, "PUT: the argument 'size' is missing")
        return size if size >= 0 else None

    async def _receive(self, stream: Stream, upload: Upload, request: Request, pace: Pace) -> None:
        """Write what arrives, a batch per thread hop; the connection goes on receiving meanwhile."""
        size, before = upload.wanted.size, upload.written
        batch: list[memoryview] = []
        enough = min(_BATCH, pace.piece)
        batched = 0
        pieces = 0
        async with contextlib.aclosing(stream.chunks()) as chunks:
            async for piece in chunks:
                pieces += 1
                batch.append(piece)
                batched += len(piece)
                request.nbytes += len(piece)
                if size is not None and before + request.nbytes > size:
                    reason = f"{shown(stream.path)}: more bytes came than the {size} announced"
                    raise StreamResetError(MISMATCH, reason)
                if batched >= enough or len(batch) >= _BATCH_PIECES:
                    await anyio.to_thread.run_sync(upload.write, batch, limiter=self._writers)
                    await pace.spend(batched)
                    batched = 0
        if not pieces:
            raise StreamResetError(ErrorCode.REFUSED, "PUT: no message came, not even an empty one")
        await anyio.to_thread.run_sync(upload.write, batch, limiter=self._writers)
        await pace.spend(batched)

    async def mkdir(self, stream: Stream, request: Request, pace: Pace) -> None:
        parents = arguments.flag(stream, "parents")
        mtime_ns = arguments.number(stream, "mtime_ns", MIN_INTEGER)
        root = self._roots.find(stream.path, new=True)
        created = await anyio.to_thread.run_sync(
            editing.make_directory, root, self._disk, stream.path, parents, mtime_ns, limiter=self._writers
        )
        await stream.reply(created=created)
        await stream.end()

    async def rename(self, stream: Stream, request: Request, pace: Pace) -> None:
        to = arguments.text(stream, "to")
        replace = arguments.flag(stream, "replace")
        if to is None:
            raise StreamResetError(ErrorCode.REFUSED, "RENAME: the argument 'to' is missing")
        request.to = to
        root = self._roots.find(stream.path)
        if self._roots.find(to, new=True) is not root:
            reason = f"{shown(to)} is in another served directory than {shown(stream.path)}: copy it instead"
            raise StreamResetError(ErrorCode.REFUSED, reason)
        await anyio.to_thread.run_sync(
            editing.rename, root, self._staging[root], stream.path, to, replace, limiter=self._writers
        )
        await stream.reply()
        await stream.end()

    async def remove(self, stream: Stream, request: Request, pace: Pace) -> None:
        recursive = arguments.flag(stream, "recursive")
        root = self._roots.find(stream.path)
        removed = await anyio.to_thread.run_sync(
            editing.remove, root, self._disk, stream.path, recursive, limiter=self._writers
        )
        await stream.reply(removed=removed)
        await stream.end()


def _to_be_kept(upload: Upload, error: BaseException | None, refusal: StreamResetError | None) -> bool:
    """Whether it was interrupted, and by something else than a change of the client's file.

    ``error`` is that of its stream, ``refusal`` this server's word: but for a limit, it would say so again.
    """
    if upload.wanted.resume is None or not upload.unfinished:
        return False
    if error is None:
        return refusal is not None and refusal.code == ErrorCode.LIMIT
    return not (isinstance(error, StreamResetError) and error.code == ErrorCode.CHANGED)
