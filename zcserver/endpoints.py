"""``connect`` and ``serve``: async context managers that own sockets, tasks and, by default, a context."""

import errno
import logging
import os
import socket
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final

import anyio
import anyio.abc

from .connection import DEFAULT_PORT, Connection, Handler
from .context import Context
from .errors import ConnectionLostError, HandshakeError, MisuseError, TransferError
from .kernel.sockets import begin_unpaced, settle
from .listeners import EXHAUSTED, Listener, listen, listen_unix, place_of, shown

_log = logging.getLogger("zcserver")
# Out of descriptors or memory: accepting again at once would spin.
_PAUSE: Final = 0.1
_LAST_PORT: Final = 65_535


def _check_port(port: int) -> None:
    """What is no port would be taken modulo 2**16, or for a service's name."""
    if not (isinstance(port, int) and 0 <= port <= _LAST_PORT):
        raise MisuseError(f"{port!r} is no port: give a number of 0 to {_LAST_PORT}")


class _TaskOwner:
    """A task group around a body whose own exceptions leave it as they are, not wrapped in a group."""

    def __init__(self, context: Context | None) -> None:
        self._owns_context = context is None
        self.context = context if context is not None else Context()
        self._tasks: anyio.abc.TaskGroup

    async def _begin(self) -> None:
        self.context.join()
        self._tasks = anyio.create_task_group()  # not before: it wants a running loop
        await self._tasks.__aenter__()

    async def _end(self) -> None:
        self._tasks.cancel_scope.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            self.context.leave()
            if self._owns_context:
                self.context.close()


