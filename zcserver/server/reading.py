"""STAT, LIST, GET and DIGEST. Whatever touches the disk runs in a thread.

The bytes of a file go from the page cache to the socket. A file is never vouched for before its last byte
is acknowledged and it has been looked at once more; ``stable`` reads it into memory instead, and tells the
digest of exactly what was sent.
"""

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, TypeVar, TypeVarTuple

import anyio
import anyio.to_thread
import msgspec

from zcserver.errors import MisuseError, StreamResetError
from zcserver.file_protocol import ALGORITHM, entry_of
from zcserver.pace import Pace
from zcserver.sending.completion import Completion
from zcserver.stream import Stream
from zcserver_protocol.errors import ErrorCode

from . import arguments
from .access import Request
from .digest import Digest
from .listing import Listing
from .paths import NotCachedError, OpenFile
from .refusals import changed, refusals, shown
from .roots import Roots
from .turns import DIGESTS, LISTINGS, Turns

_PIECE: Final = 1 << 20  # read and hashed at once
_HASHED_AT_ONCE: Final = 32 << 20  # of a DIGEST, before others have their turn
# Up to here, reading a file at its opening and looked at again at once costs less than a pipe and the wait
# for the acknowledgement of its last byte.
_SMALL: Final = 64 << 10
_THREADS: Final = 32  # for each root: a slow disk keeps only its own requests waiting
_LISTERS: Final = 8  # of them besides, since they keep a processor busy
_LISTINGS: Final = 256  # held at once for all connections together
_encode: Final = msgspec.json.Encoder().encode
Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class _Wanted(NamedTuple):
    """What a GET asks for. Up to ``small`` bytes are read at once."""

    path: str
    validator: str | None
    offset: int
    length: int | None
    small: int


