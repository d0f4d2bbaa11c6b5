"""What the peer's bytes do to a connection: the reading half of the codec."""

from typing import Any

from .connection import Connection
from .control import ReasonBody, decode, encode_reason, open_decoder, reason_decoder, reply_decoder
from .errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from .events import Acked, Committed, Credited, Data, Event, Goaway, Opened, Pong, Replied, Reset
from .frames import (
    ACK,
    COMMIT,
    CRC,
    CREDIT,
    DATA,
    END_MESSAGE,
    END_STREAM,
    FEATURE_CRC32C,
    FINAL,
    FIRST_IGNORABLE,
    GOAWAY,
    HEADER,
    HEADER_SIZE,
    HELLO,
    MAX_HELLO,
    MIN_BODY,
    OPEN,
    PONG,
    REPLY,
    RESET,
    RULES,
    fault,
    pack,
)
from .handshake import check_preface, greeting, meet
from .limits import MIN_CONTROL, Limits
from .outbox import MAX_PENDING_ANSWERS, MAX_PENDING_PONGS
from .states import (
    AT_BODY,
    AT_FIRST_HEADER,
    AT_HEADER,
    AT_PREFACE,
    AT_SKIPPED_BODY,
    AWAIT_HELLO,
    CLOSED,
    CLOSING,
    ENDED,
    FLOWING,
    HALF,
)
from .streams import BOUNDARY, ILLEGAL, StreamState, after_frame, broken_rule

_unpack = HEADER.unpack
_unpack_from = HEADER.unpack_from


