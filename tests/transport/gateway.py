"""CPython's own tests speak through plain sockets at one end; here their bytes go on over ZCP/1.

``OverZCP`` is mixed into an event loop: what it connects and serves goes over our transport. Where a test has
a plain socket at the other end (an HTTP server in a thread, a blocking client), a gateway in a thread of its
own stands between, with our transport at its side, too: each connection of a test has it at both ends.
"""

import asyncio
import contextlib
import contextvars
import os
import socket
import tempfile
import threading
from typing import Any

import zcserver

PORTS: dict[Any, Any] = {}
"""By port or path: the servers of loops under test."""


class Side(asyncio.Protocol):
    """One side of a relay: what it gets goes out at the ``other`` side, pauses and ends included."""

    def __init__(self, other: "Side | None" = None) -> None:
        self.transport: Any = None
        self.other = other
        self.eof = False
        if other is not None:
            other.other = self

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self.other is None:
            transport.pause_reading()
        else:
            self.other.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        assert self.other is not None
        self.other.transport.write(data)

    def eof_received(self) -> bool:
        self.eof = True
        assert self.other is not None
        if self.other.eof:
            self.other.transport.close()
            self.transport.close()
        else:
            self.other.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self.other is not None and self.other.transport is not None:
            if exc is None:
                self.other.transport.close()
            else:
                self.other.transport.abort()


class Dialling(Side):
    """A plain client has connected: now the server under test is dialled."""

    def __init__(self, target: Any) -> None:
        super().__init__()
        self.target = target

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.task = asyncio.ensure_future(self.dial())

    async def dial(self) -> None:
        try:
            if isinstance(self.target, tuple):
                await zcserver.create_connection(lambda: Side(self), *self.target)
            else:
                await zcserver.create_unix_connection(lambda: Side(self), self.target)
        except OSError:
            self.transport.abort()


class Gateway:
    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self._names = 0
        self._ready = threading.Event()
        threading.Thread(target=self._run, daemon=True, name="gateway").start()
        self._ready.wait()

    def _run(self) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self._loop.set_exception_handler(lambda loop, context: None)
            self._ready.set()
            await asyncio.Event().wait()

        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(main())

    def call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def await_(self, coroutine: Any) -> Any:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    def path(self) -> str:
        self._names += 1
        return f"{self._directory.name}/{self._names}"

    async def plain_door(self, target: Any, family: int) -> Any:
        """Where a plain client connects to reach the server under test at ``target``."""
        if family == socket.AF_UNIX:
            path = self.path()
            await self._loop.create_unix_server(lambda: Dialling(target), path)
            return path
        host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        server = await self._loop.create_server(lambda: Dialling(target), host, 0)
        return server.sockets[0].getsockname()

    async def our_door(self, target: Any) -> tuple[Any, Side]:
        """Where a loop under test connects to reach the plain server at ``target``, connected already."""
        if isinstance(target, str):
            _, plain = await self._loop.create_unix_connection(Side, target)
            path = self.path()
            await zcserver.create_unix_server(lambda: Side(plain), path)
            return path, plain
        _, plain = await self._loop.create_connection(Side, *target)
        server = await zcserver.create_server(lambda: Side(plain), target[0], 0)
        return server.sockets[0].getsockname()[:2], plain

    def drop(self, plain: Side) -> None:
        """Nobody has come through the door."""
        self._loop.call_soon_threadsafe(plain.transport.abort)

    async def relay(self, plain: socket.socket, ours: socket.socket) -> None:
        """From a plain, accepted socket to the client's end of a pair."""
        plain.setblocking(False)
        _, side = await self._loop.connect_accepted_socket(Side, plain)
        await zcserver.create_unix_connection(lambda: Side(side), sock=ours)


_gateway: list[Gateway] = []


def gateway() -> Gateway:
    if not _gateway:
        _gateway.append(Gateway())
    return _gateway[0]


class PlainSocket(socket.socket):
    """``socket.socket`` for the tests: blocking connects to a server under test go through the gateway."""

    def connect(self, address: Any) -> None:
        server = PORTS.get(address[1] if isinstance(address, tuple) else os.fspath(address))
        if self.gettimeout() != 0 and server is not None and server.is_serving():
            address = gateway().call(gateway().plain_door(address, self.family))
        super().connect(address)


_inside: contextvars.ContextVar[bool] = contextvars.ContextVar("inside", default=False)
"""Our functions let the loop connect and bind: those calls are for the loop itself."""


async def _ours(function: Any, *arguments: Any, **options: Any) -> Any:
    token = _inside.set(True)
    try:
        return await function(*arguments, **options)
    finally:
        _inside.reset(token)


class OverZCP:
    """Mixed into an event loop class."""

    _default_executor: Any = None  # CPython's tests look at it; uvloop hides its own

    async def create_connection(
        self, factory: Any, host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        if _inside.get():
            return await super().create_connection(factory, host, port, **options)  # type: ignore[misc]
        plain = None
        if host is not None and port not in PORTS:
            with contextlib.suppress(OSError):  # for the loop itself to raise
                (host, port), plain = await gateway().await_(gateway().our_door((host, port)))
        try:
            return await _ours(zcserver.create_connection, factory, host, port, **options)
        except BaseException:
            if plain is not None:
                gateway().drop(plain)
            raise

    async def create_unix_connection(self, factory: Any, path: Any = None, **options: Any) -> Any:
        if path is not None and path not in PORTS:
            path, _ = await gateway().await_(gateway().our_door(path))
        return await zcserver.create_unix_connection(factory, path, **options)

    async def create_server(self, factory: Any, *arguments: Any, **options: Any) -> Any:
        if _inside.get():
            return await super().create_server(factory, *arguments, **options)  # type: ignore[misc]
        server = await _ours(zcserver.create_server, factory, *arguments, **options)
        PORTS.update({sock.getsockname()[1]: server for sock in server.sockets})
        return server

    async def create_unix_server(self, factory: Any, *arguments: Any, **options: Any) -> Any:
        server = await zcserver.create_unix_server(factory, *arguments, **options)
        PORTS.update({sock.getsockname(): server for sock in server.sockets})
        return server

    async def connect_accepted_socket(self, factory: Any, sock: Any, **options: Any) -> Any:
        if options.get("ssl_handshake_timeout"):
            return await zcserver.connect_accepted_socket(factory, sock, **options)
        theirs, ours = socket.socketpair()
        relaying = asyncio.ensure_future(gateway().await_(gateway().relay(sock, theirs)))
        result = await zcserver.connect_accepted_socket(factory, ours, **options)
        await relaying
        return result

    async def sendfile(self, transport: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(transport, zcserver.ZeroCopyTransport):
            return await zcserver.sendfile(transport, *arguments, **options)
        return await super().sendfile(transport, *arguments, **options)  # type: ignore[misc]
