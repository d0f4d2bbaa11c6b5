"""Zero-copy TCP sending for asyncio, uvloop and trio on Linux, with acknowledgement-driven buffer reuse.

    async with zcserver.connect("127.0.0.1", 7420) as connection:
        stream = await connection.open("PUBLISH", "/frames")
        buffer = await connection.acquire(1 << 20)     # a page-aligned pool buffer
        fill(buffer.view)
        completion = await stream.send(buffer)         # queued by reference; the buffer is gone for you
        await completion.wait()                        # the peer has copied the last byte

    async with zcserver.Client("zc://127.0.0.1/") as client:   # files of a `zcserver serve`
        await client.fetch("/big.bin", Path("big.bin"))

``docs/design.md`` walks a message through the modules.
"""

from zcserver_protocol.errors import ErrorCode

from .byte_stream import ByteStream, ByteStreamListener, connect_byte_stream, listen_byte_streams
from .client import Client
from .connection import DEFAULT_PORT, Connection
from .context import Context
from .endpoints import connect, serve
from .errors import (
    BufferStateError,
    ConnectionLostError,
    HandshakeError,
    MessageTooLargeError,
    MisuseError,
    PeerTimeoutError,
    PoolTimeoutError,
    RequestTooLargeError,
    StreamLostError,
    StreamResetError,
    TransferError,
    ViewsAliveError,
    ZCServerError,
)
from .memory import Buffer
from .receiving.message import Message
from .sending.batch import Batch
from .sending.completion import Completion
from .stream import Stream
from .transport import (
    ZeroCopyServer,
    ZeroCopyTransport,
    connect_accepted_socket,
    create_connection,
    create_server,
    create_unix_connection,
    create_unix_server,
    open_connection,
    open_unix_connection,
    sendfile,
    start_server,
    start_unix_server,
)

__all__ = [
    "DEFAULT_PORT",
    "Batch",
    "Buffer",
    "BufferStateError",
    "ByteStream",
    "ByteStreamListener",
    "Client",
    "Completion",
    "Connection",
    "ConnectionLostError",
    "Context",
    "ErrorCode",
    "HandshakeError",
    "Message",
    "MessageTooLargeError",
    "MisuseError",
    "PeerTimeoutError",
    "PoolTimeoutError",
    "RequestTooLargeError",
    "Stream",
    "StreamLostError",
    "StreamResetError",
    "TransferError",
    "ViewsAliveError",
    "ZCServerError",
    "ZeroCopyServer",
    "ZeroCopyTransport",
    "connect",
    "connect_accepted_socket",
    "connect_byte_stream",
    "create_connection",
    "create_server",
    "create_unix_connection",
    "create_unix_server",
    "listen_byte_streams",
    "open_connection",
    "open_unix_connection",
    "sendfile",
    "serve",
    "start_server",
    "start_unix_server",
]
