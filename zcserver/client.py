"""Fetching from a file server: one file, a listing, a whole tree, over one connection.

async with open_client(parse_url("zc://host/data.bin")) as client:
    await client.fetch("/data.bin", Path("data.bin"))
"""

import contextlib
import errno
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import anyio
import anyio.to_thread
import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from zcserver_protocol.errors import ErrorCode

from .connection import DEFAULT_PORT, Connection
from .context import MIB, Context
from .endpoints import connect
from .errors import ConnectionLostError, MisuseError, TransferError
from .file_protocol import ALGORITHM, DIGEST, GET, LIST, Entry, Page, escape_undecodable, unescape
from .partial import PartialFile
from .stream import Stream

_BATCH: Final = 4 * MIB  # written per thread hop: the hop costs 0.1 ms
_BATCH_PIECES: Final = 512  # pwritev takes at most 1024
_FILES_AT_ONCE: Final = 8
_URL: Final = re.compile(r"zc://(\[[0-9a-fA-F:.%]+\]|[^/:\[\]]+)(?::([0-9]{1,5}))?(/.*)?", re.DOTALL)
# One such failure and every other file would fail too.
_HOPELESS: Final = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE}
_decode_page: Final = msgspec.json.Decoder(Page).decode
_in_thread = anyio.to_thread.run_sync


class UrlError(MisuseError, ValueError):
    """The URL is not of the form ``zc://host[:port]/path``."""


class VerificationError(TransferError):
    """What arrived is not what the server says it has; the file was not kept."""


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed URL; ``path`` begins with a slash and keeps its ``%`` escapes."""

    host: str
    port: int
    path: str


def parse_url(url: str) -> Address:
    """Read ``zc://host[:port]/path``. Only ``%`` is special in the path: write ``%25`` for it."""
    match = _URL.fullmatch(url)
    if match is None or not 0 < int(match[2] or DEFAULT_PORT) < 65536:
        raise UrlError(f"{url!r} is not of the form zc://host[:port]/path, such as zc://127.0.0.1/data.bin")
    return Address(
        match[1].strip("[]"), int(match[2] or DEFAULT_PORT), escape_undecodable(match[3] or "/")
    )  # fmt: skip


class Progress:
    """What a transfer tells while it runs. Override what you want to show; called in the event loop."""

    def expect(self, files: int, nbytes: int) -> None:
        """So many more files and bytes are to come."""

    def received(self, nbytes: int) -> None:
        """So many more bytes have arrived."""

    def finished(self, path: str) -> None:
        """This file is complete under its name."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """One file that is complete. ``digest`` is its SHA-256 in hexadecimal, empty if not verified."""

    path: str
    target: Path
    nbytes: int
    seconds: float
    digest: str


@dataclass(slots=True)
class FetchedTree:
    """What became of a tree: the numbers of what was fetched, links and specials left out, and failures."""

    files: int = 0
    nbytes: int = 0
    skipped: list[str] = field(default_factory=list)
    failures: list[tuple[str, TransferError | OSError]] = field(default_factory=list)


@contextlib.asynccontextmanager
async def open_client(address: Address, *, context: Context | None = None) -> AsyncIterator["Client"]:
    """Connect to the file server at ``address``. Raises as :func:`zcserver.connect` does."""
    async with connect(address.host, address.port, context=context) as connection:
        yield Client(connection)


def receiving_context(**settings: Any) -> Context:
    """A context for a client that only fetches: little to send, and room for a batch beside its successor."""
    return Context(pool_size=4 * MIB, stream_window=2 * _BATCH, **settings)


class Client:
    """The operations of a file server as coroutines. Any number may run at once on one connection.

    All raise StreamResetError when the server refuses (see ``code`` and ``reason``), ConnectionLostError
    when it goes away, and OSError for trouble with local files.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def fetch(
        self,
        path: str,
        target: Path,
        *,
        verify: bool = True,
        progress: Progress | None = None,
        expected: bool = False,
    ) -> Fetched:
        """Fetch one file. It appears as ``target`` when it is complete and right, or not at all.

        ``verify`` compares its SHA-256 with the server's, which reads the file once more for that.
        ``expected``: ``progress`` knows of this file already. Raises VerificationError when length, digest
        or identity of the file are not as announced.
        """
        progress = progress or Progress()
        begin = time.monotonic()
        async with contextlib.AsyncExitStack() as streams:
            stream = await self._request(streams, GET, path)
            hashed = await self._request(streams, DIGEST, path) if verify else None
            reply = await _reply(stream)
            size, validator = _number(reply, "size"), _text(reply, "validator")
            if not expected:
                progress.expect(1, size)
            partial = PartialFile(target, hashing=verify)
            try:
                await _land(stream, partial, size, progress)
                if hashed is not None:
                    _compare(path, partial, validator, await _reply(hashed))
                await _in_thread(partial.commit, _number(reply, "mtime_ns", least=-(2**63)))
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await _in_thread(partial.discard)
                raise
        progress.finished(path)
        return Fetched(path, partial.target, size, time.monotonic() - begin, partial.digest)

    async def digest(self, path: str) -> str:
        """The SHA-256 of a file, computed by the server, in hexadecimal."""
        async with contextlib.AsyncExitStack() as streams:
            stream = await self._request(streams, DIGEST, path)
            return _text(await _reply(stream), "digest")

    async def list(self, path: str, recursive: bool = False) -> AsyncGenerator[Entry, None]:
        """The entries of a directory, sorted; recursive: each directory is followed by its content."""
        async with contextlib.AsyncExitStack() as streams:
            stream = await self._request(streams, LIST, path, recursive=recursive)
            more = True
            async for message in stream:
                page = _page(message.data)
                more = page.more
                for entry in page.entries:
                    yield entry
            if more:
                raise TransferError(f"the listing of {path} was cut off: the server ended it early")

    async def fetch_tree(
        self, path: str, target: Path, *, verify: bool = True, progress: Progress | None = None
    ) -> FetchedTree:
        """Fetch a directory with all that is in it into ``target``, a few files at once.

        A file that fails is noted in ``failures`` and the others go on, unless no other could succeed.
        """
        progress = progress or Progress()
        tree = FetchedTree()
        remote = path.rstrip("/")

        async def fetch_each(entries: MemoryObjectReceiveStream[Entry]) -> None:
            async for entry in entries:
                name = f"{remote}/{entry.path}"
                with _noting(tree, name, tasks.cancel_scope):
                    local = target / local_path(entry.path)
                    done = await self.fetch(name, local, verify=verify, progress=progress, expected=True)
                    tree.files += 1
                    tree.nbytes += done.nbytes

        async def find_all(sender: MemoryObjectSendStream[Entry]) -> None:
            async with sender, contextlib.aclosing(self.list(path, recursive=True)) as entries:
                async for entry in entries:
                    name = f"{remote}/{entry.path}"
                    with _noting(tree, name, tasks.cancel_scope):
                        if await _in_thread(_prepare, entry, name, target, tree):
                            progress.expect(1, entry.size)
                            await sender.send(entry)
            await _in_thread(_make_folder, target)  # for a tree without entries

        sender, receiver = anyio.create_memory_object_stream[Entry](_FILES_AT_ONCE)
        async with receiver, anyio.create_task_group() as tasks:
            for _ in range(_FILES_AT_ONCE):
                tasks.start_soon(fetch_each, receiver)
            with _noting(tree, path, tasks.cancel_scope):
                await find_all(sender)
        return tree

    async def _request(
        self, streams: contextlib.AsyncExitStack, method: str, path: str, **args: Any
    ) -> Stream:
        """Open a stream that is given up when ``streams`` ends before it did."""
        stream = await self.connection.open(method, path, **args)
        streams.callback(stream.reset, ErrorCode.CANCELLED, "the client gave up")
        await stream.end()
        return stream


