"""anyio's byte streams over ZCP/1, on asyncio, uvloop and trio: the peer may use asyncio's transports.

The wire is that of ``transport/link.py``: one stream a connection, opened by the client, method BYTES.
"""

import contextlib
import operator
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
from anyio.abc import SocketAttribute

from zcserver_protocol.errors import ErrorCode

from .connection import DEFAULT_PORT
from .context import Context
from .endpoints import connect, serve
from .errors import HandshakeError, MisuseError, StreamResetError, TransferError
from .listeners import Listener, listen, listen_unix
from .sending.completion import Completion
from .stream import Stream
from .transport.link import BYTE_STREAM


class ByteStream(anyio.abc.ByteStream):
    """A byte stream, from :func:`connect_byte_stream` or a :class:`ByteStreamListener`.

    ``send`` returns nothing, and its caller may reuse the memory at once: so it copies. Who wants no copies
    takes ``stream``, the :class:`Stream` below: ``await byte_stream.stream.send(buffer)`` gives a completion.
    ``extra(SocketAttribute.…)`` knows the addresses.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._connection = stream.connection
        self._sock: socket.socket = self._connection.engine._sock
        self._addresses = (self._sock.getsockname(), _peername(self._sock))
        self._family = self._sock.family
        self._sending = anyio.ResourceGuard("sending to")
        self._receiving = anyio.ResourceGuard("receiving from")
        self._rest = memoryview(b"")
        self._last: Completion | None = None  # of what was sent last, unless its loss was told already
        self._closed = False
        stream._channel.handled = False  # closing is this object's affair, also within a handler

    async def send(self, item: Any) -> None:
        """Send a copy of ``item`` (any contiguous memory); waits for flow control only.

        Raises ClosedResourceError after :meth:`aclose` or :meth:`send_eof`, BrokenResourceError, with its
        cause, when the peer or the connection is gone.
        """
        with self._sending:
            await anyio.lowlevel.checkpoint()
            self._check_open()
            with self._translated():
                if len(item):
                    self._last = await self.stream.send(bytes(item))

    async def wait_for_room(self) -> None:
        """Wait until :meth:`send` would not wait."""
        with self._sending:
            await anyio.lowlevel.checkpoint()
            self._check_open()
            with self._translated():
                await self.stream.wait_for_room()
                self._check_open()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """At most ``max_bytes`` bytes, as soon as there are any. Raises EndOfStream after the last ones."""
        if operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be a positive integer")
        with self._receiving:
            await anyio.lowlevel.checkpoint()
            self._check_open()
            while not self._rest:
                with self._translated():
                    self._rest = await self.stream.receive_chunk()
            data = bytes(self._rest[:max_bytes])
            self._rest = self._rest[max_bytes:]
            return data

    async def send_eof(self) -> None:
        """End this direction; the other one stays open."""
        with self._sending:
            await anyio.lowlevel.checkpoint()
            self._check_open()
            with self._translated():
                await self.stream.end()

    async def aclose(self) -> None:
        """Deliver what was sent, and close; cancelled, drop the connection at once.

        Raises BrokenResourceError when something that was sent did not arrive, or not within the context's
        ``close_seconds``, unless :meth:`send` has said so before.
        """
        self._closed = True
        self._rest = memoryview(b"")
        last, self._last = self._last, None
        if self._connection.is_closed or self.stream._channel.error is not None:
            self._connection.abort()
            await anyio.lowlevel.checkpoint()
        else:
            with contextlib.suppress(TransferError):  # it matters only for what was sent
                await self._connection.aclose()
        if last is not None and last.error is not None:
            raise anyio.BrokenResourceError from last.error

    def _check_open(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Our errors in anyio's words, with ours as the cause."""
        try:
            yield
        except TransferError as error:
            self._last = None
            if self._closed:
                raise anyio.ClosedResourceError from error
            raise anyio.BrokenResourceError from error
        except MisuseError as error:
            if self.stream._channel.last_completion is None:
                raise
            raise anyio.ClosedResourceError from error

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return _attributes(self._sock, self._family, *self._addresses)


def _peername(sock: socket.socket) -> Any:
    try:
        return sock.getpeername()
    except OSError:  # it is gone already
        return None


