"""The handler of a file server: GET, LIST and DIGEST beneath one root, read-only.

Whatever touches the disk runs in a thread; the bytes of a file go from the page cache to the socket. A
file is never vouched for before its last byte is acknowledged and it has been looked at once more.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from zcserver.errors import StreamResetError
from zcserver.file_protocol import ALGORITHM, DIGEST, GET, LIST
from zcserver.stream import Stream
from zcserver_protocol.errors import ErrorCode

from .listing import Listing
from .paths import OpenFile, Root, shown
from .totals import Totals

_log = logging.getLogger("zcserver.server")
_encode = msgspec.json.Encoder().encode
_HASHED_PIECE: Final = 1 << 20
_in_thread = anyio.to_thread.run_sync


class FileServer:
    """Give ``handle`` to :func:`zcserver.serve`. ``active`` counts running requests."""

    def __init__(self, root: Root) -> None:
        self.active = 0
        self.totals = Totals()
        self._root = root
        # Digests keep a processor busy each: they must not take the threads that open files.
        self._hashers = anyio.CapacityLimiter(max(1, len(os.sched_getaffinity(0))))
        self._methods: dict[str, Callable[[Stream], Awaitable[int]]] = {
            GET: self._get,
            LIST: self._list,
            DIGEST: self._digest,
        }

    async def handle(self, stream: Stream) -> None:
        """Serve one request; raises StreamResetError, which the server passes on to the peer."""
        method = self._methods.get(stream.method)
        if method is None:
            raise StreamResetError(
                ErrorCode.REFUSED, f"this server knows {', '.join(self._methods)}, not {shown(stream.method)}"
            )
        self.active += 1
        begin = time.monotonic()
        try:
            nbytes = await method(stream)
        except StreamResetError as error:
            _log.info("%s %s %s: %s", stream.connection.name, stream.method, shown(stream.path), error)
            raise
        finally:
            self.active -= 1
            self.totals.add(stream.connection)
        seconds = time.monotonic() - begin
        _log.info(
            "%s %s %s: %d bytes in %.3f s",
            stream.connection.name,
            stream.method,
            shown(stream.path),
            nbytes,
            seconds,
        )

    async def _get(self, stream: Stream) -> int:
        file = await _in_thread(self._root.open_file, stream.path)
        try:
            await stream.reply(size=file.size, mtime_ns=file.mtime_ns, validator=file.validator)
            # Sends what the file holds now: if that is not what was just announced, the check below fails.
            completion = await stream.send_file(file.fd)
            await completion
            await _in_thread(_check, file, stream.path)
        finally:
            file.close()
        await stream.end()
        return file.size

    async def _list(self, stream: Stream) -> int:
        listing = Listing(self._root, stream.path, stream.args.get("recursive") is True)
        nbytes = 0
        more = True
        while more:
            page = await _in_thread(listing.next_page)
            encoded = _encode(page)
            nbytes += len(encoded)
            more = page.more
            await stream.send(encoded, end=not more)
        return nbytes

    async def _digest(self, stream: Stream) -> int:
        abandoned = threading.Event()
        try:
            file, digest = await _in_thread(
                _hash, self._root, stream.path, abandoned, limiter=self._hashers, abandon_on_cancel=True
            )
        except BaseException:
            abandoned.set()
            raise
        await stream.reply(algorithm=ALGORITHM, digest=digest, size=file.size, validator=file.validator)
        await stream.end()
        return file.size


def _check(file: OpenFile, path: str) -> None:
    if not file.unchanged():
        raise StreamResetError(
            ErrorCode.CHANGED, f"{shown(path)} was changed while it was read: fetch it again"
        )


def _hash(root: Root, path: str, abandoned: threading.Event) -> tuple[OpenFile, str]:
    """The file (closed again) and its SHA-256 in hexadecimal. Stops early when nobody waits any more."""
    hasher = hashlib.new(ALGORITHM)
    piece = memoryview(bytearray(_HASHED_PIECE))
    file = root.open_file(path)
    try:
        position = 0
        while not abandoned.is_set() and (count := os.preadv(file.fd, [piece], position)):
            hasher.update(piece[:count])
            position += count
        _check(file, path)
    finally:
        file.close()
    return file, hasher.hexdigest()
