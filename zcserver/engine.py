"""One connection's machine: told "readable", "writable", "time is now T", it does all that can be done.

It joins the codec (what the bytes mean), the receiver, the sender and the ending, and knows no event loop: a
driver (``connection.py``, ``transport/link.py``) calls it and offers a few services. Nothing here waits.
"""

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, Protocol

from zcserver_protocol import events
from zcserver_protocol.codec import Codec
from zcserver_protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError, TooManyStreams
from zcserver_protocol.frames import END_STREAM, FEATURE_CRC32C
from zcserver_protocol.states import UNANSWERED
from zcserver_protocol.streams import Args, StreamState

from .again import again
from .channel import Channel
from .context import Context
from .ending import Ending, Phase
from .errors import ConnectionLostError, MessageTooLargeError, MisuseError, StreamResetError, printable
from .memory import Principal
from .receiving.inbox import UNDECIDED, Inbox
from .receiving.receiver import Receiver
from .sending.lanes import Lanes
from .sending.message import Outgoing
from .sending.sender import Sender
from .sending.statistics import TransferStatistics

# Queued messages are written together at the end of the loop's turn, or at once when this much has come.
_BATCH: Final = 1 << 20
# Bytes promised for a new stream when receive memory is scarce: its end, and a short message.
_LEAST_CREDIT: Final = 4096


@contextlib.contextmanager
def _misuse() -> Iterator[None]:
    """The codec's "you may not do that now", in this package's words."""
    try:
        yield
    except TooManyStreams:
        raise
    except LocalProtocolError as error:
        raise MisuseError(str(error)) from None


class Driver(Protocol):
    """What an engine needs of its event loop. All callbacks run in the loop's thread."""

    def arm_writer(self, wanted: bool) -> None:
        """Call ``on_writable`` when the socket takes bytes again, or stop doing so."""

    def wake_at(self, deadline: float) -> None:
        """Call ``on_time`` at ``deadline`` (the loop's clock, seconds), instead of any earlier wish."""

    def soon(self, callback: Callable[[], object], /) -> object:
        """Call at the end of the loop's turn."""

    def threadsafe(self, callback: Callable[[], object], /) -> object:
        """As ``soon``, from any thread."""

    def offload(self, work: Callable[[], int], done: Callable[[int, BaseException | None], None]) -> None:
        """Run ``work`` in a thread and ``done`` with its outcome in the loop."""

    def time(self) -> float:
        """The loop's clock, seconds."""

    def stream_opened(self, channel: Channel) -> None:
        """The peer opened a stream."""

    def changed(self) -> None:
        """The handshake was finished, a stream ended, or the peer says goodbye."""

    def deliver(self) -> None:
        """Bytes were read; what is done here is written in one go with the acknowledgement of them."""

    def detach(self) -> None:
        """Unregister the socket: it will be closed next."""

    def closed(self, error: BaseException | None) -> None:
        """The connection is over (cleanly when ``error`` is None). Called once."""


