"""The client's side: sockets by the event loop's own means, then the handshake, then a transport."""

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

from zcserver.channel import Channel
from zcserver.context import Context
from zcserver.errors import MisuseError

from .link import Link
from .shared import context_of
from .transport import ZeroCopyTransport

ProtocolFactory = Callable[[], asyncio.BaseProtocol]
Pair = tuple[ZeroCopyTransport, Any]


async def create_connection(
    protocol_factory: ProtocolFactory,
    host: str | None = None,
    port: int | str | None = None,
    *,
    ssl: Any = None,
    sock: socket.socket | None = None,
    context: Context | None = None,
    trust_peer: bool = False,
    **options: Any,
) -> Pair:
    """As ``loop.create_connection``, to a peer that listens with :func:`create_server` or its kin.

    The other ``options`` (``family``, ``local_addr``, ``happy_eyeballs_delay`` …) are the loop's own. It
    returns when both ends have agreed on the byte stream. ``context`` holds pool and settings (default: one
    that all of the loop's share); ``trust_peer`` lets ``bytes`` go by reference, see :class:`connect`.

    Raises OSError as asyncio does, HandshakeError when the other end carries no byte streams.
    """
    refuse_tls(ssl, options)
    if sock is None:
        sock = await _dial(host, port, options)
    elif host is not None or port is not None:
        raise ValueError("host/port and sock can not be specified at the same time")
    else:
        check_stream_socket(sock)
    return await open_link(sock, "client", protocol_factory, context, trust_peer)


async def create_unix_connection(
    protocol_factory: ProtocolFactory,
    path: "str | bytes | os.PathLike[str] | None" = None,
    *,
    ssl: Any = None,
    sock: socket.socket | None = None,
    context: Context | None = None,
    trust_peer: bool = False,
    **options: Any,
) -> Pair:
    """As ``loop.create_unix_connection``; see :func:`create_connection`."""
    refuse_tls(ssl, options)
    if options:
        raise TypeError(f"unknown options: {', '.join(options)}")
    if path is None:
        if sock is None:
            raise ValueError("no path and sock were specified")
        check_stream_socket(sock, socket.AF_UNIX)
    elif sock is not None:
        raise ValueError("path and sock can not be specified at the same time")
    else:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, os.fspath(path))
        except BaseException:
            sock.close()
            raise
    return await open_link(sock, "client", protocol_factory, context, trust_peer)


async def connect_accepted_socket(
    protocol_factory: ProtocolFactory,
    sock: socket.socket,
    *,
    ssl: Any = None,
    context: Context | None = None,
    trust_peer: bool = False,
    **options: Any,
) -> Pair:
    """As ``loop.connect_accepted_socket``: the server's end of a socket that was accepted elsewhere."""
    refuse_tls(ssl, options)
    if options:
        raise TypeError(f"unknown options: {', '.join(options)}")
    check_stream_socket(sock)
    return await open_link(sock, "server", protocol_factory, context, trust_peer)


async def open_link(
    sock: socket.socket,
    role: str,
    protocol_factory: ProtocolFactory,
    context: Context | None,
    trust_peer: bool,
) -> Pair:
    """Shake hands over a connected socket, which is taken over, and put a transport on it."""
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[Channel] = loop.create_future()

    def succeed(channel: Channel) -> None:
        if not opened.done():
            opened.set_result(channel)

    def fail(error: BaseException) -> None:
        if not opened.done():
            opened.set_exception(error)

    try:
        link = Link(sock, role, context or context_of(loop), trust_peer, succeed, fail)
    except BaseException:
        sock.close()
        raise
    try:
        channel = await opened
        protocol = protocol_factory()
        transport = ZeroCopyTransport(link, channel, protocol)
        if role == "server":
            link.accept(channel)
        await transport.begun
    except BaseException:
        link.abort()
        raise
    return transport, protocol


async def _dial(host: str | None, port: int | str | None, options: dict[str, Any]) -> socket.socket:
    """A connected socket of our own: the loop connects by its rules (names, happy eyeballs), we keep a
    duplicate, for uvloop refuses descriptors that its own transports hold."""
    loop = asyncio.get_running_loop()
    connect: Any = loop.create_connection  # its stubs know fewer combinations than it
    transport, handover = await connect(lambda: _Handover(loop), host, port, **options)
    try:
        sock = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
    finally:
        transport.abort()
    try:
        await handover.closed
    except BaseException:
        sock.close()
        raise
    return sock


class _Handover(asyncio.Protocol):
    """Reads nothing: not a byte may be lost on the way from the loop's transport to ours."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.closed = loop.create_future()

    def connection_made(self, transport: Any) -> None:
        transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


def check_stream_socket(sock: socket.socket, family: int | None = None) -> None:
    """ValueError, in asyncio's words, unless it is a stream socket (of this family)."""
    if sock.type != socket.SOCK_STREAM or family not in (None, sock.family):
        kind = "A Stream Socket" if family is None else "A UNIX Domain Stream Socket"
        raise ValueError(f"{kind} was expected, got {sock!r}")


def refuse_tls(ssl: Any, options: dict[str, Any]) -> None:
    """Drop the options that only matter with TLS; MisuseError when TLS is asked for."""
    for name in ("server_hostname", "ssl_handshake_timeout", "ssl_shutdown_timeout"):
        if options.get(name) is None:
            options.pop(name, None)
        elif not ssl:
            raise ValueError(f"{name} is only meaningful with ssl")
    if ssl:
        raise MisuseError("byte streams over ZCP/1 have no TLS: leave ssl out, or use asyncio's transports")
