"""The server's side: listening sockets by the event loop's own rules, and one link for each peer."""

import asyncio
import asyncio.trsock
import os
import socket
from collections.abc import Sequence
from typing import Any, Final

from zcserver.channel import Channel
from zcserver.context import Context
from zcserver.errors import ConnectionLostError, HandshakeError
from zcserver.kernel.sockets import begin_unpaced, settle
from zcserver.listeners import EXHAUSTED, SocketFile, listen_unix

from .connecting import ProtocolFactory, check_stream_socket, refuse_tls
from .link import Link, log
from .shared import context_of
from .transport import ZeroCopyTransport

_PAUSE: Final = 1.0  # seconds, as in asyncio, before accepting again when the system has run out of something


class ZeroCopyServer(asyncio.AbstractServer):
    """What :func:`create_server` returns: asyncio's server object, as it is from Python 3.12.1 on.

    ``async with`` closes it and waits until its connections are over. ``handshaking`` is how many peers
    have connected and not asked for a byte stream yet.
    """

    def __init__(
        self,
        socks: list[socket.socket],
        protocol_factory: ProtocolFactory,
        backlog: int,
        context: Context,
        trust_peer: bool,
        cleanup_socket: bool = False,
    ) -> None:
        self._files = [SocketFile(sock) for sock in socks] if cleanup_socket else []
        self._loop = asyncio.get_running_loop()
        self._sockets: list[socket.socket] | None = socks
        self._factory = protocol_factory
        self._backlog = backlog
        self._context = context
        self._trust_peer = trust_peer
        self._listening = False
        self._links: set[Link] = set()  # still shaking hands
        self._transports: set[ZeroCopyTransport] = set()
        self._waiters: list[asyncio.Future[None]] | None = []
        self._forever: asyncio.Future[None] | None = None

    @property
    def sockets(self) -> tuple[Any, ...]:
        return tuple(asyncio.trsock.TransportSocket(sock) for sock in self._sockets or ())

    @property
    def handshaking(self) -> int:
        return len(self._links)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def is_serving(self) -> bool:
        return self._listening

    def _listen(self) -> None:
        if self._listening:
            return
        if self._sockets is None:
            raise RuntimeError(f"server {self!r} is closed")
        self._listening = True
        for sock in self._sockets:
            unpaced = begin_unpaced(sock, self._context.capabilities, self._context.kernel)
            sock.listen(self._backlog)
            sock.setblocking(False)
            self._loop.add_reader(sock.fileno(), self._accept, sock, unpaced)

    async def start_serving(self) -> None:
        self._listen()
        await asyncio.sleep(0)

    async def serve_forever(self) -> None:
        if self._forever is not None:
            raise RuntimeError(f"server {self!r} is already being awaited on serve_forever()")
        self._listen()
        self._forever = self._loop.create_future()
        try:
            await self._forever
        except asyncio.CancelledError:
            try:
                self.close()
                await self.wait_closed()
            finally:
                raise
        finally:
            self._forever = None

    # -- accepting -----------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket, unpaced: bool) -> None:
        for _ in range(self._backlog + 1):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    raise
                log.warning("cannot accept more connections for now: %s", error.strerror)
                self._loop.remove_reader(listener.fileno())
                self._loop.call_later(_PAUSE, self._accept_again, listener, unpaced)
                return
            if unpaced:
                settle(sock, self._context.capabilities, self._context.kernel)
            self._admit(sock)

    def _accept_again(self, listener: socket.socket, unpaced: bool) -> None:
        if listener.fileno() >= 0:
            self._loop.add_reader(listener.fileno(), self._accept, listener, unpaced)

    def _admit(self, sock: socket.socket) -> None:
        def opened(channel: Channel) -> None:
            self._links.discard(link)
            self._put_transport(link, channel)

        def failed(error: BaseException) -> None:
            self._links.discard(link)
            if isinstance(error, HandshakeError):
                log.warning("refused %s", error)
            self._wake()

        try:
            link = Link(sock, "server", self._context, self._trust_peer, opened, failed)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                return  # it was reset before it could be prepared
            raise
        if not link.over:
            self._links.add(link)

    def _put_transport(self, link: Link, channel: Channel) -> None:
        try:
            protocol = self._factory()
        except (SystemExit, KeyboardInterrupt):
            link.abort()
            raise
        except BaseException as error:  # noqa: BLE001 – the program's: it costs this connection
            self._loop.call_exception_handler(
                {"message": "Error on transport creation for incoming connection", "exception": error}
            )
            link.abort()
            self._wake()
            return
        transport = ZeroCopyTransport(link, channel, protocol)
        self._transports.add(transport)
        transport.on_lost = self._forget
        link.accept(channel)

    def _forget(self, transport: ZeroCopyTransport) -> None:
        self._transports.discard(transport)
        self._wake()

    def _wake(self) -> None:
        if self._sockets is None and not self._transports and not self._links and self._waiters is not None:
            waiters, self._waiters = self._waiters, None
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    # -- the end -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop listening. Connections live on; peers that are still shaking hands are dropped."""
        socks, self._sockets = self._sockets, None
        if socks is None:
            return
        for sock in socks:
            if self._listening:
                self._loop.remove_reader(sock.fileno())
            sock.close()
        self._listening = False
        for name in self._files:
            name.remove()
        for link in list(self._links):
            link.abort()
        if self._forever is not None and not self._forever.done():
            self._forever.cancel()
        self._wake()

    async def wait_closed(self) -> None:
        """Wait until it is closed and its last connection is over."""
        if self._waiters is None:
            return
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def close_clients(self) -> None:
        """Close every connection, gracefully."""
        for transport in list(self._transports):
            transport.close()

    def abort_clients(self) -> None:
        """Drop every connection."""
        for transport in list(self._transports):
            transport.abort()

    async def __aenter__(self) -> "ZeroCopyServer":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await self.wait_closed()

    def __repr__(self) -> str:
        return f"<ZeroCopyServer sockets={self.sockets!r}>"


