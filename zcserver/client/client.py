"""The operations of a file server as coroutines, over one connection."""

import contextlib
import os
from collections.abc import AsyncGenerator
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from uuid import uuid4

import anyio
import anyio.to_thread
import msgspec

from zcserver.connection import Connection
from zcserver.context import MIB, Context
from zcserver.endpoints import connect
from zcserver.errors import ConnectionLostError, MessageTooLargeError, MisuseError, TransferError
from zcserver.file_protocol import DIGEST, GET, LIST, MKDIR, PAGE_BYTES, REMOVE, RENAME, STAT, Entry, Page
from zcserver.pace import Pace

from .address import Address, parse_url
from .descriptors import writing
from .download import BATCH, Download, beginning_of, bytes_of, expect_end, fill, pour
from .progress import SILENT, Progress, Transferred, TreeReport
from .publish import Publisher, Publishers
from .remote_file import RemoteFile
from .request import ask, number, reply_of, request, text
from .retrying import OnRetry, Retrying, log_retry
from .subscribe import Subscription
from .tree import options_of
from .tree_download import TreeDownload
from .tree_upload import TreeUpload
from .upload import upload, upload_from

LocalPath = str | os.PathLike[str]
_decode_page: Final = msgspec.json.Decoder(Page).decode
_in_thread = anyio.to_thread.run_sync


class Status(msgspec.Struct, frozen=True):
    """What the server says about a path: sizes in bytes, times in nanoseconds since 1970."""

    type: str
    size: int
    mtime_ns: int
    validator: str = ""


def client_context(*, limit_rate: float = 0.0, **settings: Any) -> Context:
    """A context for file transfers: files go from the page cache; four batches may wait to be written.

    With a ``limit_rate`` (bytes per second) 0.2 seconds' worth may, or 32 KiB: of each file that is under
    way, the server sends so much at once.
    """
    window = min(4 * BATCH, 2 * Pace(limit_rate).piece)
    return Context(**{"pool_size": 16 * MIB, "stream_window": window, **settings})


