"""The asyncio driver of an engine whose connection carries one byte stream.

A byte stream is one stream of one connection (docs/embedding.md): the client opens it with the method BYTES
as soon as the handshake is done, the server answers, and then both ends have a transport.
"""

import asyncio
import logging
import math
import socket
from collections.abc import Callable
from typing import Final

from zcserver.channel import Channel
from zcserver.connection import endpoint_name
from zcserver.context import Context
from zcserver.drivers import AsyncioLoop
from zcserver.engine import Engine
from zcserver.errors import ConnectionLostError, HandshakeError
from zcserver.kernel.sockets import prepare
from zcserver.memory import Principal, PrincipalKind
from zcserver.receiving.inbox import CHUNKS
from zcserver_protocol.errors import ErrorCode

BYTE_STREAM: Final = "BYTES"
"""The method of the stream that carries a byte stream."""

# A timer that comes so many seconds late tells of a loop that was kept from its work.
_LATE: Final = 0.1

log = logging.getLogger("zcserver")


class Link:
    """A socket, its engine, and the one channel between two transports.

    ``opened(channel)`` is called once, when both ends have agreed on the byte stream; ``failed(error)`` when
    that did not come about. From then on ``delivered()`` is called after every read, and ``ended()`` once:
    then ``over`` is set, and ``error`` unless both ends took leave. The socket is closed before that.
    Create it inside the event loop. Raises OSError for a socket that is neither TCP nor Unix, and MisuseError
    when another thread uses the context.
    """

    def __init__(
        self,
        sock: socket.socket,
        role: str,
        context: Context,
        trust_peer: bool,
        opened: Callable[[Channel], object],
        failed: Callable[[BaseException], object],
    ) -> None:
        congestion = prepare(sock, context.capabilities, context.kernel)
        self.sock = sock
        self.context = context
        self.trusts_peer = trust_peer
        self.name = endpoint_name(sock, remote=True)
        try:
            self.peername = sock.getpeername()
        except OSError:  # it is gone already
            self.peername = None
        self.principal = context.trusted if trust_peer else Principal(self.name, PrincipalKind.CONNECTION)
        self.channel: Channel | None = None
        self.over = False
        self.error: BaseException | None = None
        self.delivered: Callable[[], object] = lambda: None
        self.ended: Callable[[], object] = lambda: None
        self._opened: Callable[[Channel], object] | None = opened
        self._failed = failed
        self._client = role == "client"
        self._loop = AsyncioLoop()
        self.arm_writer = self._loop.arm_writer
        self.wake_at = self._loop.wake_at
        self.soon = self._loop.soon
        self.threadsafe = self._loop.threadsafe
        self.offload = self._loop.offload
        self.time = self._loop.time
        self.detach = self._loop.detach
        context.join()
        self.engine = engine = Engine(sock, role, context, self.principal, self)
        engine.statistics.congestion_control = congestion
        self._deadline = self._within(context.limits.handshake_seconds)
        self._loop.attach(sock.fileno(), engine.on_readable, engine.on_writable, engine.on_time)
        engine.start()

    def accept(self, channel: Channel) -> None:
        """The server's answer, once it has a transport."""
        self.engine.reply(channel, {})
        self.engine.grant_first(channel)

    def close(self) -> None:
        """Deliver what is queued, however long the peer takes for it as long as it lives; then part."""
        self.engine.close(math.inf)

    def part(self) -> None:
        """The byte stream is over before its end: take leave, within the context's ``close_seconds``."""
        self.engine.close(self.time() + self.context.close_seconds)

    def abort(self, error: BaseException | None = None) -> None:
        """Drop the connection now."""
        self.engine.abort(error or ConnectionLostError(f"the connection {self.name} was aborted by this end"))

    def _within(self, seconds: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, self._too_late, self.time() + seconds)

    def _too_late(self, due: float) -> None:
        late = self.time() - due
        if late > _LATE:  # this loop was busy elsewhere: the peer's answer may wait to be read
            self._deadline = self._within(late)
            return
        what = "did not answer" if self._client else "did not ask for a byte stream"
        seconds = self.context.limits.handshake_seconds
        error = HandshakeError(f"{self.name} {what} within {seconds:g} s: is it a zcserver?")
        self.abort(self.engine.error or error)  # it may be known already what it is instead

    # -- what the engine calls (see engine.Driver) ---------------------------------------------------

    def stream_opened(self, channel: Channel) -> None:
        if self._client or self.channel is not None or channel.state.method != BYTE_STREAM:
            reason = f"this port takes one byte stream a connection, opened by the client ({BYTE_STREAM})"
            self.engine.reset(channel, ErrorCode.REFUSED, reason)
        else:
            self.channel = channel

    def deliver(self) -> None:
        if self._opened is None:
            self.delivered()
        elif self._client:
            self._request()
        elif self.channel is not None and self.channel.error is not None:
            self.abort(HandshakeError(f"{self.name} gave its byte stream up at once: {self.channel.error}"))
        elif self.channel is not None:
            self._agreed(self.channel)

    def _request(self) -> None:
        channel = self.channel
        if channel is None:
            if self.engine.codec.openable:
                self.channel = self.engine.open(BYTE_STREAM, "/", {})
        elif channel.reply is not None:
            self._agreed(channel)
        elif channel.error is not None:
            self.abort(HandshakeError(f"{self.name} takes no byte stream: {channel.error}"))

    def _agreed(self, channel: Channel) -> None:
        opened, self._opened = self._opened, None
        self._deadline.cancel()
        channel.inbox.mode = CHUNKS
        assert opened is not None
        opened(channel)

    def changed(self) -> None:
        """Whatever it is, it is looked at in `deliver`."""

    def closed(self, error: BaseException | None) -> None:
        self.context.leave()
        self._deadline.cancel()
        self.over = True
        self.error = error
        if self._opened is None:
            self.ended()
        else:
            self._opened = None
            self._failed(error or HandshakeError(f"{self.name} ended the connection before it was used"))
