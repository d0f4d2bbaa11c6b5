"""A ZCP/1 connection without I/O: bytes in, events out; calls in, bytes out; time is an argument.

Reading: read `needs` bytes (or, while `payload_left` > 0, payload, to wherever it belongs), then call `feed`
(or `payload_received`). Writing: at every frame boundary send what `take_control` returns, then DATA frames,
whose headers `data_header_into` makes; report with `data_written` what the socket took. The payload itself
never passes through here.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final

from .control import encode_reason, encode_reply, encode_request
from .errors import LocalProtocolError, RemoteProtocolError, TooManyStreams
from .frames import (
    CRC,
    DATA,
    END_MESSAGE,
    END_STREAM,
    HEADER,
    HEADER_SIZE,
    OPEN,
    PING,
    REPLY,
    RESET,
    pack,
)
from .handshake import greeting
from .incoming import Incoming
from .limits import Limits
from .outbox import MAX_PENDING_PONGS
from .states import CLOSED, CLOSING, CONNECTION_NAMES, ENDED, ESTABLISHED, FLOWING, HALF, HALF_NAMES
from .streams import BOUNDARY, ILLEGAL, Args, StreamState, after_frame

__all__ = ["Codec", "Limits"]

_pack_into = HEADER.pack_into
_LARGEST_ID: Final = 2**32 - 1
_LARGEST_CREDIT: Final = 2**64 - 1


class Codec(Incoming):
    """One end of a connection. ``now`` is a steady clock's time in seconds.

    Every call that the state does not allow raises LocalProtocolError and changes nothing. A client has its
    greeting in ``take_control`` at once, a server after it was fed the client's preface.

    Read, don't write: ``streams`` (id → StreamState), ``peer`` (the peer's Limits, None before its HELLO),
    ``features`` in force, ``acknowledgeable``/``acknowledged`` (DATA-frame bytes copied out / promised),
    ``acknowledge_every`` (send an ACK at the latest when the two differ by this), ``framed``/``written``/
    ``peer_acknowledged`` (DATA-frame bytes of ours), ``goaway_sent``, ``goaway_received``, ``finished``.
    """

    __slots__ = ()

    def __init__(self, role: str, limits: Limits, now: float) -> None:
        if role not in ("client", "server"):
            raise LocalProtocolError(f"role {role!r} must be 'client' or 'server'")
        super().__init__(role, limits, now)
        if role == "client":
            self._queue(greeting(limits))

    # -- streams -------------------------------------------------------------------------------------

    @property
    def openable(self) -> int:
        """How many streams ``open`` would open now; it changes with ``feed`` and ``data_written``."""
        if self.peer is None or self._state != ESTABLISHED:
            return 0
        return max(0, self.peer.max_streams - self._own_streams)

    def open(self, method: str, path: str, args: Args, credit: int) -> StreamState:
        """Open a stream, and let the acceptor send ``credit`` wire bytes on it (0: none yet).

        Next: a ``Replied`` or ``Reset`` event. TooManyStreams: wait until ``openable`` is positive.
        """
        if self.peer is None or self._state != ESTABLISHED:
            raise LocalProtocolError(f"cannot open a stream: {self._condition()}")
        if self._own_streams >= self.peer.max_streams:
            raise TooManyStreams(f"{self._own_streams} streams are open, the most that the peer accepts")
        if self._next_id > _LARGEST_ID:
            raise LocalProtocolError("all stream ids of this connection are used up: open a new connection")
        _check_credit(credit)
        body = encode_request(method, path, args, self.peer.max_control)
        stream = StreamState(self._next_id, method, path, args, ours=True)
        stream.recv_credit = credit
        self._next_id += 2
        self._own_streams += 1
        self.streams[stream.id] = stream
        self._announce(stream, pack(OPEN, stream=stream.id, length=len(body), offset=credit), body)
        return stream

    def reply(self, stream: StreamState, args: Args, credit: int) -> None:
        """Accept a stream that the peer opened; from here on we may send on it.

        ``credit`` is the absolute limit granted to the peer, as in ``credit``; 0 leaves it as it is.
        """
        peer = self._live(stream)
        state = HALF.get((stream.send_state, "reply"))
        if state is None:
            raise LocalProtocolError(f"cannot reply on stream {stream.id}: {HALF_NAMES[stream.send_state]}")
        if credit:
            _check_credit(credit, stream.recv_credit)
        body = encode_reply(args, peer.max_control)
        stream.send_state = state
        if credit:
            stream.recv_credit = credit
        self._answers += 1
        self._announce(stream, pack(REPLY, stream=stream.id, length=len(body), offset=credit), body)

    def credit(self, stream: StreamState, limit: int) -> None:
        """Let the peer send up to ``limit`` wire bytes on ``stream``, counted from its beginning.

        The caller backs every granted byte with receive memory. The limit never goes down.
        """
        self._live(stream)
        if stream.recv_state >= ENDED:
            raise LocalProtocolError(f"credit for stream {stream.id}, whose peer has ended it")
        _check_credit(limit, stream.recv_credit)
        if limit > stream.recv_credit:
            stream.recv_credit = limit
            self._credit_due[stream.id] = stream
            self.control_pending = True

    def commit(self, stream: StreamState, count: int) -> None:
        """Tell the peer that the application has processed the first ``count`` messages of ``stream``.

        Only while the stream is in the table: keep our half open until the last message is processed.
        """
        self._live(stream)
        if not stream.recv_committed <= count <= stream.recv_messages:
            raise LocalProtocolError(
                f"{count} messages of stream {stream.id} committed; {stream.recv_messages} were received and "
                f"{stream.recv_committed} committed before"
            )
        if count > stream.recv_committed:
            stream.recv_committed = count
            self._commit_due[stream.id] = stream
            self.control_pending = True

    def reset(self, stream: StreamState, code: int, reason: str) -> None:
        """Give up both directions of ``stream``; it leaves the table, and no DATA may be framed on it.

        A frame whose header was made must still be written whole. Late DATA of the peer comes as
        ``Data(stream=None)``.
        """
        peer = self._live(stream)
        body = encode_reason(code, reason, peer.max_control)
        stream.abort(code, reason)
        if not stream.ours:
            self._answers += 1
        self._queue(pack(RESET, stream=stream.id, length=len(body)), body)
        self._retire(stream)

    # -- connection ----------------------------------------------------------------------------------

    def goaway(self, code: int, reason: str) -> None:
        """With NO_ERROR: no end opens streams any more, the open ones run to their end, then ``finished``.

        With another code: the connection is dead at once; send what ``take_control`` returns and abort.
        """
        if self._state == CLOSED or (not code and self.peer is None):
            raise LocalProtocolError(f"cannot go away: {self._condition()}")
        if not 0 <= code < 2**32:
            raise LocalProtocolError(f"error code {code} must be 0 to {2**32 - 1}")
        if not code:
            self._go_away(reason)
        else:
            self._fail(code, reason, LocalProtocolError(f"this end has ended the connection: {reason}"))

    def ping(self, token: int) -> None:
        """Ask the peer for a PONG with the same 64-bit ``token``; at most 16 may be unanswered."""
        if self._state not in (ESTABLISHED, CLOSING) or self.finished:
            raise LocalProtocolError(f"cannot ping: {self._condition()}")
        if len(self._pings) >= MAX_PENDING_PONGS:
            raise LocalProtocolError(f"{MAX_PENDING_PONGS} pings are unanswered already")
        if not 0 <= token < 2**64:
            raise LocalProtocolError(f"token {token} does not fit 64 bits")
        self._pings.append(token)
        self._queue(pack(PING, offset=token))

    def acknowledge(self) -> None:
        """Let the next control bytes acknowledge all that was copied out. Does nothing if nothing is new."""
        if self.acknowledgeable != self.acknowledged and self._state != CLOSED:
            self.acknowledged = self.acknowledgeable
            self._ack_due = True
            self.control_pending = True

    # -- data ----------------------------------------------------------------------------------------

    def sendable(self, stream: StreamState) -> int:
        """How many payload bytes one frame on ``stream`` may carry now; -1 if not even none."""
        if stream.send_state != FLOWING:
            return -1
        room = stream.send_credit - stream.send_wire - HEADER_SIZE
        if room < 0:
            return -1
        return room if room < self._max_data else self._max_data

    def data_header_into(
        self,
        buffer: Any,
        position: int,
        stream: StreamState,
        length: int,
        remaining: int,
        flags: int,
        crc: int,
    ) -> None:
        """Write a DATA header into ``buffer`` at ``position``; the frame counts as sent in this order.

        ``remaining`` payload bytes of the same message follow this frame. Next: write the 32 bytes and
        ``length`` bytes of payload to the socket, after all frames made before, whatever happens.
        """
        wire = stream.send_wire + HEADER_SIZE + length
        whole = flags == END_MESSAGE and not remaining and stream.send_remaining == BOUNDARY
        left = BOUNDARY if whole else after_frame(stream.send_remaining, length, remaining, flags)
        if (
            left == ILLEGAL
            or wire > stream.send_credit
            or not 0 <= length <= self._max_data
            or stream.send_state != FLOWING
            or flags & self._forbidden_flags
            or (crc and not flags & CRC)
        ):
            raise self._bad_header(stream, length, remaining, flags, crc)
        try:
            offset = stream.send_offset
            _pack_into(buffer, position, DATA, flags, 0, stream.id, length, crc, offset, remaining)
        except struct.error as error:
            raise LocalProtocolError(f"the header does not fit: {error}") from None
        stream.send_wire = wire
        stream.send_offset = offset + length
        stream.send_remaining = left
        self.framed += HEADER_SIZE + length
        if flags & END_MESSAGE:
            stream.send_messages += 1
        if flags & END_STREAM:
            stream.send_state = HALF[FLOWING, "end"]
            if stream.recv_state == ENDED:
                self._retire(stream)

    def data_headers_into(
        self, buffer: Any, stream: StreamState, places: Iterable[int], lengths: Sequence[int]
    ) -> None:
        """Write a header for each of several whole messages of ``lengths``, into ``buffer`` at its place.

        The same as ``data_header_into`` for each of them, with END_MESSAGE.
        """
        if stream.send_remaining != BOUNDARY or stream.send_state != FLOWING:
            raise self._bad_header(stream, lengths[0], 0, END_MESSAGE, 0)
        offset = start = stream.send_offset
        most, number = self._max_data, stream.id
        try:
            for place, length in zip(places, lengths, strict=True):
                if not 0 <= length <= most:
                    raise self._bad_header(stream, length, 0, END_MESSAGE, 0)
                _pack_into(buffer, place, DATA, END_MESSAGE, 0, number, length, 0, offset, 0)
                offset += length
        except struct.error as error:
            raise LocalProtocolError(f"the headers do not fit: {error}") from None
        count = len(lengths)
        size = offset - start + HEADER_SIZE * count
        wire = stream.send_wire + size
        if wire > stream.send_credit:
            raise self._bad_header(stream, size - HEADER_SIZE, 0, END_MESSAGE, 0)
        stream.send_wire = wire
        stream.send_offset = offset
        stream.send_messages += count
        self.framed += size

    def data_written(self, n: int) -> None:
        """``n`` more DATA-frame bytes were handed to the socket, in the order of their headers."""
        written = self.written + n
        if n < 0 or written > self.framed:
            raise LocalProtocolError(f"{written} DATA bytes written; {self.framed} have a header")
        self.written = written
        while self._slots_due and self._slots_due[0] <= written:
            self._slots_due.popleft()
            self._own_streams -= 1

    # -- time ----------------------------------------------------------------------------------------

    def tick(self, now: float, heard: bool) -> None:
        """Let time pass: call at ``deadline()``, and with ``heard`` when bytes arrived, once they are read.

        Queues a keep-alive when the peer has been silent for a while. RemoteProtocolError(TIMEOUT) when the
        handshake, any sign of life, or progress of acknowledgements is overdue.
        """
        if self._state == CLOSED:
            return
        outstanding = self.written != self.peer_acknowledged
        try:
            idle = self._timers.tick(now, heard, self.peer_acknowledged, outstanding)
        except RemoteProtocolError as error:
            self._fail(error.code, error.message, error)
            raise
        if idle and not self._pings and not self.finished:
            self.ping(0)

    def deadline(self) -> float | None:
        """When ``tick`` must be called at the latest; None when the connection is closed."""
        return None if self._state == CLOSED else self._timers.deadline()

    # -- refusals ------------------------------------------------------------------------------------

    def _condition(self) -> str:
        return f"the connection is {CONNECTION_NAMES[self._state]}"

    def _live(self, stream: StreamState) -> Limits:
        """The peer's limits, if ``stream`` is in the table and the connection lives."""
        if self.peer is None or self._state == CLOSED:
            raise LocalProtocolError(self._condition())
        if self.streams.get(stream.id) is not stream:
            raise LocalProtocolError(f"stream {stream.id} is finished")
        return self.peer

    def _bad_header(
        self, stream: StreamState, length: int, remaining: int, flags: int, crc: int
    ) -> LocalProtocolError:
        where = f"DATA on stream {stream.id}"
        if self._max_data < 0:
            return LocalProtocolError(f"{where}: {self._condition()}")
        if stream.send_state != FLOWING:
            return LocalProtocolError(f"{where}, which is {HALF_NAMES[stream.send_state]}")
        if not 0 <= length <= self.sendable(stream):
            return LocalProtocolError(f"{where} of {length} bytes; {self.sendable(stream)} may be sent now")
        if flags & self._forbidden_flags or (crc and not flags & CRC):
            return LocalProtocolError(f"{where} with flags {flags:#04x} and crc {crc:#x}, not agreed on")
        return LocalProtocolError(
            f"{where} with length {length}, remaining {remaining} and flags {flags} does not continue "
            f"its message ({stream.send_remaining} expected)"
        )


def _check_credit(limit: int, before: int = 0) -> None:
    if not before <= limit <= _LARGEST_CREDIT:
        raise LocalProtocolError(f"credit {limit} must be {before} (granted before) to {_LARGEST_CREDIT}")
