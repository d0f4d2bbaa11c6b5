"""``open_connection`` and ``start_server``: asyncio's own StreamReader and StreamWriter on our transport."""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from .connecting import create_connection, create_unix_connection
from .serving import ZeroCopyServer, create_server, create_unix_server

_LIMIT = 2**16  # as in asyncio
Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def open_connection(
    host: str | None = None, port: int | str | None = None, *, limit: int = _LIMIT, **options: Any
) -> Streams:
    """As ``asyncio.open_connection``; ``options`` are those of :func:`create_connection`.

    ``writer.write`` takes pool buffers, too: ``await writer.transport.acquire(n)``, fill, write, ``drain``.
    """
    reader, protocol = _reader(limit, None)
    transport, _ = await create_connection(lambda: protocol, host, port, **options)
    return reader, asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop())


async def open_unix_connection(
    path: "str | bytes | os.PathLike[str] | None" = None, *, limit: int = _LIMIT, **options: Any
) -> Streams:
    """As ``asyncio.open_unix_connection``; see :func:`open_connection`."""
    reader, protocol = _reader(limit, None)
    transport, _ = await create_unix_connection(lambda: protocol, path, **options)
    return reader, asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop())


async def start_server(
    client_connected_cb: Connected,
    host: str | Sequence[str] | None = None,
    port: int | None = None,
    *,
    limit: int = _LIMIT,
    sock: socket.socket | None = None,
    **options: Any,
) -> ZeroCopyServer:
    """As ``asyncio.start_server``; ``options`` are those of :func:`create_server`."""
    return await create_server(
        lambda: _reader(limit, client_connected_cb)[1], host, port, sock=sock, **options
    )


async def start_unix_server(
    client_connected_cb: Connected,
    path: "str | bytes | os.PathLike[str] | None" = None,
    *,
    limit: int = _LIMIT,
    **options: Any,
) -> ZeroCopyServer:
    """As ``asyncio.start_unix_server``; see :func:`start_server`."""
    return await create_unix_server(lambda: _reader(limit, client_connected_cb)[1], path, **options)


def _reader(
    limit: int, connected: Connected | None
) -> tuple[asyncio.StreamReader, asyncio.StreamReaderProtocol]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    return reader, asyncio.StreamReaderProtocol(reader, connected, loop=loop)