class Incoming(Connection):
    """Reads frames, keeps the stream table, and queues the answers that the protocol itself owes."""

    __slots__ = ("_data", "_flags", "_header", "_receiving")

    def __init__(self, role: str, limits: Limits, now: float) -> None:
        super().__init__(role, limits, now)
        self._header = (0, 0, 0, 0)  # type, flags, stream, offset of the frame whose body is due
        self._data = Data()
        self._flags = 0  # of the DATA frame being received
        self._receiving: StreamState | None = None

    # -- reading -------------------------------------------------------------------------------------

    def feed(self, data: Any) -> Event | None:
        """Take exactly ``needs`` bytes (any bytes-like object) and say what they mean, if anything.

        Only while ``payload_left`` is 0. RemoteProtocolError: the connection is over, send what
        ``take_control`` returns and abort; every later call raises the same error.
        """
        if len(data) != self.needs or self.payload_left:
            raise self._error or LocalProtocolError(
                f"{len(data)} bytes fed; {self.payload_left} of payload and {self.needs} of framing are due"
            )
        try:
            if self._expects == AT_HEADER:
                kind, flags, reserved, stream_id, length, crc, offset, remaining = _unpack(data)
                if kind == DATA:
                    return self._data_frame(flags, reserved, stream_id, length, crc, offset, remaining)
                return self._control_frame(kind, flags, reserved, stream_id, length, crc, offset, remaining)
            return self._feed_rest(data)
        except RemoteProtocolError as error:
            if self._state != CLOSED:
                self._fail(error.code, error.message, error)
            raise

    def payload_received(self, n: int) -> bool:
        """``n`` payload bytes lie in the receiver's own memory or file; True when the frame is complete.

        They count as acknowledgeable from here on, so never report what was merely read ahead in a pipe.
        """
        left = self.payload_left - n
        if left < 0 or n < 0:
            raise LocalProtocolError(f"{n} payload bytes reported; {self.payload_left} are due")
        self.payload_left = left
        self.acknowledgeable += n
        if left:
            return False
        if self._flags:
            self._frame_complete()
        return True

    def whole_messages(
        self, stream: StreamState, data: Any, start: int, end: int, least: int, most: int
    ) -> list[int]:
        """Take the messages with which ``stream`` goes on between ``start`` and ``end`` of ``data``.

        That is the receiver's own memory. The same as ``feed`` and ``payload_received`` for each of several
        frames that are whole messages of ``least`` to ``most`` bytes, without a CRC. Returns where each ends.
        It stops before anything else (the stream's last message, too), and before what breaks a rule: feed
        that.
        """
        ends: list[int] = []
        if self._expects != AT_HEADER or self.payload_left or stream.recv_remaining != BOUNDARY:
            return ends
        if stream.recv_state != FLOWING:
            return ends
        offset, wire, credit, number = stream.recv_offset, stream.recv_wire, stream.recv_credit, stream.id
        most = min(most, self._max_payload)
        position = start
        while end - position > HEADER_SIZE:
            kind, flags, reserved, its, length, crc, at, remaining = _unpack_from(data, position)
            stop = position + HEADER_SIZE + length
            wire += HEADER_SIZE + length
            if (
                kind != DATA
                or flags != END_MESSAGE
                or its != number
                or at != offset
                or remaining
                or crc
                or reserved
                or stop > end
                or wire > credit
                or not least <= length <= most
            ):
                break
            offset += length
            position = stop
            ends.append(stop)
        taken = position - start
        stream.recv_offset = offset
        stream.recv_wire += taken
        stream.recv_messages += len(ends)
        self.acknowledgeable += taken
        return ends

    def _data_frame(
        self, flags: int, reserved: int, stream_id: int, length: int, crc: int, offset: int, remaining: int
    ) -> Data:
        if length > self._max_payload:
            message = f"DATA of {length} bytes; the limit is {self._max_payload}"
            raise RemoteProtocolError(ErrorCode.FRAME_SIZE, message)
        if reserved or flags & self._forbidden_flags or (crc and not flags & CRC):
            message = f"DATA with flags {flags:#04x}, reserved {reserved}, crc {crc:#x}"
            raise RemoteProtocolError(ErrorCode.PROTOCOL, message)
        stream = self.streams.get(stream_id)
        if stream is not None:
            wire = stream.recv_wire + HEADER_SIZE + length
            whole = flags == END_MESSAGE and not remaining and stream.recv_remaining == BOUNDARY
            left = BOUNDARY if whole else after_frame(stream.recv_remaining, length, remaining, flags)
            if (
                left == ILLEGAL
                or offset != stream.recv_offset
                or wire > stream.recv_credit
                or stream.recv_state != FLOWING
            ):
                raise broken_rule(stream, wire, offset, length, remaining, flags)
            stream.recv_wire = wire
            stream.recv_offset = offset + length
            stream.recv_remaining = left
            self._flags = flags
        else:
            self._known(stream_id, "DATA")
            if self._final_received:
                raise RemoteProtocolError(ErrorCode.PROTOCOL, "DATA after the final GOAWAY")
            self._flags = 0
        self._receiving = stream
        self.acknowledgeable += HEADER_SIZE
        if length:
            self.payload_left = length
        elif self._flags:
            self._frame_complete()
        event = self._data
        event.stream = stream
        event.length = length
        event.remaining = remaining
        event.flags = flags
        event.crc = crc
        return event

    def _frame_complete(self) -> None:
        flags, self._flags = self._flags, 0
        stream, self._receiving = self._receiving, None
        if stream is None or stream.recv_state != FLOWING:  # reset by us in mid-frame
            return
        if flags & END_MESSAGE:
            stream.recv_messages += 1
        if flags & END_STREAM:
            stream.recv_state = HALF[FLOWING, "end"]
            self._credit_due.pop(stream.id, None)
            if stream.send_state == ENDED:
                self._retire(stream)

    def _feed_rest(self, data: Any) -> Event | None:
        if self._expects == AT_BODY:
            return self._body(data)
        if self._expects == AT_SKIPPED_BODY:
            self._expect_header()
            return None
        if self._expects == AT_FIRST_HEADER:
            return self._first_header(data)
        if self._expects == AT_PREFACE:
            check_preface(data)
            self._move("preface")
            if self.role == "server":
                self._queue(greeting(self.limits))
            self._expects = AT_FIRST_HEADER
            self.needs = HEADER_SIZE
            return None
        assert self._error is not None
        raise self._error

    def _expect_header(self) -> None:
        self._expects = AT_HEADER
        self.needs = HEADER_SIZE

    # -- control frames ------------------------------------------------------------------------------

    def _first_header(self, data: Any) -> Event | None:
        kind, flags, reserved, stream_id, length, crc, offset, remaining = _unpack(data)
        if kind not in (HELLO, GOAWAY):
            message = f"the first frame has type {kind}; it must be HELLO or GOAWAY"
            raise RemoteProtocolError(ErrorCode.PROTOCOL, message)
        return self._control_frame(kind, flags, reserved, stream_id, length, crc, offset, remaining)

    def _control_frame(
        self,
        kind: int,
        flags: int,
        reserved: int,
        stream_id: int,
        length: int,
        crc: int,
        offset: int,
        remaining: int,
    ) -> Event | None:
        rule = RULES.get(kind)
        if rule is None:
            self._unknown_frame(kind, length)
            return None
        wrong = fault(rule, flags, reserved, stream_id, crc, offset, remaining)
        if wrong:
            raise RemoteProtocolError(ErrorCode.PROTOCOL, wrong)
        if rule.has_body:
            limit = self.limits.max_control if self._expects == AT_HEADER else MAX_HELLO
            if not MIN_BODY <= length <= limit:
                message = f"{rule.name} with a body of {length} bytes, not {MIN_BODY} to {limit}"
                raise RemoteProtocolError(ErrorCode.FRAME_SIZE, message)
            if kind == HELLO and self._expects == AT_HEADER:
                raise RemoteProtocolError(ErrorCode.PROTOCOL, "a second HELLO")
            self._header = (kind, flags, stream_id, offset)
            self._expects = AT_BODY
            self.needs = length
            return None
        if length:
            message = f"{rule.name} with a body of {length} bytes; it has none"
            raise RemoteProtocolError(ErrorCode.FRAME_SIZE, message)
        if kind == ACK:
            return self._ack(offset)
        if kind == CREDIT:
            return self._credited(stream_id, offset)
        if kind == COMMIT:
            return self._committed(stream_id, offset)
        if kind == PONG:
            return self._ponged(offset)
        self._pinged(offset)
        return None

    def _unknown_frame(self, kind: int, length: int) -> None:
        if kind < FIRST_IGNORABLE:
            raise RemoteProtocolError(ErrorCode.PROTOCOL, f"unknown frame type {kind}")
        if length > self.limits.max_control:
            raise RemoteProtocolError(ErrorCode.FRAME_SIZE, f"an ignorable frame of {length} bytes")
        if length:
            self._expects = AT_SKIPPED_BODY
            self.needs = length

    def _body(self, data: Any) -> Event | None:
        kind, flags, stream_id, offset = self._header
        if kind == HELLO:
            return self._hello(data)
        if self._state != AWAIT_HELLO:
            self._expect_header()
        if kind == OPEN:
            return self._opened(stream_id, offset, data)
        if kind == REPLY:
            return self._replied(stream_id, offset, data)
        body = decode(reason_decoder, data, RULES[kind].name)
        if kind == RESET:
            return self._was_reset(stream_id, body)
        return self._goaway_received(flags, offset, body)

    def _hello(self, data: Any) -> Event:
        hello = meet(data, self.limits)
        self._move("hello")
        self.peer = hello.limits
        self.features = hello.features
        self._max_data = hello.limits.max_frame
        self.acknowledge_every = hello.limits.window // 4
        if FEATURE_CRC32C in hello.features:
            self._forbidden_flags = ~(END_MESSAGE | END_STREAM | CRC)
        self._timers.established = True
        self._expect_header()
        return hello

    def _ack(self, upto: int) -> Event | None:
        if upto == self.peer_acknowledged:
            return None
        if not self.peer_acknowledged < upto <= self.written:
            raise RemoteProtocolError(
                ErrorCode.ACKNOWLEDGEMENT,
                f"{upto} bytes acknowledged; {self.written} were sent, "
                f"{self.peer_acknowledged} acknowledged before",
            )
        self.peer_acknowledged = upto
        if self._state == CLOSING:
            self._finish_if_drained()
        return Acked(upto)

    def _credited(self, stream_id: int, limit: int) -> Event | None:
        stream = self._known(stream_id, "CREDIT")
        return Credited(stream) if stream is not None and stream.credited(limit) else None

    def _committed(self, stream_id: int, count: int) -> Event | None:
        stream = self._known(stream_id, "COMMIT")
        return Committed(stream, count) if stream is not None and stream.committed(count) else None

    def _pinged(self, token: int) -> None:
        if self._pongs >= MAX_PENDING_PONGS:
            message = f"more than {MAX_PENDING_PONGS} PINGs before their PONGs could be sent"
            raise RemoteProtocolError(ErrorCode.LIMIT, message)
        if not self.finished:
            self._pongs += 1
            self._queue(pack(PONG, offset=token))

    def _ponged(self, token: int) -> Event:
        if not self._pings or self._pings[0] != token:
            raise RemoteProtocolError(ErrorCode.PROTOCOL, f"PONG {token:#x} answers no PING")
        self._pings.popleft()
        return Pong(token)

    # -- streams -------------------------------------------------------------------------------------

    def _opened(self, stream_id: int, credit: int, data: Any) -> Event | None:
        body = decode(open_decoder, data, "OPEN")
        if (stream_id ^ self._next_id) & 1 == 0 or stream_id <= self._highest_seen:
            raise RemoteProtocolError(
                ErrorCode.STREAM_STATE, f"stream {stream_id} opened after {self._highest_seen}"
            )
        if self.goaway_received:
            raise RemoteProtocolError(ErrorCode.STREAM_STATE, f"stream {stream_id} opened after GOAWAY")
        if self._answers >= MAX_PENDING_ANSWERS + 2 * self.limits.max_streams:
            message = "streams are opened without reading what became of earlier ones"
            raise RemoteProtocolError(ErrorCode.LIMIT, message)
        self._highest_seen = stream_id
        if self.goaway_sent:
            self._refuse(stream_id, "going away: no stream is accepted any more")
            return None
        if self._peer_streams >= self.limits.max_streams:
            self._refuse(stream_id, f"{self._peer_streams} streams are open, the most accepted here")
            return None
        self._highest_accepted = stream_id
        stream = StreamState(stream_id, body.method, body.path, body.args, ours=False)
        stream.send_credit = credit
        self.streams[stream_id] = stream
        self._peer_streams += 1
        return Opened(stream)

    def _refuse(self, stream_id: int, reason: str) -> None:
        self._answers += 1
        body = encode_reason(ErrorCode.REFUSED, reason, MIN_CONTROL)
        self._queue(pack(RESET, stream=stream_id, length=len(body)), body)

    def _replied(self, stream_id: int, credit: int, data: Any) -> Event | None:
        body = decode(reply_decoder, data, "REPLY")
        stream = self._known(stream_id, "REPLY")
        if stream is None:
            return None
        state = HALF.get((stream.recv_state, "reply"))
        if state is None:
            raise RemoteProtocolError(
                ErrorCode.STREAM_STATE, f"REPLY on stream {stream_id}, which awaits none"
            )
        if credit:
            stream.credited(credit)
        stream.recv_state = state
        return Replied(stream, body.args)

    def _was_reset(self, stream_id: int, body: ReasonBody) -> Event | None:
        stream = self._known(stream_id, "RESET")
        if stream is None:
            return None
        stream.abort(body.code, body.reason)
        self._commit_due.pop(stream_id, None)
        self._retire(stream)
        return Reset(stream, body.code, body.reason)

    def _goaway_received(self, flags: int, last_stream: int, body: ReasonBody) -> Event | None:
        if body.code:
            late = RemoteProtocolError(ErrorCode.PROTOCOL, "bytes after a GOAWAY that ended the connection")
            self._fail(ErrorCode.NO_ERROR, "", late)  # no answer: the peer does not read any more
            return Goaway(body.code, body.reason, last_stream)
        if self._state == AWAIT_HELLO:
            raise RemoteProtocolError(ErrorCode.PROTOCOL, "GOAWAY without an error before HELLO")
        if last_stream >= self._next_id or (last_stream and (last_stream ^ self._next_id) & 1):
            raise RemoteProtocolError(
                ErrorCode.PROTOCOL, f"GOAWAY names stream {last_stream}, which we did not open"
            )
        if flags & FINAL:
            if not (self.goaway_received and self.goaway_sent) or self._final_received or self.streams:
                raise RemoteProtocolError(ErrorCode.PROTOCOL, "a final GOAWAY before its time")
            if self.acknowledged != self.acknowledgeable:
                raise RemoteProtocolError(
                    ErrorCode.PROTOCOL, "a final GOAWAY although DATA is not acknowledged yet"
                )
            self._final_received = True
            return None
        if self.goaway_received:
            raise RemoteProtocolError(ErrorCode.PROTOCOL, "a second GOAWAY")
        self.goaway_received = True
        self._go_away()
        return Goaway(body.code, body.reason, last_stream)