def _attributes(sock: socket.socket, family: int, local: Any, remote: Any = None) -> dict[Any, Any]:
    def short(address: Any) -> Any:
        return address[:2] if isinstance(address, tuple) else address

    attributes: dict[Any, Callable[[], Any]] = {
        SocketAttribute.family: lambda: family,
        SocketAttribute.local_address: lambda: short(local),
        SocketAttribute.raw_socket: lambda: sock,
    }
    if remote is not None:
        attributes[SocketAttribute.remote_address] = lambda: short(remote)
    if family in (socket.AF_INET, socket.AF_INET6):
        attributes[SocketAttribute.local_port] = lambda: local[1]
        if remote is not None:
            attributes[SocketAttribute.remote_port] = lambda: remote[1]
    return attributes


class connect_byte_stream:  # noqa: N801 – used like a function, as :class:`connect`
    """Connect, and hold a :class:`ByteStream` open for the body; the arguments are those of :class:`connect`.

    Raises ConnectionLostError when nobody listens, HandshakeError when the peer carries no byte streams.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = DEFAULT_PORT, **settings: Any) -> None:
        self._connecting = connect(host, port, **settings)

    async def __aenter__(self) -> ByteStream:
        connection = await self._connecting.__aenter__()
        try:
            stream = await connection.open(BYTE_STREAM, "/")
            await stream.response()
            self._stream = ByteStream(stream)
        except BaseException as error:
            await self._connecting.__aexit__(type(error), error, error.__traceback__)
            if isinstance(error, StreamResetError):
                raise HandshakeError(f"{connection.name} takes no byte stream: {error}") from error
            raise
        return self._stream

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if error is None:
                await self._stream.aclose()
        finally:  # whatever is left of the connection is dropped
            await self._connecting.__aexit__(anyio.ClosedResourceError, anyio.ClosedResourceError(), None)


class ByteStreamListener(anyio.abc.Listener[ByteStream]):
    """What :func:`listen_byte_streams` returns. ``port`` is useful after asking for port 0."""

    def __init__(self, listener: Listener, context: Context | None, trust_peer: bool) -> None:
        self._listener = listener
        self._sock = listener.sock
        self._address = listener.sock.getsockname()
        self._context = context
        self._trust_peer = trust_peer
        self._closed = anyio.Event()
        self.port = listener.port

    async def serve(
        self, handler: Callable[[ByteStream], Any], task_group: anyio.abc.TaskGroup | None = None
    ) -> None:
        """Run ``handler(byte_stream)`` as a task for every peer, until cancelled.

        A byte stream that the handler leaves open is closed when it returns (one that has to know whether
        all it sent arrived calls ``aclose`` itself). With ``task_group`` the
        handlers are tasks of it, and close their byte streams themselves. Raises ClosedResourceError once
        the listener is closed.
        """

        async def accept(stream: Stream) -> None:
            if stream.method != BYTE_STREAM:
                stream.reset(ErrorCode.REFUSED, f"this port takes byte streams ({BYTE_STREAM})")
                return
            await stream.reply()
            byte_stream = ByteStream(stream)
            if task_group is not None:
                task_group.start_soon(handler, byte_stream)
                await stream.connection.wait_closed()
                return
            await handler(byte_stream)
            with contextlib.suppress(anyio.BrokenResourceError):  # the peer's doing; the handler has returned
                await byte_stream.aclose()

        async with _Accepting(accept, self._listener, self._context, self._trust_peer):
            await self._closed.wait()
        raise anyio.ClosedResourceError

    async def aclose(self) -> None:
        self._listener.close()
        self._closed.set()
        await anyio.lowlevel.checkpoint()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return _attributes(self._sock, self._sock.family, self._address)


class _Accepting(serve):
    """``serve`` on a socket that listens already."""

    def __init__(
        self,
        handler: Callable[[Stream], Awaitable[object]],
        listener: Listener,
        context: Context | None,
        trust_peer: bool,
    ) -> None:
        super().__init__(handler, binds=[], context=context, trust_peer=trust_peer)
        self._listeners.append(listener)


async def listen_byte_streams(
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    *,
    path: str | bytes | None = None,
    context: Context | None = None,
    trust_peer: bool = False,
    backlog: int = 256,
) -> ByteStreamListener:
    """Listen; ``await listener.serve(handler)`` accepts. ``path`` names a Unix socket, instead of the rest.

    Raises ConnectionLostError, with its cause, when that cannot be listened on.
    """
    listener = listen_unix(path, backlog) if path is not None else await listen(host, port, backlog)
    return ByteStreamListener(listener, context, trust_peer)
