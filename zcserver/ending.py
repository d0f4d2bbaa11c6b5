"""How a connection ends: by taking leave, or because something went wrong.

Taking leave (rule 11): GOAWAY both ways, what is queued is delivered and acknowledged, then FIN both ways.
Whatever goes wrong becomes one error, which everything unfinished fails with. All ways lead to ``_close``.
"""

import contextlib
import errno
import os
import socket
import weakref
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Final

from zcserver_protocol.errors import ErrorCode, LocalProtocolError, NotZCPError, RemoteProtocolError

from .context import Context
from .errors import ConnectionLostError, HandshakeError, PeerTimeoutError
from .memory import PrincipalKind
from .receiving.receiver import Receiver
from .sending.lanes import Lanes
from .sending.message import end_marker
from .strangers import recognise

if TYPE_CHECKING:
    from .channel import Channel
    from .engine import Driver, Engine

# After a refusal is written, how long the peer may take to read it before the socket is closed (seconds).
_LINGER: Final = 1.0
_endings: "Final[weakref.WeakSet[Ending]]" = weakref.WeakSet()


class Phase(Enum):
    """Where the connection is in its life; it only moves downwards."""

    RUNNING = "running"
    CLOSING = "closing"  # GOAWAY is sent, what was queued is still delivered
    FINISHED = "finished"  # both ends are done: our FIN is sent, the peer's is awaited
    LINGERING = "lingering"  # the peer broke the protocol: it was told why, and may read that
    CLOSED = "closed"


