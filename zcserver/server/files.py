"""The handler of a file server: which request goes where, how fast, and what is noted of it."""

import time
import weakref
from collections.abc import Awaitable, Callable

import anyio

from zcserver.connection import Connection
from zcserver.errors import StreamResetError
from zcserver.file_protocol import (
    DIGEST,
    GET,
    LIST,
    MKDIR,
    PUT,
    READ_ONLY,
    REMOVE,
    RENAME,
    STAT,
    UNKNOWN_METHOD,
    WRITING,
)
from zcserver.pace import Pace
from zcserver.stream import Stream

from .access import Request
from .disk import Disk
from .paths import Root
from .reading import Reader
from .refusals import shown
from .roots import Roots
from .totals import Totals
from .writing import Writer

Method = Callable[[Stream, Request, Pace], Awaitable[None]]


class FileServer:
    """Give ``handle`` to :func:`zcserver.serve`. ``active`` counts running requests.

    One unnamed root, or several named ones. ``writable`` allows PUT, MKDIR, RENAME and REMOVE; the roots'
    staging directories are then emptied now. ``rate``: bytes per second for each connection, 0 for no limit.
    ``on_request`` is called with every request that has ended. Close it at the end.

    Raises MisuseError for roots that do not go together, and OSError when a staging directory cannot be made
    or another server uses it (BlockingIOError).
    """

    def __init__(
        self,
        *roots: Root,
        writable: bool = False,
        rate: float = 0,
        on_request: Callable[[Request], object] = lambda request: None,
        disk: Disk | None = None,
    ) -> None:
        self.active = 0
        self.totals = Totals()
        self._rate = rate
        self._on_request = on_request
        self._paces: weakref.WeakKeyDictionary[Connection, Pace] = weakref.WeakKeyDictionary()
        served = Roots(roots)
        reader = Reader(served)
        self._methods: dict[str, Method] = {
            STAT: reader.stat,
            LIST: reader.list,
            GET: reader.get,
            DIGEST: reader.digest,
        }
        self._writer: Writer | None = None
        if writable:
            self._writer = writer = Writer(served, roots, disk or Disk())
            self._methods |= {
                PUT: writer.put,
                MKDIR: writer.mkdir,
                RENAME: writer.rename,
                REMOVE: writer.remove,
            }

    def close(self) -> None:
        """Let other servers write to the roots. Harmless on a read-only one, and twice."""
        if self._writer is not None:
            self._writer.close()

    async def handle(self, stream: Stream) -> None:
        """Serve one request; raises StreamResetError, which the server passes on to the peer."""
        request = Request(stream.connection.name, stream.method, stream.path)
        self.active += 1
        begin = time.monotonic()
        failure: BaseException | None = None
        try:
            await self._run(stream, request)
        except BaseException as error:
            failure = error
            raise
        finally:
            self.active -= 1
            self.totals.add(stream.connection)
            request.end(failure, time.monotonic() - begin)
            self._on_request(request)

    async def _run(self, stream: Stream, request: Request) -> None:
        """The request's method, until the stream or its connection is gone: nobody waits for it then.

        Otherwise requests that a peer has given up would wait, for their turn within the rate or for a
        thread, without bound in number. What a thread has begun is finished all the same.
        """
        stream.check_open()
        method, pace = self._method(stream), self._pace(stream.connection)
        with anyio.CancelScope() as scope:
            stream.on_change = lambda: None if stream.failed is None else scope.cancel()
            await method(stream, request, pace)
        if scope.cancelled_caught:
            stream.check_open()

    def _method(self, stream: Stream) -> Method:
        method = self._methods.get(stream.method)
        if method is not None:
            return method
        if stream.method in WRITING:
            raise StreamResetError(READ_ONLY, "this server only reads: it was not started writable")
        known = ", ".join(self._methods)
        raise StreamResetError(UNKNOWN_METHOD, f"this server knows {known}, not {shown(stream.method)}")

    def _pace(self, connection: Connection) -> Pace:
        pace = self._paces.get(connection)
        if pace is None:
            pace = self._paces[connection] = Pace(self._rate)
        return pace
