"""One file from the server: into a file, a descriptor or the caller's memory."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import msgspec

from zcserver.connection import Connection
from zcserver.context import MIB
from zcserver.errors import MisuseError, StreamResetError
from zcserver.file_protocol import ALGORITHM, DIGEST, GET
from zcserver.pace import Pace
from zcserver.stream import Stream
from zcserver_protocol.errors import ErrorCode

from .descriptors import Write
from .partial import Beginning, Origin, PartialFile
from .progress import ChangedError, Progress, Transferred, VerificationError
from .request import modified, number, reply_of, request, text
from .storing import Storing

BATCH: Final = 2 * MIB  # written per thread hop, which costs 0.1 ms; more would leave the processor's cache
_BATCH_PIECES: Final = 512  # of one pwritev, which takes at most 1024
_TRAILER_MOST: Final = 4096
_UNLIMITED: Final = Pace(0)
_in_thread = anyio.to_thread.run_sync


class _Trailer(msgspec.Struct):
    """What comes behind the bytes of a stable GET."""

    algorithm: str
    digest: str
    changed: bool


class Download:
    """One file on its way to disk. ``partial`` has been asked what an earlier try left: ``beginning``.

    Downloads that run side by side share their ``storing``. ``stable``: the server tells the digest of what
    it sends, which ``partial`` must compute, too; there is no ``beginning`` then.
    """

    def __init__(
        self,
        connection: Connection,
        pace: Pace,
        path: str,
        partial: PartialFile,
        beginning: Beginning | None,
        verify: bool,
        progress: Progress,
        storing: Storing | None = None,
        stable: bool = False,
    ) -> None:
        self._stable = stable
        self._storing = storing or Storing()
        self._connection = connection
        self._pace = pace
        self._path = path
        self._partial = partial
        self._beginning = beginning
        self._verify = verify
        self._progress = progress

    async def run(self, expected: bool) -> Transferred:
        """Fetch it. ``expected``: the progress knows of this file already."""
        begin = time.monotonic()
        have = self._beginning.nbytes if self._beginning is not None else 0
        async with contextlib.AsyncExitStack() as streams:
            get = await streams.enter_async_context(self._request(have))
            hashed: Stream | None = None
            if self._verify:
                digest = request(self._connection, DIGEST, self._path)
                hashed = await streams.enter_async_context(digest)
            reply = await self._reply(get)
            origin = Origin(self._path, text(reply, "validator"), number(reply, "size"))
            if not expected:
                self._progress.expect(1, origin.size)
            self._progress.started(self._path, origin.size, have)
            try:
                changed = await self._land(get, origin, have, hashed, modified(reply))
            except BaseException as error:
                self._progress.failed(self._path)
                with anyio.CancelScope(shield=True):
                    await _in_thread(self._partial.discard if _worthless(error) else self._partial.keep)
                raise
        self._progress.finished(self._path)
        seconds = time.monotonic() - begin
        partial = self._partial
        return Transferred(self._path, partial.target, origin.size, have, seconds, partial.digest, changed)

    def _request(self, have: int) -> contextlib.AbstractAsyncContextManager[Stream]:
        if self._beginning is None:
            return request(self._connection, GET, self._path, stable=self._stable or None)
        validator = self._beginning.origin.validator
        return request(self._connection, GET, self._path, offset=have, validator=validator)

    async def _reply(self, get: Stream) -> dict[str, Any]:
        try:
            return await reply_of(get)
        except StreamResetError as error:
            if self._beginning is None or error.code != ErrorCode.CHANGED:
                raise
            origin = self._beginning.origin
            what = "it has changed there"
            if origin.path != self._path:
                what = f"they are of {origin.path}, or that has changed there"
            raise ChangedError(
                f"the first {self._beginning.nbytes} bytes of {self._path} were fetched earlier, but {what}: "
                f"begin anew with --restart"
            ) from error

    async def _land(
        self, get: Stream, origin: Origin, have: int, hashed: Stream | None, mtime_ns: int
    ) -> bool:
        """The bytes under their final name; whether the file was changed meanwhile (only if ``stable``)."""
        partial = self._partial
        if self._stable:
            return await self._land_stable(get, origin, mtime_ns)
        if have or origin.size > BATCH or self._pace.limits:
            await _in_thread(partial.open, origin, have)
            await pour(get, origin.size - have, self._write, self._pace, self._moved)
        else:
            pieces: list[memoryview] = []

            async def keep(batch: list[memoryview]) -> None:
                # Each piece costs 200 bytes besides its own, which may be a single one.
                pieces.extend(batch if len(batch) < _BATCH_PIECES else [memoryview(b"".join(batch))])

            await pour(get, origin.size, keep, self._pace, self._moved)
            if hashed is None:
                await self._storing.store(partial, pieces, mtime_ns)
                return False
            await _in_thread(partial.open, None)
            await _in_thread(partial.write, pieces)
        if hashed is not None:
            self._compare(origin, await reply_of(hashed))
        await _in_thread(partial.commit, mtime_ns)
        return False

    async def _land_stable(self, get: Stream, origin: Origin, mtime_ns: int) -> bool:
        partial = self._partial
        await _in_thread(partial.open, None)
        trailer = bytearray()
        await pour(get, origin.size, self._write, self._pace, self._moved, trailer=trailer)
        try:
            told = msgspec.json.decode(trailer, type=_Trailer)
        except msgspec.DecodeError:
            raise VerificationError(
                f"{self._path}: no digest came behind the bytes: fetch it again"
            ) from None
        if (told.algorithm, told.digest) != (ALGORITHM, partial.digest):
            raise self._mismatch()
        await _in_thread(partial.commit, mtime_ns)
        return told.changed

    async def _write(self, pieces: list[memoryview]) -> None:
        await _in_thread(self._partial.write, pieces)

    def _moved(self, nbytes: int) -> None:
        self._progress.moved(self._path, nbytes)

    def _compare(self, origin: Origin, reply: dict[str, Any]) -> None:
        if text(reply, "validator") != origin.validator:
            raise VerificationError(
                f"{self._path} was changed on the server between sending and hashing: fetch it again"
            )
        if text(reply, "algorithm") != ALGORITHM or text(reply, "digest") != self._partial.digest:
            raise self._mismatch()

    def _mismatch(self) -> VerificationError:
        return VerificationError(
            f"{self._path}: the SHA-256 of what arrived is not the server's: fetch it again"
        )


def _worthless(error: BaseException) -> bool:
    """Whether what has come cannot be the beginning of what would come next time."""
    return isinstance(error, VerificationError) or (
        isinstance(error, StreamResetError) and error.code == ErrorCode.CHANGED
    )


async def pour(
    stream: Stream,
    size: int,
    write: Write,
    pace: Pace,
    moved: Callable[[int], object],
    trailer: bytearray | None = None,
) -> None:
    """Hand on what arrives, a batch at a time; the connection goes on receiving meanwhile.

    Returns after the stream's end, which vouches for the bytes. VerificationError unless there were
    exactly ``size``; what comes behind them goes to the ``trailer`` if there is one. The ``pace`` is asked
    before bytes are taken, since the peer may send as many more then.
    """
    batch: list[memoryview] = []
    batched = arrived = paid = 0
    enough = min(BATCH, pace.piece)

    async def pay() -> None:
        """For what has come, and what is to come next."""
        nonlocal paid
        due = min(size, arrived + enough) - paid
        if due:  # (nothing would wait for what others owe)
            paid += due
            await pace.spend(due)

    await pay()
    async with contextlib.aclosing(stream.chunks()) as chunks:
        async for piece in chunks:
            if trailer is not None and len(piece) > size - arrived:
                trailer += piece[size - arrived :]
                piece = piece[: size - arrived]
                if len(trailer) > _TRAILER_MOST:
                    break
            if not piece:
                continue
            batch.append(piece)
            batched += len(piece)
            arrived += len(piece)
            moved(len(piece))
            if arrived > size:
                break
            if batched >= enough or len(batch) >= _BATCH_PIECES:
                await write(batch)
                batch = []
                batched = 0
                await pay()
    if arrived != size:
        raise VerificationError(f"{stream.path}: {arrived} bytes came, {size} were announced: fetch it again")
    if batch:
        await write(batch)
        await pay()


def bytes_of(memory: Any) -> memoryview:
    """Writable, contiguous memory (bytearray, numpy array, mmap) as bytes; MisuseError for any other."""
    try:
        view = memoryview(memory)
        if view.readonly:
            raise MisuseError("this memory is read-only: give a bytearray, a writable array or mapping")
        return view.cast("B") if view.nbytes else memoryview(bytearray())
    except (TypeError, ValueError) as error:  # (ValueError: numpy's dates, for one)
        raise MisuseError(f"cannot read into {type(memory).__name__}: {error}") from None


async def fill(stream: Stream, sink: memoryview, pace: Pace) -> int:
    """Land the stream's next bytes in ``sink``, whatever the messages; fewer only when the stream ends."""
    filled = paid = 0
    while filled < len(sink):
        if filled == paid:
            paid = min(len(sink), filled + pace.piece)
            await pace.spend(paid - filled)
        try:
            filled += await stream.receive_into(sink[filled:paid])
        except anyio.EndOfStream:
            break
    return filled


async def expect_end(stream: Stream) -> None:
    """All bytes have come; the stream's end vouches for them. VerificationError if there are more."""
    if await fill(stream, memoryview(bytearray(1)), _UNLIMITED):
        raise VerificationError(f"{stream.path}: more bytes came than were announced: fetch it again")


def beginning_of(target: Path, verify: bool, restart: bool) -> tuple[PartialFile, Beginning | None]:
    """What a download to ``target`` needs to begin. Blocks: call it in a thread."""
    partial = PartialFile(target, hashing=verify)
    beginning = partial.find()
    return partial, None if restart else beginning
