"""A peer that a test plays itself: it speaks ZCP/1 through the codec, and reads only when it is told to.

That is the gate of the safety tests: whatever the sender has put into the socket stays there, acknowledged
by TCP or not, until the test lets its peer read.
"""

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from typing import Any

import anyio
import anyio.lowlevel
from crc32c import crc32c

import zcserver
from zcserver.context import Context
from zcserver.stream import Stream
from zcserver_protocol.codec import Codec, Limits
from zcserver_protocol.events import Data
from zcserver_protocol.frames import CRC, END_MESSAGE, END_STREAM, FEATURE_CRC32C, HEADER_SIZE
from zcserver_protocol.streams import StreamState

MIB = 1 << 20
# Seconds after which something that should happen is held to have hung. Mutants are given less.
DEADLINE = float(os.environ.get("ZCSERVER_TEST_DEADLINE", "60"))


def deadline() -> Any:
    """Cut what hangs; a test that hangs fails with TimeoutError."""
    return anyio.fail_after(DEADLINE)


async def until(condition: Callable[[], object]) -> None:
    """Let everything else run until ``condition`` holds. Put it under a ``deadline``."""
    while not condition():
        await anyio.lowlevel.checkpoint()


class RawPeer:
    """One end of a connection. ``read_now`` takes what is there, ``flush`` writes the control frames due.

    ``messages`` are the whole messages by stream id, ``log`` the arrivals in order: names of events, and
    ``("DATA", stream, payload bytes)`` for each whole frame. Where checksums are agreed on, every frame that
    carries anything must have the right one.
    """

    def __init__(self, sock: socket.socket, role: str = "client", limits: Limits | None = None) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.codec = Codec(role, limits or Limits(), 0.0)
        self.messages: dict[int, list[bytes]] = {}
        self.log: list[Any] = []
        self.events: list[Any] = []
        self.fin = False
        self._partial: dict[int, bytearray] = {}
        self._staged = b""
        self._frame = (0, 0, 0)  # stream id (0: finished), flags, length
        self._told_sum = self._sum = 0

    # -- the connection ------------------------------------------------------------------------------

    @classmethod
    async def connect(cls, port: int, limits: Limits | None = None, *, host: str = "127.0.0.1") -> "RawPeer":
        """Dial a server, and have the handshake done when this returns."""
        peer = cls(dial(port, host), "client", limits)
        try:
            await peer.shake_hands()
        except BaseException:
            peer.close()
            raise
        return peer

    async def shake_hands(self) -> None:
        await self.flush()
        while self.codec.peer is None:
            await self.read()
            await self.flush()

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> "RawPeer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- reading -------------------------------------------------------------------------------------

    def read_now(self, most: int = 1 << 62) -> int:
        """Read and understand what is in the socket, at most ``most`` bytes; return how many there were."""
        total = 0
        while total < most and not self.fin:
            try:
                data = self.sock.recv(min(1 << 18, most - total))
            except BlockingIOError:
                break
            self.fin = not data
            total += len(data)
            self._parse(data)
        return total

    async def read(self) -> int:
        """As ``read_now``, after waiting until there is something. EOFError when there will be nothing."""
        if self.fin:
            raise EOFError("the other end has closed its side")
        await anyio.wait_readable(self.sock)
        return self.read_now()

    async def read_until(self, condition: Callable[[], object], *, acknowledge: bool = True) -> None:
        """Read on, acknowledging everything (or only granting and answering), until ``condition`` holds."""
        while not condition():
            await self.read()
            await self.answer(acknowledge)

    async def answer(self, acknowledge: bool = True) -> None:
        if acknowledge:
            self.codec.acknowledge()
        await self.flush()

    def _parse(self, data: bytes) -> None:
        codec = self.codec
        view = memoryview(self._staged + data if self._staged else data)
        position = 0
        while position < len(view):
            if codec.payload_left:
                step = min(codec.payload_left, len(view) - position)
                payload = view[position : position + step]
                if self._sums:
                    self._sum = crc32c(payload, self._sum)
                self.landed(self._frame[0], payload)
                position += step
                if codec.payload_received(step):
                    self._frame_done()
            elif len(view) - position < codec.needs:
                break
            else:
                event = codec.feed(view[position : (position := position + codec.needs)])
                if event.__class__ is Data:
                    stream = event.stream.id if event.stream is not None else 0
                    self._frame = (stream, event.flags, event.length)
                    self._told_sum, self._sum = event.crc, 0
                    if not event.length:
                        self._frame_done()
                elif event is not None:
                    self.events.append(event)
                    self.log.append(type(event).__name__)
        self._staged = bytes(view[position:])

    @property
    def _sums(self) -> bool:
        return FEATURE_CRC32C in self.codec.features

    def landed(self, stream: int, payload: memoryview) -> None:
        self._partial.setdefault(stream, bytearray()).extend(payload)

    def _frame_done(self) -> None:
        stream, flags, length = self._frame
        if self._sums and length:
            assert flags & CRC, f"a frame of {length} bytes without a checksum"
            assert self._told_sum == self._sum, f"a frame of {length} bytes with a wrong checksum"
        self.log.append(("DATA", stream, length))
        if flags & END_MESSAGE and stream:
            self.message(stream)

    def message(self, stream: int) -> None:
        self.messages.setdefault(stream, []).append(bytes(self._partial.pop(stream, b"")))

    def partial(self, stream: int) -> bytes:
        """What has arrived of an unfinished message."""
        return bytes(self._partial.get(stream, b""))

    # -- writing -------------------------------------------------------------------------------------

    async def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[self.sock.send(left) :]
            except BlockingIOError:
                await anyio.wait_writable(self.sock)

    async def flush(self) -> None:
        await self.write(self.codec.take_control())

    async def open(self, credit: int = 1 << 40, path: str = "/") -> StreamState:
        stream = self.codec.open("GET", path, {}, credit)
        await self.flush()
        return stream

    def framed(self, stream: StreamState, payload: bytes, left: int = 0, *, end: bool = False) -> bytes:
        """A frame that counts as written; ``left`` more bytes of its message follow."""
        flags = 0 if left else END_MESSAGE | (END_STREAM if end else 0)
        crc = 0
        if self._sums:
            flags, crc = flags | CRC, crc32c(payload)
        header = bytearray(HEADER_SIZE)
        self.codec.data_header_into(header, 0, stream, len(payload), left, flags, crc)
        self.codec.data_written(HEADER_SIZE + len(payload))
        return bytes(header) + payload

    async def send(self, stream: StreamState, payload: bytes, *, end: bool = False) -> None:
        """One message, in frames as large as credit allows; reads (and acknowledges) while it waits."""
        sent = 0
        while True:
            while (size := min(self.codec.sendable(stream), len(payload) - sent)) <= 0 and (
                size < 0 or payload
            ):
                await self.read()
                await self.answer()
            left = len(payload) - sent - size
            await self.write(self.framed(stream, payload[sent : sent + size], left, end=end))
            sent += size
            if not left:
                return