class Client:
    """A file server's operations. Any number may run at once; they share one connection.

        async with zcserver.Client("zc://storage/") as client:
            await client.fetch("/big.bin", Path("big.bin"))

    ``where``: a URL, an :class:`Address`, or a :class:`Connection` that is open already (usable at once, and
    left open). ``timeout`` (seconds) covers connecting; ``limit_rate`` is in bytes per second, 0 for none.
    With a ``context`` of your own, give it to :func:`client_context`, too: servers send windows ahead of it.
    Paths on the server are text that begins with ``/`` and in which ``%XX`` stands for a byte
    (:func:`zcserver.file_protocol.escape` makes one of any name).

    All operations raise StreamResetError when the server refuses (see ``code`` and ``reason``),
    ConnectionLostError when it goes away, and OSError for trouble with local files.
    """

    def __init__(
        self,
        where: str | Address | Connection,
        *,
        context: Context | None = None,
        timeout: float = 10.0,
        limit_rate: float = 0.0,
    ) -> None:
        self._where = parse_url(where) if isinstance(where, str) else where
        self._context = context
        self._timeout = timeout
        self._limit_rate = limit_rate
        self._pace = Pace(limit_rate)
        self._connection = where if isinstance(where, Connection) else None
        self._connecting: connect | None = None
        self._reconnecting = anyio.Lock()
        publisher = uuid4().hex  # one name, so that it is the same publisher that comes back to a topic
        self._publishers = Publishers(lambda topic: self.publisher(topic, name=publisher))
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        where = self._where
        if isinstance(where, Connection):
            return self
        async with contextlib.AsyncExitStack() as stack:
            context = self._context or stack.enter_context(client_context(limit_rate=self._limit_rate))
            if where.socket:
                connecting = connect(path=where.socket, context=context, timeout=self._timeout)
            else:
                connecting = connect(where.host, where.port, context=context, timeout=self._timeout)
            self._connection = await stack.enter_async_context(connecting)
            self._connecting = connecting
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._publishers.close()
            await self._stack.__aexit__(kind, error, trace)
        except ConnectionLostError:
            # Every operation has had its answer: a farewell that went wrong has lost nothing.
            if error is not None:
                raise

    @property
    def connection(self) -> Connection:
        """The connection; MisuseError before ``async with``."""
        if self._connection is None:
            raise MisuseError("this client is not connected: use it as `async with Client(url) as client`")
        return self._connection

    @property
    def can_reconnect(self) -> bool:
        """Whether it connected itself; a connection that it was given is not its own to replace."""
        return self._connecting is not None

    async def reconnect(self, lost: Connection) -> None:
        """Connect again if ``lost`` is the connection still; what was under way on it fails.

        Publishers and subscriptions do this by themselves. Raises ConnectionLostError.
        """
        async with self._reconnecting:
            if self._connection is lost and self._connecting is not None:
                self._connection = await self._connecting.again()

    # -- topics ----------------------------------------------------------------------------------------

    def subscribe(
        self,
        topic: str,
        *,
        start: str | int = "latest",
        policy: str = "drop-oldest",
        name: str = "",
        retry_seconds: float = inf,
        on_retry: OnRetry = log_retry,
    ) -> Subscription:
        """The messages of a topic: ``async for message in client.subscribe("/frames")``.

        ``start``: "latest", "earliest", "committed" (behind what a subscriber of this ``name`` has committed
        last) or a sequence number. ``policy``, for when this end is too slow: "drop-oldest", "latest" (only
        the newest), "disconnect", or "block" where the server allows it. Lost connections are made again for
        up to ``retry_seconds`` in a row, each try told to ``on_retry``, without loss or duplicates as long as
        the server retains what was missed; else ``message.missed`` says what is missing.
        """
        return Subscription(self, topic, start, policy, name, Retrying(self, retry_seconds, on_retry))

    def publisher(
        self,
        topic: str,
        *,
        name: str = "",
        window: int = 16 * MIB,
        retry_seconds: float = inf,
        on_retry: OnRetry = log_retry,
    ) -> Publisher:
        """``async with client.publisher("/frames") as publisher``: messages for a topic, each accepted once.

        ``name`` tells the server who publishes, over connections and restarts of this program (default: one
        that is unique). ``window``: bytes that may wait to be accepted. Otherwise as :meth:`subscribe`.
        """
        retrying = Retrying(self, retry_seconds, on_retry)
        return Publisher(self, topic, name or uuid4().hex, window, retrying)

    async def publish(self, topic: str, data: Any, *, key: str = "", content_type: str = "") -> None:
        """Publish one message and wait until the topic has it. For many, :meth:`publisher` is faster."""
        await self._publishers.publish(topic, data, key, content_type)

    # -- reading ---------------------------------------------------------------------------------------

    async def fetch(
        self,
        path: str,
        target: LocalPath,
        *,
        verify: bool = False,
        restart: bool = False,
        stable: bool = False,
        progress: Progress = SILENT,
    ) -> Transferred:
        """Fetch one file. It appears as ``target`` when it is complete and right, or not at all.

        What an earlier try left beside ``target`` is continued, if the file is still the same: else
        ChangedError, unless ``restart`` begins anew. ``verify`` compares its SHA-256 with the server's,
        which reads the file once more for that; without it, the server's word is that it sent one state of
        the file. ``stable`` is for files that somebody writes to: the server copies and hashes what it sends,
        which may then be a mixture of states, from the beginning. Raises VerificationError when length,
        digest or identity are not as announced.
        """
        partial, beginning = await _in_thread(beginning_of, Path(target), verify or stable, restart or stable)
        download = Download(
            self.connection,
            self._pace,
            path,
            partial,
            beginning,
            verify and not stable,
            progress,
            stable=stable,
        )
        return await download.run(expected=False)

    async def fetch_to(
        self, path: str, fd: int, offset: int = 0, length: int | None = None, *, progress: Progress = SILENT
    ) -> int:
        """Write a file's bytes to an open descriptor (pipe, socket, file); return how many.

        From ``offset`` on, ``length`` bytes at most. When this raises, some may have been written.
        """
        async with request(self.connection, GET, path, offset=offset or None, length=length) as stream:
            due = number(await reply_of(stream), "length")
            progress.expect(1, due)
            progress.started(path, due, 0)
            with writing(fd, room=MIB) as write:
                await pour(stream, due, write, self._pace, lambda nbytes: progress.moved(path, nbytes))
        progress.finished(path)
        return due

    async def read_into(self, path: str, memory: Any, offset: int = 0) -> int:
        """Read from ``offset`` on straight into ``memory``: bytearray, numpy array, mmap. Return the bytes.

        Fewer than fit when the file ends before. ``memory`` must not be touched meanwhile; when this raises,
        any part of it may have been overwritten. MisuseError for memory that is read-only or in pieces.
        """
        sink = bytes_of(memory)
        length = len(sink)
        async with request(self.connection, GET, path, offset=offset or None, length=length) as stream:
            due = number(await reply_of(stream), "length")
            if due > length:
                raise TransferError(f"the server sends {due} bytes of {path} where {length} were asked for")
            filled = await fill(stream, sink[:due], self._pace)
            await expect_end(stream)
        if filled != due:
            raise TransferError(f"{path}: {filled} bytes came, {due} were announced: fetch it again")
        return filled

    async def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """The bytes of a (small) file from ``offset`` on, at most ``length``."""
        if length is not None and length < 0:
            raise MisuseError(f"length={length}: give a number of bytes, or None for all the rest")
        async with self.open(path) as file:
            await file.seek(offset)
            return await file.read(-1 if length is None else length)

    def open(self, path: str) -> RemoteFile:
        """``async with client.open(path) as file``: reading in pieces. See :class:`RemoteFile`."""
        return RemoteFile(self.connection, self._pace, path)

    async def stat(self, path: str) -> Status:
        """What is at ``path``."""
        reply = await ask(self.connection, STAT, path)
        try:
            return msgspec.convert(reply, Status)
        except msgspec.ValidationError as error:
            raise TransferError(f"the server's reply makes no sense: {error}") from None

    async def digest(self, path: str) -> str:
        """The SHA-256 of a file, computed by the server, in hexadecimal."""
        return text(await ask(self.connection, DIGEST, path), "digest")

    async def list(self, path: str, recursive: bool = False) -> AsyncGenerator[Entry, None]:
        """The entries of a directory, sorted; recursive: each directory is followed by its content.

        Close it if you do not take all of them: ``async with contextlib.aclosing(client.list("/")) as …``.
        """
        async with contextlib.aclosing(self.pages(path, recursive)) as pages:
            async for page in pages:
                for entry in page:
                    yield entry

    async def pages(self, path: str, recursive: bool) -> AsyncGenerator[tuple[Entry, ...], None]:
        """As :meth:`list`, several hundred entries at a time."""
        async with request(self.connection, LIST, path, recursive=recursive) as stream:
            stream.place_messages(lambda nbytes: None, PAGE_BYTES)
            more = True
            try:
                async for message in stream:
                    page = _page(message.data)
                    more = page.more
                    yield tuple(page.entries)
            except MessageTooLargeError:
                words = f"a page of it is over {PAGE_BYTES} bytes"
                raise TransferError(f"the server sent a malformed listing: {words}") from None
            if more:
                raise TransferError(f"the listing of {path} was cut off: the server ended it early")

    # -- writing, where the server allows it -------------------------------------------------------------

    async def put(
        self,
        source: Any,
        path: str,
        *,
        mtime_ns: int | None = None,
        create: bool = False,
        validator: str | None = None,
        verify: bool = False,
        progress: Progress = SILENT,
    ) -> Transferred:
        """Send a local file (its path), memory (bytes, array) or what a descriptor gives until its end.

        It appears whole, as ``path``. If the connection is lost, the server keeps what came of a local file
        of 1 MiB or more, for as long as it runs (about a day at most), and the same call goes on behind that.
        (Should the file have been written to through a mapping meanwhile, only ``verify`` is sure to notice.)

        When this returns, the server has it on disk. It gets the modification time of the local file, or
        ``mtime_ns``. ``create``: refused if there is one; ``validator``: refused unless the one there still
        has it. ``verify``: the server compares the SHA-256 before it takes the file. ChangedError when the
        local file changes meanwhile.
        """
        if isinstance(source, int):
            if verify:
                raise MisuseError("the SHA-256 of what a descriptor gives is not known before it is sent")
            return await upload_from(
                self.connection,
                self._pace,
                source,
                path,
                mtime_ns=mtime_ns,
                create=create,
                validator=validator,
                progress=progress,
            )
        return await upload(
            self.connection,
            self._pace,
            source,
            path,
            mtime_ns=mtime_ns,
            create=create,
            validator=validator,
            verify=verify,
            progress=progress,
            expected=False,
        )

    async def mkdir(self, path: str, *, parents: bool = False, mtime_ns: int | None = None) -> bool:
        """Make a directory; False if there was one already."""
        reply = await ask(self.connection, MKDIR, path, parents=parents or None, mtime_ns=mtime_ns)
        return reply.get("created") is True

    async def rename(self, path: str, to: str, *, replace: bool = False) -> None:
        """Give a file or directory another name below the same root."""
        await ask(self.connection, RENAME, path, to=to, replace=replace or None)

    async def remove(self, path: str, *, recursive: bool = False) -> int:
        """Remove a file or an empty directory, or with ``recursive`` all of it; return the entries."""
        return number(await ask(self.connection, REMOVE, path, recursive=recursive or None), "removed")

    # -- trees -------------------------------------------------------------------------------------------

    async def fetch_tree(self, path: str, target: LocalPath, **options: Any) -> TreeReport:
        """Fetch a directory with all that is in it into ``target``.

        A file that fails is noted in ``failures`` and the others go on, unless no other could succeed.
        Times are kept, permissions only of files that are replaced; symbolic links and special files are left
        out, and links in ``target`` are not gone through. Options as for :meth:`sync`, without those two that
        remove or pretend.
        """
        return await TreeDownload(self, self._pace, path, Path(target), options_of(options)).run()

    async def put_tree(self, source: LocalPath, path: str, **options: Any) -> TreeReport:
        """Send a directory with all that is in it as ``path``. As :meth:`fetch_tree`."""
        return await TreeUpload(self, self._pace, Path(source), path, options_of(options)).run()

    async def sync(
        self,
        source: Path | str,
        target: Path | str,
        *,
        delete: bool = False,
        dry_run: bool = False,
        **options: Any,
    ) -> TreeReport:
        """Make ``target`` like ``source``; files of equal size and time are skipped.

        One of them is a local ``Path``, the other a ``str``: a directory of the server. ``delete`` removes
        from the target what the source does not have, and replaces links and directories that are in the
        way; ``dry_run`` only tells what would be done.

        ``jobs``              how many files are under way at once
        ``include, exclude``  patterns, see :class:`Selection`
        ``verify, restart, stable``   as for :meth:`fetch`
        ``progress``          a :class:`Progress`
        ``report``            a new :class:`TreeReport` to fill, for what was done when this is cancelled
        """
        chosen = options_of(options, update=True, delete=delete, dry_run=dry_run)
        if isinstance(source, Path) and isinstance(target, str):
            return await TreeUpload(self, self._pace, source, target, chosen).run()
        if isinstance(source, str) and isinstance(target, Path):
            return await TreeDownload(self, self._pace, source, target, chosen).run()
        raise MisuseError("of source and target, one is a local Path, the other a str for the server's side")


def _page(data: memoryview) -> Page:
    try:
        return _decode_page(data)
    except (ValueError, RecursionError) as error:
        raise TransferError(f"the server sent a malformed listing: {error}") from None