async def create_server(
    protocol_factory: ProtocolFactory,
    host: str | Sequence[str] | None = None,
    port: int | None = None,
    *,
    sock: socket.socket | None = None,
    backlog: int = 100,
    ssl: Any = None,
    start_serving: bool = True,
    context: Context | None = None,
    trust_peer: bool = False,
    **options: Any,
) -> ZeroCopyServer:
    """As ``loop.create_server``, for peers that connect with :func:`create_connection` or its kin.

    The other ``options`` (``family``, ``flags``, ``reuse_address``, ``reuse_port`` …) are the loop's own.
    The protocol is made when a peer has asked for a byte stream; who does not within the context's
    ``handshake_seconds`` is refused, and a warning logged. See :func:`create_connection` for the rest.
    """
    refuse_tls(ssl, options)
    loop = asyncio.get_running_loop()
    if sock is not None:
        if host is not None or port is not None:
            raise ValueError("host/port and sock can not be specified at the same time")
        check_stream_socket(sock)
        socks = [sock]
    else:
        socks = await _bind(loop, protocol_factory, host, port, options)
    server = ZeroCopyServer(socks, protocol_factory, backlog, context or context_of(loop), trust_peer)
    return await _started(server, start_serving)


async def create_unix_server(
    protocol_factory: ProtocolFactory,
    path: "str | bytes | os.PathLike[str] | None" = None,
    *,
    sock: socket.socket | None = None,
    backlog: int = 100,
    ssl: Any = None,
    start_serving: bool = True,
    cleanup_socket: bool = True,
    context: Context | None = None,
    trust_peer: bool = False,
    **options: Any,
) -> ZeroCopyServer:
    """As ``loop.create_unix_server`` of Python 3.13; see :func:`create_server`.

    A dead server's socket is replaced. Closing removes the file, unless ``cleanup_socket`` is false.
    """
    refuse_tls(ssl, options)
    if options:
        raise TypeError(f"unknown options: {', '.join(options)}")
    if path is not None:
        if sock is not None:
            raise ValueError("path and sock can not be specified at the same time")
        try:
            sock = listen_unix(os.fspath(path), backlog).sock
        except ConnectionLostError as error:
            raise error.__cause__ or error from None  # asyncio's programs look at its class and errno
    elif sock is None:
        raise ValueError("path was not specified, and no sock specified")
    else:
        check_stream_socket(sock, socket.AF_UNIX)
    server = ZeroCopyServer(
        [sock],
        protocol_factory,
        backlog,
        context or context_of(asyncio.get_running_loop()),
        trust_peer,
        cleanup_socket,
    )
    return await _started(server, start_serving)


async def _bind(
    loop: asyncio.AbstractEventLoop, factory: ProtocolFactory, host: Any, port: Any, options: dict[str, Any]
) -> list[socket.socket]:
    """Let the loop resolve and bind by its rules, and keep duplicates of what it has bound."""
    server = await loop.create_server(factory, host, port, start_serving=False, **options)
    try:
        return [socket.socket(fileno=os.dup(sock.fileno())) for sock in server.sockets]
    finally:
        server.close()


async def _started(server: ZeroCopyServer, start_serving: bool) -> ZeroCopyServer:
    if start_serving:
        try:
            await server.start_serving()
        except BaseException:
            server.close()
            raise
    return server