class Ending:
    """Owned by the engine, which tells it what it meets, and looks at ``phase`` before it reads or writes.

    ``error`` is what ended the connection; None while it lives, and when both ends took leave. ``loss`` tells
    whether that cost anything of ours: bytes not acknowledged, or a stream that we had not ended. Call
    ``overdue`` at ``deadline`` (the loop's clock, seconds).
    """

    def __init__(
        self,
        engine: "Engine",
        sock: socket.socket,
        lanes: Lanes,
        receiver: Receiver,
        context: Context,
        driver: "Driver",
    ) -> None:
        self.phase = Phase.RUNNING
        self.error: BaseException | None = None
        self.loss = False
        self.deadline = inf
        self._engine = engine
        self._codec = engine.codec
        self._sender = engine.sender
        self._name = engine.name
        self._sock = sock
        self._lanes = lanes
        self._receiver = receiver
        self._context = context
        self._driver = driver
        _endings.add(self)

    # -- taking leave --------------------------------------------------------------------------------

    def close(self, deadline: float) -> None:
        """Begin a graceful close (rule 11): deliver what is queued, then part; abort at ``deadline``."""
        if self.phase is not Phase.RUNNING:
            return
        if self._codec.peer is None:
            self._close(None)
            return
        self.phase = Phase.CLOSING
        self.deadline = deadline
        self._codec.goaway(ErrorCode.NO_ERROR, "")
        self._engine.flush()

    def approach(self) -> None:
        """One end or both take leave, and something was written: go on as far as that allows."""
        codec = self._codec
        if self.phase is Phase.CLOSING:
            self._end_streams()
        elif self.phase is Phase.RUNNING and not codec.streams and not codec.goaway_sent:
            codec.goaway(ErrorCode.NO_ERROR, "")
            self._engine.flush_soon()
        if codec.finished and self.phase is not Phase.FINISHED and self._sender.idle:
            self.phase = Phase.FINISHED
            if self.deadline == inf:
                self.deadline = self._driver.time() + self._context.close_seconds
            with contextlib.suppress(OSError):  # the peer's FIN may have come first
                self._sock.shutdown(socket.SHUT_WR)

    def _end_streams(self) -> None:
        delivered = not self._sender.ledger
        for state in list(self._codec.streams.values()):
            channel: Channel = state.owner
            if channel.handled:
                continue  # a handler still works on it: running transfers are finished first
            if channel.error is not None:
                continue  # given up; its RESET follows the frame that was begun
            if channel.last_completion is None:
                self._engine.send(channel, end_marker())
            elif delivered and not channel.outgoing:
                # Nothing more from us; what the peer would still send, nobody here will read.
                self._engine.reset(channel, ErrorCode.CANCELLED, "the receiver closed the connection")

    def end_of_input(self) -> None:
        """The peer's FIN was read."""
        if self.phase is Phase.CLOSED:
            return
        if self._codec.finished:
            self._close(None)
        elif self._codec.peer is None:
            self._close(
                HandshakeError(
                    f"{self._name} closed the connection during the handshake: it may not speak ZCP/1"
                )
            )
        else:
            self._close(
                ConnectionLostError(f"{self._name} closed the connection before the transfer was complete")
            )

    def overdue(self) -> None:
        """The deadline has passed."""
        if self.phase is Phase.LINGERING:
            self._close(self.error)
            return
        left = self._sender.ledger.framed - self._sender.ledger.acknowledged
        undone = f"not acknowledged {left} bytes" if left else "neither stopped sending nor taken leave"
        self.abort(PeerTimeoutError(f"{self._name} had {undone} by the closing deadline"))

    # -- what goes wrong -----------------------------------------------------------------------------

    def lost(self, error: OSError) -> None:
        """The socket is dead."""
        if self.phase is Phase.FINISHED:
            self._close(None)  # everything was delivered both ways; only the farewell went wrong
            return
        refused = self._codec.peer is None and error.errno == errno.ECONNABORTED  # by a GOAWAY
        kind = HandshakeError if refused else ConnectionLostError
        self._close(kind(f"the connection to {self._name} was lost: {error.strerror or error}"))

    def hear_out(self, error: OSError) -> None:
        """Writing failed: the peer is gone, but what it said last is still there to be read.

        It may have acknowledged everything, or told why it goes.
        """
        if self._sock.family == socket.AF_UNIX:  # where it could go on for ever
            self._sock.shutdown(socket.SHUT_RD)
        try:
            while not self._receiver.reading and self._receiver.read() and self._receiver.heard:
                pass
        except RemoteProtocolError:
            pass  # said to somebody who is gone
        except OSError as last:
            if last.errno == errno.ECONNABORTED:
                error = last
        self.lost(error)

    def broken(self, error: BaseException) -> None:
        """A bug of ours, or KeyboardInterrupt: the state is unknown, so the connection is over."""
        lost = ConnectionLostError(f"the connection {self._name} was given up: {error!r}")
        lost.__cause__ = error
        self._close(lost)

    def refuse(self, error: RemoteProtocolError) -> None:
        """The peer broke the protocol or fell silent: tell it, give it a moment to read that, close."""
        kind: type[ConnectionLostError] = ConnectionLostError
        if error.code == ErrorCode.TIMEOUT:
            kind = PeerTimeoutError
        if self._codec.peer is None:
            kind = HandshakeError
        with contextlib.suppress(LocalProtocolError):  # the codec has said so itself, if it was its finding
            self._codec.goaway(error.code, str(error))
        words, answer = str(error), b""
        if isinstance(error, NotZCPError):
            what, answer = recognise(error.began)
            words = f"{error} ({what})"
        self.error = kind(f"{self._name}: {words}")
        self.error.__cause__ = error
        self.phase = Phase.LINGERING
        self._fail_streams(self.error)  # the application need not wait until the socket is closed
        try:
            if answer:
                self._lanes.control = memoryview(answer)
                self._lanes.send_control(False)
            else:
                self._sender.farewell()
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:  # it is gone already, or takes nothing
            self._close(self.error)
            return
        if error.code == ErrorCode.TIMEOUT:
            self._close(self.error)
            return
        self.deadline = self._driver.time() + _LINGER
        self._engine.stop_writing()

    def linger(self) -> None:
        """Read on so that closing sends no RST, which would destroy the refusal before it is read."""
        scratch = bytearray(65536)
        try:
            while self._context.kernel.recv_into(self._sock, scratch):
                pass
        except BlockingIOError:
            return
        except OSError:
            pass  # reset by the peer: the same end
        self._close(self.error)

    def abort(self, error: BaseException) -> None:
        """Drop the connection now; everything unfinished fails with ``error``."""
        if self.phase is not Phase.CLOSED:
            with contextlib.suppress(OSError):  # an acknowledgement may be due, and still go through
                self._sender.farewell()
            self._close(error)

    # -- the end itself ------------------------------------------------------------------------------

    def _close(self, error: BaseException | None) -> None:
        if self.phase is Phase.CLOSED:
            return  # a callback of the application's came first, while this way was taken
        self.phase = Phase.CLOSED
        self.error = error
        self._driver.detach()
        self._sock.close()
        self._receiver.close()
        # Only now may memory be cut loose: DONTNEED destroys our own content too (rule 2).
        reason = error if error is not None else ConnectionLostError(f"the connection {self._name} is closed")
        self.loss |= bool(self._sender.ledger)
        self._sender.fail(reason)
        self._fail_streams(reason)
        principal = self._engine.principal
        if principal.kind is PrincipalKind.CONNECTION:  # any other has connections besides this one
            self._context.pool.retire(principal)
        self._driver.closed(error)

    def _fail_streams(self, error: BaseException) -> None:
        for state in list(self._codec.streams.values()):
            channel: Channel = state.owner
            if channel.error is None:
                self.loss |= bool(channel.outgoing) or channel.last_completion is None
            channel.fail(error)


def _disown() -> None:
    """In a forked child: the sockets are the parent's, and nothing done here may reach the peer."""
    for ending in _endings:
        ending.phase = Phase.CLOSED
        ending.error = ConnectionLostError("this connection is the parent process's: open one after the fork")


os.register_at_fork(after_in_child=_disown)
