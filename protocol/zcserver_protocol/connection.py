"""What both halves of the codec share: limits, counters, the stream table, and how a connection ends."""

from collections import deque

from .control import encode_reason
from .errors import ErrorCode, ProtocolError, RemoteProtocolError
from .frames import END_MESSAGE, END_STREAM, FINAL, GOAWAY, PREFACE, PREFACE_SIZE, pack
from .limits import MIN_CONTROL, Limits
from .outbox import Outbox
from .states import AT_END, AT_PREFACE, AWAIT_PREFACE, CLOSING, CONNECTION, ENDED
from .streams import StreamState
from .timers import Timers


class Connection(Outbox):
    """State and its ends. ``Incoming`` adds what the peer does to it, ``Codec`` what the local side does."""

    __slots__ = (
        "_error",
        "_expects",
        "_final_queued",
        "_final_received",
        "_forbidden_flags",
        "_highest_accepted",
        "_highest_seen",
        "_max_data",
        "_max_payload",
        "_next_id",
        "_own_streams",
        "_peer_streams",
        "_pings",
        "_slots_due",
        "_state",
        "_timers",
        "acknowledge_every",
        "features",
        "framed",
        "goaway_received",
        "goaway_sent",
        "limits",
        "needs",
        "payload_left",
        "peer",
        "peer_acknowledged",
        "role",
        "streams",
        "written",
    )

    def __init__(self, role: str, limits: Limits, now: float) -> None:
        super().__init__()
        self.role = role
        self.limits = limits
        self.peer: Limits | None = None
        self.features: frozenset[str] = frozenset()
        self.streams: dict[int, StreamState] = {}
        self.needs = PREFACE_SIZE
        self.payload_left = 0
        self.acknowledge_every = 1  # a quarter of the peer's window
        # DATA-frame bytes: given a header, handed to the socket, acknowledged by the peer.
        self.framed = 0
        self.written = 0
        self.peer_acknowledged = 0
        self.goaway_sent = False
        self.goaway_received = False
        self._final_queued = False
        self._final_received = False
        self._timers = Timers(limits, now)
        self._state = AWAIT_PREFACE
        self._expects = AT_PREFACE
        self._error: ProtocolError | None = None
        self._forbidden_flags = ~(END_MESSAGE | END_STREAM)
        self._max_payload = limits.max_frame
        self._max_data = -1  # largest payload we may send; -1 while we may send none
        self._next_id = 1 if role == "client" else 2
        self._highest_seen = 0  # stream ids of the peer
        self._highest_accepted = 0
        self._own_streams = 0
        self._peer_streams = 0
        self._slots_due: deque[int] = deque()  # values of `written` that free one of our streams each
        self._pings: deque[int] = deque()

    # -- streams -------------------------------------------------------------------------------------

    def _known(self, stream_id: int, frame: str) -> StreamState | None:
        """The stream, or None if it is finished; a stream nobody opened is a violation."""
        stream = self.streams.get(stream_id)
        if stream is None:
            ours = (stream_id ^ self._next_id) & 1 == 0
            highest = self._next_id - 1 if ours else self._highest_seen
            if not 0 < stream_id <= highest:
                message = f"{frame} on stream {stream_id}, which nobody opened"
                raise RemoteProtocolError(ErrorCode.STREAM_STATE, message)
        return stream

    def _retire(self, stream: StreamState) -> None:
        """Both halves are over: forget the stream and free its slot."""
        del self.streams[stream.id]
        self._credit_due.pop(stream.id, None)
        if not stream.ours:
            self._peer_streams -= 1
        elif stream.send_state == ENDED and self.written < self.framed:
            # The peer must see our END before the OPEN that takes this slot, but OPEN overtakes queued DATA.
            self._slots_due.append(self.framed)
        else:
            self._own_streams -= 1
        if self._state == CLOSING:
            self._finish_if_drained()

    # -- the end -------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Both ends have said that no DATA is coming and all of theirs was acknowledged: FIN is safe now."""
        return self._final_queued and self._final_received and not self.control_pending

    def _move(self, event: str) -> None:
        self._state = CONNECTION[self._state, event]

    def _go_away(self, reason: str = "") -> None:
        """Announce that we open and accept no more streams (also the answer to the peer's announcement)."""
        self._move("goaway")
        if not self.goaway_sent:
            self.goaway_sent = True
            self._queue(self._goaway_frame(ErrorCode.NO_ERROR, reason, 0))
        self._finish_if_drained()

    def _finish_if_drained(self) -> None:
        if (
            self.goaway_sent
            and self.goaway_received
            and not self._final_queued
            and not self.streams
            and self.peer_acknowledged == self.framed
        ):
            self._final_queued = True
            self._queue(self._goaway_frame(ErrorCode.NO_ERROR, "", FINAL))

    def _goaway_frame(self, code: int, reason: str, flags: int) -> bytes:
        body = encode_reason(code, reason, self.peer.max_control if self.peer is not None else MIN_CONTROL)
        return pack(GOAWAY, flags, length=len(body), offset=self._highest_accepted) + body

    def _fail(self, code: int, reason: str, error: ProtocolError) -> None:
        """The connection is dead; ``feed`` raises ``error`` from now on. Only the reason is still sent."""
        self._move("failure")
        self._expects = AT_END
        self._error = error
        self._max_data = -1
        self._discard_control()
        if code:
            goaway = self._goaway_frame(code, reason, 0)
            self._queue(goaway if self._prefaced else PREFACE + goaway)