class Engine:
    """Call ``start`` first. Afterwards the driver calls ``on_*``, the application's side the rest."""

    def __init__(
        self, sock: socket.socket, role: str, context: Context, principal: Principal, driver: Driver
    ) -> None:
        self.statistics = TransferStatistics()
        self.name = principal.name
        self.principal = principal
        self._driver = driver
        self._sock = sock
        self._context = context
        self.codec = Codec(role, context.limits, driver.time())
        self._lanes = Lanes(sock, context.kernel, context.pipes, self.codec, self.statistics)
        self.sender = Sender(
            self.codec,
            self._lanes,
            context.pool,
            principal,
            self.name,
            context.limits.window,
            self.statistics,
            context.checksum,
        )
        self._framer = self.sender.framer
        self._framer.offload = driver.offload
        self._framer.resume = self.flush
        self._framer.failed = self._send_failed
        self._receiver = Receiver(
            sock,
            context.kernel,
            self.codec,
            context.receive_memory,
            self.statistics,
            context.checksum,
            self._on_event,
            self._on_news,
            self.grant,
            self._on_refused,
        )
        self.ending = Ending(self, sock, self._lanes, self._receiver, context, driver)
        self._unflushed = 0
        self._flush_scheduled = False
        self._openers_wait = False  # for the peer to allow one more stream
        self._watching = False  # the codec's clock for missing acknowledgements runs
        self._writer_armed = False
        self._wake = float("inf")

    # -- what the driver calls -----------------------------------------------------------------------

    def start(self) -> None:
        """Begin the handshake. The driver has registered the socket for reading."""
        self.flush()

    def on_readable(self) -> None:
        phase = self.ending.phase
        if phase is Phase.CLOSED:
            return
        if phase is Phase.LINGERING:
            self.ending.linger()
            return
        try:
            alive = self._receiver.read()
            if self.ending.phase is Phase.CLOSED:
                return  # by a callback of the application's
            self.codec.tick(self._driver.time(), self._receiver.heard)
        except RemoteProtocolError as error:
            self.ending.refuse(error)
            return
        except OSError as error:
            self.ending.lost(error)
            return
        except BaseException as error:
            self.ending.broken(error)
            raise
        self._flush_scheduled, scheduled = True, self._flush_scheduled  # what is queued there goes out here
        try:
            self._driver.deliver()
        finally:
            self._flush_scheduled = scheduled
        if self.sender.loaded:
            self.flush()
        else:
            self.flush_soon()  # together with what the application answers to what has come
        if not alive:
            self.ending.end_of_input()

    def on_writable(self) -> None:
        if self.ending.phase is not Phase.CLOSED:
            self.flush()

    def on_time(self) -> None:
        """A deadline may have passed."""
        self._wake = float("inf")
        # A process that was stopped for a while finds its deadlines passed and the peer's bytes waiting.
        self.on_readable()
        if self.ending.phase is Phase.CLOSED:
            return
        now = self._driver.time()
        if now >= self.ending.deadline:
            self.ending.overdue()
            return
        if self.ending.phase is Phase.LINGERING:
            self._arm_timer()
            return
        try:
            self.codec.tick(now, False)
        except RemoteProtocolError as error:
            self.ending.refuse(error)
            return
        self.flush()

    def flush(self) -> None:
        """Write what may be written; then see whether the connection's end has come nearer."""
        self._unflushed = 0
        phase = self.ending.phase
        if phase is Phase.CLOSED or phase is Phase.LINGERING:
            return
        try:
            blocked = self.sender.pump()
        except OSError as error:
            self.ending.hear_out(error)
            return
        except BaseException as error:
            self.ending.broken(error)
            raise
        if self._openers_wait and self.codec.openable:
            self._openers_wait = False
            self._driver.changed()
        if blocked is not self._writer_armed:
            self._writer_armed = blocked
            self._driver.arm_writer(blocked)
        if self.ending.phase is not Phase.RUNNING or self.codec.goaway_received:
            self.ending.approach()
        self._arm_timer()

    def _arm_timer(self) -> None:
        if self._watching is not bool(self.sender.ledger):
            self._watching = not self._watching
            self.codec.tick(self._driver.time(), False)
        deadline = self.codec.deadline()
        wanted = self.ending.deadline if deadline is None else min(deadline, self.ending.deadline)
        if wanted < self._wake:
            self._wake = wanted
            self._driver.wake_at(wanted)

    def stop_writing(self) -> None:
        """Nothing will be written any more: be woken for input and for the ending's deadline alone."""
        if self._writer_armed:
            self._writer_armed = False
            self._driver.arm_writer(False)
        self._wake = float("inf")
        self._arm_timer()

    # -- what the application's side calls -----------------------------------------------------------

    @property
    def error(self) -> BaseException | None:
        """What ended the connection; None while it lives, and when both ends took leave."""
        return self.ending.error

    def close(self, deadline: float) -> None:
        """Begin a graceful close: deliver what is queued, then part; abort at ``deadline``."""
        self.ending.close(deadline)

    def abort(self, error: BaseException) -> None:
        """Drop the connection now; everything unfinished fails with ``error``."""
        self.ending.abort(error)

    def check_alive(self) -> None:
        """Raise what ended the connection, if anything did."""
        if self.ending.error is not None:
            raise again(self.ending.error)
        if self.ending.phase is Phase.CLOSED:
            raise ConnectionLostError(f"the connection {self.name} is closed")

    def unacknowledged(self, channel: Channel) -> int:
        """Bytes of this stream that wait, and of the whole connection that are in flight."""
        ledger = self.sender.ledger
        return channel.queued + ledger.framed - ledger.acknowledged

    def open(self, method: str, path: str, args: Args) -> Channel:
        """Open a stream. Raises TooManyStreams when the peer allows no more now, MisuseError for bad args.

        ConnectionLostError when the peer has taken leave.
        """
        if self.codec.goaway_received:
            raise ConnectionLostError(
                f"the peer of {self.name} takes leave: open the stream on a new connection"
            )
        credit = self._context.initial_credit
        if not self._context.receive_memory.reserve(credit):
            credit = 0
        try:
            with _misuse():
                state = self.codec.open(method, path, args, credit)
        except BaseException as error:
            self._context.receive_memory.unreserve(credit)
            self._openers_wait = isinstance(error, TooManyStreams)
            raise
        channel = self._channel(state)
        if not credit:
            self._ask_again(channel)
        self.flush_soon()
        return channel

    def grant_first(self, channel: Channel) -> None:
        """A stream was accepted: let the opener send a little before the application begins to read.

        Of the second half of the account just enough to end it: streams that nobody reads must not starve
        those that are.
        """
        credit = self._context.initial_credit
        memory = self._context.receive_memory
        if not memory.roomy(credit):
            credit = min(credit, _LEAST_CREDIT)
        if memory.reserve(credit):
            self.codec.credit(channel.state, credit)
            self.flush_soon()
        else:
            self._ask_again(channel)

    def _channel(self, state: StreamState) -> Channel:
        context = self._context
        inbox = Inbox(state, context.receive_memory, context.stream_window, context.max_message)
        channel = Channel(state, inbox)
        state.owner = channel
        return channel

    def send(self, channel: Channel, outgoing: Outgoing) -> None:
        """Queue a message. It leaves at the end of the loop's turn, together with its neighbours."""
        if channel.state.send_state == UNANSWERED:
            self.codec.reply(channel.state, {}, 0)
        channel.queued += outgoing.nbytes - outgoing.framed  # (a batch begins behind its first header)
        if outgoing.flags & END_STREAM:
            channel.last_completion = outgoing
        channel.outgoing.append(outgoing)
        if not channel.ready:
            self._framer.make_ready(channel)
            if not channel.ready and not self.codec.control_pending:
                return  # it waits for credit, with whatever was queued before it
        if self._writer_armed:
            return  # the socket is full
        self._unflushed += outgoing.nbytes
        if self._unflushed >= _BATCH:
            self.flush()
        else:
            self.flush_soon()

    def flush_soon(self) -> None:
        """Control frames are due."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._driver.soon(self._scheduled_flush)

    def _scheduled_flush(self) -> None:
        self._flush_scheduled = False
        self.flush()

    def reply(self, channel: Channel, args: Args) -> None:
        """Answer the peer's OPEN, once and before anything is sent. Raises MisuseError otherwise."""
        with _misuse():
            self.codec.reply(channel.state, args, 0)
        self.flush_soon()

    def commit(self, channel: Channel, count: int) -> None:
        """Tell the peer that the application has processed ``count`` messages of this stream in all."""
        with _misuse():
            self.codec.commit(channel.state, count)
        self.flush_soon()

    def grant(self, channel: Channel) -> None:
        """The application took something, or begins to read: promise the peer more if that is due."""
        if not self._promise(channel) and not channel.starving:
            self._set_starving(channel, True)
            self._ask_again(channel)

    def _promise(self, channel: Channel) -> bool:
        """False if more is due to the peer, and receive memory is full."""
        inbox = channel.inbox
        if inbox.ended or inbox.discarding:
            return True
        more = inbox.grant()
        if more > 0:
            self.codec.credit(channel.state, channel.state.recv_credit + more)
            self.flush_soon()
        if more >= 0 and channel.starving:
            self._set_starving(channel, False)
        return more >= 0

    def _set_starving(self, channel: Channel, starving: bool) -> None:
        channel.starving = starving
        if channel.wants_news:  # whoever waits for more does so with a deadline, or without one, from now on
            channel.on_news()

    def _ask_again(self, channel: Channel) -> None:
        """Once some receive memory has come back."""
        regrant = partial(self._regrant, channel.state.id)  # (it keeps no stream alive that is over)
        self._context.receive_memory.when_free(partial(self._driver.threadsafe, regrant))

    def _regrant(self, number: int) -> None:
        state = self.codec.streams.get(number)
        if state is None or self.ending.phase is Phase.CLOSED:
            return
        channel: Channel = state.owner
        if channel.inbox.discarding:
            return
        if channel.inbox.mode == UNDECIDED and not channel.state.recv_credit:
            self.grant_first(channel)
        elif not self._promise(channel):
            self._ask_again(channel)

    def reset(self, channel: Channel, code: int, reason: str) -> None:
        """Give the stream up, both ways. A frame that was begun is finished first."""
        if self.ending.phase is Phase.CLOSED or channel.error is not None or self._gone(channel):
            return
        error = StreamResetError(code, reason)
        self._give_up(channel, error, partial(self._send_reset, channel, code, reason))
        self.flush_soon()

    def _give_up(
        self, channel: Channel, error: BaseException, then: Callable[[], object] | None = None
    ) -> None:
        """The stream has failed, both ways. Its frames are still sent, ``then`` is called after them."""
        channel.error = channel.error or error  # first, for the callbacks of what fails now
        self.sender.cut(channel, error, then)
        channel.fail(error)

    def _gone(self, channel: Channel) -> bool:
        return channel.state.id not in self.codec.streams

    def _send_reset(self, channel: Channel, code: int, reason: str) -> None:
        if not self._gone(channel):
            self.codec.reset(channel.state, code, reason)
            self._driver.changed()
            self.flush_soon()

    # -- what comes in -------------------------------------------------------------------------------

    def _on_event(self, event: events.Event) -> None:
        match event:
            case events.Acked():
                self.sender.acknowledged(event.upto)
            case events.Credited():
                channel = event.stream.owner
                self._framer.make_ready(channel)
                if channel.room_below >= 0:
                    channel.on_room()
            case events.Opened():
                channel = self._channel(event.stream)
                self._driver.stream_opened(channel)
            case events.Replied():
                channel = event.stream.owner
                channel.reply = dict(event.args)
                channel.on_reply()
                self._framer.make_ready(channel)
            case events.Reset():
                channel = event.stream.owner
                error = StreamResetError(event.code, printable(event.reason))
                self._give_up(channel, error)
                self._driver.changed()
            case events.Committed():
                channel = event.stream.owner
                channel.peer_commits = event.count
                channel.on_commit()
                channel.on_news()
            case events.Hello():
                if self._context.checksum is not None and FEATURE_CRC32C not in event.features:
                    reason = "integrity mode is required here, and the peer does not offer crc32c"
                    self.codec.goaway(ErrorCode.INTEGRITY, reason)
                    raise RemoteProtocolError(ErrorCode.INTEGRITY, reason)
                self._framer.max_frame = min(self._framer.max_frame, event.limits.max_frame)
                self._driver.changed()
            case events.Goaway():
                if event.code != ErrorCode.NO_ERROR:
                    words = printable(f"the peer ended the connection: {event.reason}")
                    raise OSError(errno.ECONNABORTED, words)
                self._driver.changed()

    def _on_news(self, channel: Channel) -> None:
        if channel.inbox.ended and not channel.inbox.discarding:
            channel.inbox.close()
            channel.on_commit()
            self._driver.changed()
        if channel.wants_news:
            channel.on_news()

    def _on_refused(self, channel: Channel, error: MessageTooLargeError) -> None:
        """A message that cannot be assembled: the stream ends, the connection goes on."""
        self._give_up(channel, error, partial(self._send_reset, channel, ErrorCode.TOO_LARGE, str(error)))

    def _send_failed(self, channel: Channel, error: BaseException) -> None:
        """A file could not be read on: what was promised is kept, the rest is given up."""
        failed = isinstance(error, OSError) and error.errno is not None
        self.reset(channel, ErrorCode.INTERNAL if failed else ErrorCode.CHANGED, str(error))