async def _land(stream: Stream, partial: PartialFile, size: int, progress: Progress) -> None:
    """Write what arrives, a batch per thread hop; the connection goes on receiving meanwhile."""
    batch: list[memoryview] = []
    batched = arrived = 0
    chunks = cast("AsyncGenerator[memoryview, None]", stream.chunks())
    async with contextlib.aclosing(chunks):
        async for piece in chunks:
            batch.append(piece)
            batched += len(piece)
            arrived += len(piece)
            progress.received(len(piece))
            if arrived > size:
                break
            if batched >= _BATCH or len(batch) >= _BATCH_PIECES:
                await _in_thread(partial.write, batch)
                batched = 0
    if arrived != size:
        raise VerificationError(f"{stream.path}: {arrived} bytes came, {size} were announced: fetch it again")
    await _in_thread(partial.write, batch)


async def _reply(stream: Stream) -> dict[str, Any]:
    try:
        return await stream.response()
    except anyio.EndOfStream:
        raise TransferError(
            f"the server did not answer {stream.method}: is it a zcserver file server?"
        ) from None


def _compare(path: str, partial: PartialFile, validator: str, hashed: dict[str, Any]) -> None:
    if _text(hashed, "validator") != validator:
        raise VerificationError(
            f"{path} was changed on the server between sending and hashing: fetch it again"
        )
    if _text(hashed, "algorithm") != ALGORITHM or _text(hashed, "digest") != partial.digest:
        raise VerificationError(f"{path}: the SHA-256 of what arrived is not the server's: fetch it again")


@contextlib.contextmanager
def _noting(tree: FetchedTree, name: str, everything: anyio.CancelScope) -> Iterator[None]:
    """Note a failure and go on, or cancel everything where going on is pointless."""
    try:
        yield
    except (TransferError, OSError) as error:
        tree.failures.append((name, error))
        if isinstance(error, ConnectionLostError) or (
            isinstance(error, OSError) and error.errno in _HOPELESS
        ):
            everything.cancel()


def _prepare(entry: Entry, name: str, target: Path, tree: FetchedTree) -> bool:
    """Make the folder that an entry stands for; True when it is a file to fetch."""
    local = target / local_path(entry.path)
    _make_folder(target)
    if entry.type == "directory":
        _make_folder(local)
    elif entry.type != "file":
        tree.skipped.append(name)
    if entry.error:
        raise TransferError(f"{name}: the server cannot list it: {entry.error}")
    return entry.type == "file"


def _make_folder(path: Path) -> None:
    path.mkdir(exist_ok=True)


def local_path(path: str) -> Path:
    """A listed path as a relative local one. TransferError for names that could lead somewhere else."""
    parts = unescape(path).split(b"/")
    if any(part in (b"", b".", b"..") or b"\0" in part for part in parts):
        raise TransferError(f"the server lists a name that no file below a folder can have: {path!r}")
    return Path(os.fsdecode(b"/".join(parts)))


def _page(data: memoryview) -> Page:
    try:
        return _decode_page(data)
    except (ValueError, RecursionError) as error:
        raise TransferError(f"the server sent a malformed listing: {error}") from None


def _number(reply: dict[str, Any], name: str, least: int = 0) -> int:
    value = reply.get(name)
    if not isinstance(value, int) or not least <= value < 2**63:
        raise TransferError(f"the server's reply has no usable {name!r}: is it a zcserver file server?")
    return value


def _text(reply: dict[str, Any], name: str) -> str:
    value = reply.get(name)
    if not isinstance(value, str):
        raise TransferError(f"the server's reply has no usable {name!r}: is it a zcserver file server?")
    return value