class connect(_TaskOwner):  # noqa: N801 – used like a function: ``async with connect(...) as connection``
    """Connect to a ZCP/1 peer and hold the connection open for the body.

    Leaving the body delivers what was queued (see :meth:`Connection.aclose`); an exception or a
    cancellation in it aborts. ``handler`` serves the streams that the peer opens. ``trust_peer`` allows
    foreign memory (bytes, arrays) to go by reference: a peer that lies about its acknowledgements, or
    outlives the connection, then reads what your heap puts there next. ``timeout`` (seconds) covers
    connecting and the handshake. ``path`` names a Unix socket (an abstract one begins with a NUL), instead
    of host and port.

    Raises ConnectionLostError when nobody listens, HandshakeError when it is no ZCP/1 peer, and MisuseError
    for what is no port, or when another thread uses the context.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        *,
        path: str | bytes | None = None,
        context: Context | None = None,
        handler: Handler | None = None,
        trust_peer: bool = False,
        timeout: float = 10.0,
    ) -> None:
        _check_port(port)
        super().__init__(context)
        self._host = host
        self._port = port
        self._path = path
        self._handler = handler
        self._trust_peer = trust_peer
        self._timeout = timeout
        self._connection: Connection

    async def __aenter__(self) -> Connection:
        await self._begin()
        try:
            return await self.again()
        except BaseException:
            await self._end()
            raise

    async def again(self) -> Connection:
        """Connect within the body once more: the connection before has been lost, or is given up now.

        Raises as entering does. The new connection is the one that leaving the body closes.
        """
        connection: Connection | None = None
        try:
            with anyio.fail_after(self._timeout):
                if self._path is not None:
                    sock = await _dial_unix(self._path)
                else:
                    sock = await _dial(self._host, self._port, self.context)
                connection = Connection(
                    sock, "client", self.context, self._tasks, self._handler, self._trust_peer
                )
                await connection.established()
        except BaseException as error:
            if connection is not None:
                connection.abort()
            if not isinstance(error, TimeoutError):
                raise
            place = f"{self._host}:{self._port}" if self._path is None else shown(self._path)
            raise HandshakeError(
                f"{place} did not answer within {self._timeout} s: is it a zcserver?"
            ) from error
        if (before := getattr(self, "_connection", None)) is not None:
            before.abort()
        self._connection = connection
        return connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self._connection.aclose()
        finally:
            self._connection.abort()
            await self._end()


async def _dial(host: str, port: int, context: Context) -> socket.socket:
    """A connected, non-blocking socket of our own (uvloop refuses those its transports hold)."""
    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise ConnectionLostError(f"the name {host!r} cannot be resolved: {error.strerror}") from error
    failures: list[OSError] = []
    for family, kind, protocol, _, address in found:
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # a family that is off on this machine; the name may have others
            failures.append(error)
            continue
        try:
            unpaced = begin_unpaced(sock, context.capabilities, context.kernel)
            await _connect(sock, address)
        except OSError as error:
            sock.close()
            failures.append(error)
            continue
        except BaseException:
            sock.close()
            raise
        if unpaced:
            settle(sock, context.capabilities, context.kernel)
        return sock
    reasons = "; ".join(dict.fromkeys(os.strerror(error.errno or 0) for error in failures))
    raise ConnectionLostError(f"cannot connect to {place_of(host, port)}: {reasons}") from failures[-1]


async def _dial_unix(path: str | bytes) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        while True:
            try:
                sock.connect(path)
                return sock
            except BlockingIOError:
                # The server's queue is full. Unlike TCP, nothing goes on by itself (connect(2), EAGAIN), and
                # nothing tells when there is room; the caller's deadline ends this.
                await anyio.sleep(_PAUSE)
    except OSError as error:
        sock.close()
        words = error.strerror or str(error)  # CPython's own check of the length has no number
        raise ConnectionLostError(f"cannot connect to {shown(path)}: {words}") from error
    except BaseException:
        sock.close()
        raise


async def _connect(sock: socket.socket, address: tuple[Any, ...]) -> None:
    sock.setblocking(False)
    try:
        sock.connect(address)
    except BlockingIOError:
        await anyio.wait_writable(sock)
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number)) from None


class serve(_TaskOwner):  # noqa: N801 – used like a function: ``async with serve(...) as server``
    """Listen, and run ``handler(stream)`` as a task for every stream that a peer opens.

    ``host`` is an address, a name (its first address) or ``"*"`` for all of this machine. ``binds`` takes
    their place: several pairs of host and port. ``paths`` are Unix sockets (see :class:`connect`), served
    besides ``binds``, or alone when only they are given.

    The value of ``async with`` is the object itself: ``port`` (useful after asking for port 0; the first
    one), ``ports`` (those of all ``binds``), ``connections``, ``aclose``. Leaving the body stops accepting
    and closes the connections gracefully; an exception or a cancellation aborts them. ``max_connections``
    bounds how many are open at once; more wait in the kernel's queue. See :class:`connect` for ``context``
    and ``trust_peer``.

    A handler that raises costs its stream, never the connection: the peer is told the code and the reason of
    a StreamResetError, and INTERNAL (logged here) for everything else, even if what the handler lost was
    another connection. That its own one is lost is not logged. Raises ConnectionLostError, with its cause,
    when an address or path cannot be listened on, and MisuseError as :class:`connect` does.
    """

    def __init__(
        self,
        handler: Handler,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        *,
        binds: Sequence[tuple[str, int]] | None = None,
        paths: Sequence[str | bytes] = (),
        context: Context | None = None,
        trust_peer: bool = False,
        backlog: int = 256,
        max_connections: int = 10_000,
    ) -> None:
        if binds is None:
            binds = [] if paths else [(host, port)]
        for _, each in binds:
            _check_port(each)
        if max_connections < 1:
            raise MisuseError(f"max_connections is {max_connections}; it must be at least 1")
        super().__init__(context)
        self.connections: set[Connection] = set()
        self._binds = binds
        self._paths = paths
        self._handler = handler
        self._trust_peer = trust_peer
        self._backlog = backlog
        self._max_connections = max_connections
        self._listeners: list[Listener] = []
        self._room = anyio.Event()
        self._closed = anyio.Event()

    async def __aenter__(self) -> "serve":
        try:
            for host, port in self._binds:
                self._listeners.append(await listen(host, port, self._backlog))
            for path in self._paths:
                self._listeners.append(listen_unix(path, self._backlog))
            self.ports = [listener.port for listener in self._listeners if not listener.path]
            await self._begin()
        except BaseException:
            self._stop_listening()
            if self._owns_context:
                self.context.close()
            raise
        for listener in self._listeners:
            unpaced = begin_unpaced(listener.sock, self.context.capabilities, self.context.kernel)
            self._tasks.start_soon(self._accept_all, listener.sock, unpaced)
        return self

    @property
    def port(self) -> int:
        """The TCP port of the first address; 0 when there are only Unix sockets."""
        return self.ports[0] if self.ports else 0

    async def _accept_all(self, listener: socket.socket, unpaced: bool) -> None:
        try:
            while True:
                while len(self.connections) >= self._max_connections:
                    if self._room.is_set():  # else another listener waits for it already
                        self._room = anyio.Event()
                    await self._room.wait()
                sock = await self._accept(listener)
                if unpaced:
                    settle(sock, self.context.capabilities, self.context.kernel)
                self._admit(sock)
        except anyio.ClosedResourceError:
            return  # by aclose

    async def _accept(self, listener: socket.socket) -> socket.socket:
        while True:
            try:
                return listener.accept()[0]
            except BlockingIOError:
                await anyio.wait_readable(listener)
            except OSError as error:
                if error.errno == errno.EBADF:
                    raise anyio.ClosedResourceError from error
                if error.errno in EXHAUSTED:
                    _log.warning("cannot accept more connections for now: %s", error.strerror)
                    await anyio.sleep(_PAUSE)
                # Otherwise that peer gave up while it was queued (accept(2)): the next one.

    def _admit(self, sock: socket.socket) -> None:
        try:
            connection = Connection(
                sock, "server", self.context, self._tasks, self._handler, self._trust_peer, self._forget
            )
        except OSError:
            sock.close()  # it was reset before it could be prepared
            return
        if not connection.is_closed:
            self.connections.add(connection)

    def _forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._room.set()
        if isinstance(connection.engine.error, HandshakeError):
            _log.warning("refused %s", connection.engine.error)

    async def wait_closed(self) -> None:
        """Serve until cancelled, or until ``aclose`` is done."""
        await self._closed.wait()

    def _stop_listening(self) -> None:
        self._room.set()
        for listener in self._listeners:
            listener.close()

    async def aclose(self, timeout: float | None = None) -> None:
        """Stop accepting, deliver what is queued on every connection, part; abort what is left in time."""
        self._stop_listening()
        try:
            async with anyio.create_task_group() as closing:
                for connection in list(self.connections):
                    closing.start_soon(self._close_one, connection, timeout)
        finally:
            self._closed.set()

    async def _close_one(self, connection: Connection, timeout: float | None) -> None:
        try:
            await connection.aclose(timeout)
        except TransferError as error:
            _log.warning("%s", error)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self.aclose()
        finally:
            self._stop_listening()
            for connection in list(self.connections):
                connection.abort()
            self._closed.set()
            await self._end()