class Reader:
    """The methods that change nothing, each a coroutine of the stream and its line in the access log."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        self._threads = {root: anyio.CapacityLimiter(_THREADS) for root in roots.in_order()}
        self._listers = {root: anyio.CapacityLimiter(_LISTERS) for root in (None, *roots.in_order())}
        self._listings = 0
        self._turns_to_list = Turns(LISTINGS)
        # Digests keep a processor busy each: they must not take the threads that open files.
        self._turns_to_digest = Turns(DIGESTS)
        self._hashers = anyio.CapacityLimiter(max(1, len(os.sched_getaffinity(0))))

    async def _in_thread(
        self, path: str, work: Callable[[*Arguments], Result], *arguments: *Arguments
    ) -> Result:
        """Run what may wait for the disk of ``path``; StreamResetError when it is in no root."""
        limiter = None if self._roots.is_top(path) else self._threads[self._roots.find(path)]
        return await anyio.to_thread.run_sync(work, *arguments, limiter=limiter)

    async def stat(self, stream: Stream, request: Request, pace: Pace) -> None:
        reply = await self._in_thread(stream.path, self._stat, stream.path)
        await stream.reply(**reply)
        await stream.end()

    def _stat(self, path: str) -> dict[str, Any]:
        if self._roots.is_top(path):
            return {"type": "directory", "size": 0, "mtime_ns": 0, "validator": ""}
        root = self._roots.find(path)
        relative = root.relative(path)
        with refusals(path):
            status = root.stat(relative)
            if path.endswith("/") and not stat.S_ISDIR(status.st_mode):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        entry = entry_of(b"", status)
        return {
            "type": entry.type,
            "size": entry.size,
            "mtime_ns": entry.mtime_ns,
            "validator": entry.validator,
        }

    async def list(self, stream: Stream, request: Request, pace: Pace) -> None:
        path = stream.path
        listing = Listing(self._roots, path, arguments.flag(stream, "recursive"))
        limiter = self._listers[None if self._roots.is_top(path) else self._roots.find(path)]
        async with self._turns_to_list.of(stream):
            with self._held_listing(path):
                await self._send_pages(listing, limiter, stream, request, pace)

    @staticmethod
    async def _send_pages(
        listing: Listing, limiter: anyio.CapacityLimiter, stream: Stream, request: Request, pace: Pace
    ) -> None:
        more = True
        while more:
            page = await anyio.to_thread.run_sync(listing.next_page, limiter=limiter)
            encoded = _encode(page)
            await pace.spend(len(encoded))
            more = page.more
            last = await stream.send(encoded, end=not more)
            request.nbytes += len(encoded)
            if more:  # (the first page brings the REPLY, for which the peer may wait before it grants credit)
                await stream.wait_for_demand()
        await last

    @contextlib.contextmanager
    def _held_listing(self, path: str) -> Iterator[None]:
        if self._listings >= _LISTINGS:
            words = f"the server has {_LISTINGS} listings under way, which is the most: try again later"
            raise StreamResetError(ErrorCode.LIMIT, f"{shown(path)}: {words}")
        self._listings += 1
        try:
            yield
        finally:
            self._listings -= 1

    async def get(self, stream: Stream, request: Request, pace: Pace) -> None:
        offset = arguments.number(stream, "offset") or 0
        length = arguments.number(stream, "length")
        stable = arguments.flag(stream, "stable")
        wanted = _Wanted(
            stream.path,
            arguments.text(stream, "validator"),
            offset,
            length,
            -1 if stable else min(_SMALL, pace.piece, stream.credit),
        )
        try:
            file, due, content = self._begin(wanted, cached=True)
        except NotCachedError:
            file, due, content = await self._in_thread(stream.path, self._begin, wanted)
        try:
            if content is not None:
                await pace.spend(due)
            await stream.reply(
                size=file.size, mtime_ns=file.mtime_ns, validator=file.validator, offset=offset, length=due
            )
            if content is not None:
                request.lane = "copy"
                await stream.send(content, end=True)
                request.nbytes += due
                return
            send = self._send_read if stable else self._send_cached
            await send(stream, file, _pieces(offset, due, pace.piece), request, pace)
        finally:
            file.close()
        await stream.end()

    def _begin(self, wanted: _Wanted, cached: bool = False) -> tuple[OpenFile, int, bytes | bytearray | None]:
        """The open file, how many bytes of it are to be sent and, if they are few, these bytes of one state.

        ``cached``: NotCachedError if the disk is needed.
        """
        path, offset = wanted.path, wanted.offset
        file = self._open(path, wanted.validator, cached)
        try:
            if offset > file.size:
                reason = f"{shown(path)} has {file.size} bytes: none from {offset} on"
                raise StreamResetError(ErrorCode.REFUSED, reason)
            left = file.size - offset
            length = left if wanted.length is None else min(wanted.length, left)
            if length > wanted.small:
                return file, length, None
            with refusals(path):
                content = file.read(offset, length, cached)
            # (Another file of that name by now makes no difference: these are the bytes of the one it had.)
            if len(content) != length or file.rewritten():
                raise changed(path)
        except BaseException:
            file.close()
            raise
        file.close()
        return file, length, content

    def _open(self, path: str, validator: str | None, cached: bool = False) -> OpenFile:
        file = self._roots.find(path).open_file(path, cached)
        if validator is not None and file.validator != validator:
            file.close()
            raise changed(path, "was changed since: fetch it anew")
        return file

    async def _unchanged(self, path: str, file: OpenFile) -> bool:
        try:
            return file.unchanged(cached=True)
        except NotCachedError:
            return await self._in_thread(path, file.unchanged)

    async def _send_cached(
        self,
        stream: Stream,
        file: OpenFile,
        pieces: Iterator[tuple[int, int]],
        request: Request,
        pace: Pace,
    ) -> None:
        request.lane = "file" if stream.connection.context.splices_files else "copy"
        completion: Completion | None = None
        for offset, count in pieces:
            await stream.wait_for_demand()  # a piece that waits holds a descriptor
            await pace.spend(count)
            try:
                with refusals(stream.path):
                    completion = await stream.send_file(file.fd, offset, count)
            except MisuseError as error:  # it has become shorter since it was announced
                raise changed(stream.path) from error
            request.nbytes += count
        file.close()  # (the stream has a descriptor of its own, until the last byte is read)
        if completion is not None:
            await completion
        if not await self._unchanged(stream.path, file):
            raise changed(stream.path)

    async def _send_read(
        self,
        stream: Stream,
        file: OpenFile,
        pieces: Iterator[tuple[int, int]],
        request: Request,
        pace: Pace,
    ) -> None:
        request.lane = "copy"
        hasher = hashlib.new(ALGORITHM)
        for offset, count in pieces:
            end = offset + count
            while offset < end:
                count = min(_PIECE, end - offset)
                await pace.spend(count)
                await stream.wait_for_demand()
                data = await self._in_thread(
                    stream.path, self._read_hashed, file.fd, count, offset, hasher, stream.path
                )
                if not data:
                    raise changed(stream.path, "became shorter while it was read: fetch it again")
                await stream.send(data)
                offset += len(data)
                request.nbytes += len(data)
        now_changed = not await self._unchanged(stream.path, file)
        trailer = {"algorithm": ALGORITHM, "digest": hasher.hexdigest(), "changed": now_changed}
        await stream.send(_encode(trailer))

    @staticmethod
    def _read_hashed(fd: int, count: int, offset: int, hasher: Any, path: str) -> bytes:
        with refusals(path):
            data = os.pread(fd, count, offset)
        hasher.update(data)
        return data

    async def digest(self, stream: Stream, request: Request, pace: Pace) -> None:
        validator = arguments.text(stream, "validator")
        part = min(_HASHED_AT_ONCE, pace.piece)
        async with self._turns_to_digest.of(stream):
            digest = Digest(stream.path, lambda: self._open(stream.path, validator))
            try:
                while not digest.whole:
                    await pace.spend(
                        await anyio.to_thread.run_sync(digest.proceed, part, limiter=self._hashers)
                    )
            finally:
                digest.close()
        await stream.reply(**digest.as_reply())
        await stream.end()


def _pieces(offset: int, length: int, most: int) -> Iterator[tuple[int, int]]:
    """(offset, bytes) of each piece; one empty piece of nothing."""
    end = offset + length
    yield offset, min(most, length)
    for start in range(offset + most, end, most):
        yield start, min(most, end - start)