def dial(port: int, host: str = "127.0.0.1", receive_buffer: int = 0) -> socket.socket:
    """A connected socket: the kernel's queue accepts it at once."""
    sock = socket.socket()
    try:
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect((host, port))
    except BaseException:
        sock.close()
        raise
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class Served:
    """A server under test; its handlers leave their streams to the test."""

    def __init__(self, link: "Link") -> None:
        self.streams: list[Stream] = []
        self.server: Any = None
        self.peers: list[RawPeer] = []
        self._link = link

    async def peer(
        self, credit: int = 1 << 40, limits: Limits | None = None, kind: type[RawPeer] = RawPeer
    ) -> tuple[Stream, Any, StreamState]:
        """A new raw peer with one stream: our end of the stream, the peer, and its end of the stream."""
        with self._link.client_side():
            sock = dial(self.server.port, self._link.host)
        peer = kind(sock, "client", limits)
        self.peers.append(peer)
        await peer.shake_hands()
        ours, theirs = await self.stream(peer, credit)
        return ours, peer, theirs

    async def stream(self, peer: RawPeer, credit: int = 1 << 40) -> tuple[Stream, StreamState]:
        """One more stream of this peer."""
        known = len(self.streams)
        theirs = await peer.open(credit)
        await until(lambda: len(self.streams) > known)
        return self.streams[known], theirs


class Link:
    """Where the two ends are: here, both on the loopback interface."""

    host = "127.0.0.1"

    def server_side(self) -> Any:
        """Sockets made in this block are the server's."""
        return nullcontext()

    def client_side(self) -> Any:
        return nullcontext()


LOOPBACK = Link()


@asynccontextmanager
async def serving(context: Context, link: Link = LOOPBACK, **settings: Any) -> AsyncIterator[Served]:
    """Serve, under the deadline, and drop everything at the end: raw peers take no leave."""
    served = Served(link)
    over = anyio.Event()

    async def handler(stream: Stream) -> None:
        served.streams.append(stream)
        await over.wait()

    with deadline():
        async with AsyncExitStack() as stack:
            with link.server_side():
                served.server = await stack.enter_async_context(
                    zcserver.serve(handler, link.host, 0, context=context, **settings)
                )
            try:
                yield served
            finally:
                for connection in list(served.server.connections):
                    connection.abort()
                for peer in served.peers:
                    peer.close()
                over.set()


def at_rest(stream: Stream) -> bool:
    """Our engine has done all it can: everything is in the socket, or the socket or the window is full."""
    engine = stream.connection.engine
    return not engine._flush_scheduled and (engine._writer_armed or not engine._lanes.train)


def in_socket(stream: Stream) -> bool:
    """Everything queued is in the socket and acknowledged by the peer's TCP (not by the peer)."""
    engine = stream.connection.engine
    return (
        not stream._channel.outgoing
        and engine.sender.ahead == 0
        and stream.connection.context.kernel.unacknowledged(engine._sock) == 0
    )


class Joined:
    """The library at both ends of one connection; the test holds both ends of every stream."""

    def __init__(self) -> None:
        self.accepted: list[Stream] = []
        self.client: Any = None
        self.server: Any = None

    async def stream(self) -> tuple[Stream, Stream]:
        """A new stream: the client's end, which opened it, and the server's."""
        known = len(self.accepted)
        ours = await self.client.open("TEST", "/")
        await until(lambda: len(self.accepted) > known)
        return ours, self.accepted[known]


@asynccontextmanager
async def joined(
    server_context: Context, client_context: Context | None = None, **settings: Any
) -> AsyncIterator[Joined]:
    """Both ends, under the deadline. At the end of the block they close as applications do."""
    ends = Joined()
    over = anyio.Event()

    async def handler(stream: Stream) -> None:
        ends.accepted.append(stream)
        await over.wait()

    with deadline():
        async with (
            zcserver.serve(handler, port=0, context=server_context, **settings) as server,
            zcserver.connect(
                port=server.port, context=client_context or server_context, **settings
            ) as ends.client,
        ):
            (ends.server,) = server.connections
            yield ends
            over.set()
