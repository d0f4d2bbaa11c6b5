"""The state of one stream, and how the DATA frames of a message follow each other."""

from typing import Any, Final

from .errors import ErrorCode, RemoteProtocolError
from .frames import END_MESSAGE, END_STREAM, UNKNOWN
from .states import ABORTED, ENDED, FLOWING, UNANSWERED

Scalar = str | int | float | bool | None
Args = dict[str, Scalar]

# What `send_remaining` and `recv_remaining` hold between two messages.
BOUNDARY: Final = -1
ILLEGAL: Final = -2


class StreamState:
    """One stream as the codec sees it. All counts are of this stream, since it was opened.

    ``send_*`` is our half, ``recv_*`` the peer's. ``*_offset`` counts payload bytes, ``*_wire`` the bytes of
    DATA frames (headers included), ``*_credit`` is the absolute limit of that, ``*_remaining`` the payload
    bytes still missing from the message in progress (``UNKNOWN``, or ``BOUNDARY`` between messages),
    ``*_messages`` the whole messages, ``*_committed`` how many of them were processed. ``reset_code`` is None
    while nobody has reset the stream. ``owner`` belongs to the caller. Read everything, write only ``owner``.
    """

    __slots__ = (
        "announcing",
        "args",
        "id",
        "method",
        "ours",
        "owner",
        "path",
        "recv_committed",
        "recv_credit",
        "recv_messages",
        "recv_offset",
        "recv_remaining",
        "recv_state",
        "recv_wire",
        "reset_code",
        "reset_reason",
        "send_committed",
        "send_credit",
        "send_messages",
        "send_offset",
        "send_remaining",
        "send_state",
        "send_wire",
    )

    def __init__(self, stream_id: int, method: str, path: str, args: Args, ours: bool) -> None:
        self.id = stream_id
        self.method = method
        self.path = path
        self.args = args
        self.ours = ours  # we opened it
        self.owner: Any = None
        self.announcing = False  # its OPEN or REPLY is queued: a CREDIT must not overtake it
        self.send_state = FLOWING if ours else UNANSWERED
        self.send_offset = 0
        self.send_wire = 0
        self.send_credit = 0
        self.send_remaining = BOUNDARY
        self.send_messages = 0
        self.send_committed = 0
        self.recv_state = UNANSWERED if ours else FLOWING
        self.recv_offset = 0
        self.recv_wire = 0
        self.recv_credit = 0
        self.recv_remaining = BOUNDARY
        self.recv_messages = 0
        self.recv_committed = 0
        self.reset_code: int | None = None
        self.reset_reason = ""

    @property
    def send_ended(self) -> bool:
        """Our END_STREAM has been framed."""
        return self.send_state == ENDED

    @property
    def recv_ended(self) -> bool:
        """The peer's END_STREAM, with all of its payload, has arrived."""
        return self.recv_state == ENDED

    def credited(self, limit: int) -> bool:
        """The peer grants ``limit`` wire bytes in all; True when that lets us send more."""
        if limit < self.send_credit:
            message = f"credit of stream {self.id} taken back: {self.send_credit} → {limit}"
            raise RemoteProtocolError(ErrorCode.FLOW_CONTROL, message)
        grown = limit > self.send_credit
        self.send_credit = limit
        return grown and self.send_state < ENDED

    def committed(self, count: int) -> bool:
        """The peer has processed ``count`` messages of ours; True when that is news."""
        if not self.send_committed <= count <= self.send_messages:
            raise RemoteProtocolError(
                ErrorCode.ACKNOWLEDGEMENT,
                f"{count} messages of stream {self.id} committed; {self.send_messages} were sent and "
                f"{self.send_committed} committed before",
            )
        news = count > self.send_committed
        self.send_committed = count
        return news

    def abort(self, code: int, reason: str) -> None:
        """Both halves are over."""
        self.send_state = self.recv_state = ABORTED
        self.reset_code = code
        self.reset_reason = reason

    def __repr__(self) -> str:
        return f"<StreamState {self.id} {self.method} {self.path!r}>"


def after_frame(expected: int, length: int, remaining: int, flags: int) -> int:
    """What is missing of the message after a DATA frame, or ILLEGAL (SPEC.md, "Messages").

    ``expected`` is what was missing before it. Both ends judge by this one function.
    """
    if flags & END_MESSAGE:
        if remaining or (expected != BOUNDARY and expected not in (length, UNKNOWN)):
            return ILLEGAL
        return BOUNDARY
    if flags & END_STREAM:
        return ILLEGAL if length or remaining or expected != BOUNDARY else BOUNDARY
    if not length or not remaining:
        return ILLEGAL
    if expected == length + remaining or expected in (BOUNDARY, UNKNOWN):
        return remaining
    return ILLEGAL


def broken_rule(
    stream: StreamState, wire: int, offset: int, length: int, remaining: int, flags: int
) -> RemoteProtocolError:
    """Say which rule a DATA frame on a live stream broke."""
    where = f"DATA on stream {stream.id}"
    if stream.recv_state != FLOWING:
        return RemoteProtocolError(ErrorCode.STREAM_STATE, f"{where} before its REPLY or after its end")
    if wire > stream.recv_credit:
        return RemoteProtocolError(
            ErrorCode.FLOW_CONTROL, f"{where} up to {wire}, beyond its credit of {stream.recv_credit}"
        )
    if offset != stream.recv_offset:
        return RemoteProtocolError(
            ErrorCode.PROTOCOL, f"{where} at offset {offset}; {stream.recv_offset} is next"
        )
    return RemoteProtocolError(
        ErrorCode.PROTOCOL,
        f"{where} with length {length}, remaining {remaining} and flags {flags} does not continue its "
        f"message ({stream.recv_remaining} expected)",
    )
