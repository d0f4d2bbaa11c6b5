"""Control frames that are due. ACK, CREDIT and COMMIT are latest values, everything else is a short queue.

So what waits here is bounded however slowly the peer reads: three numbers per stream, the frames the local
side queued, and capped answers to the peer's PINGs and OPENs.
"""

from typing import Final

from .frames import ACK, COMMIT, CREDIT, pack
from .streams import StreamState

MAX_PENDING_PONGS: Final = 16
MAX_PENDING_ANSWERS: Final = 256  # RESETs and REPLYs to the peer's streams, beyond two per stream it may open


class Outbox:
    """The part of the codec that holds what `take_control` will return."""

    __slots__ = (
        "_ack_due",
        "_announcing",
        "_answers",
        "_commit_due",
        "_credit_due",
        "_frames",
        "_pongs",
        "_prefaced",
        "acknowledgeable",
        "acknowledged",
        "control_pending",
    )

    def __init__(self) -> None:
        self.control_pending = False
        # DATA-frame bytes copied out so far, headers included, and the last count promised to the peer.
        self.acknowledgeable = 0
        self.acknowledged = 0
        self._ack_due = False
        self._credit_due: dict[int, StreamState] = {}
        self._commit_due: dict[int, StreamState] = {}
        self._frames: list[bytes] = []  # the first ever is the preface with our HELLO
        self._prefaced = False
        self._announcing: list[StreamState] = []
        self._pongs = 0
        self._answers = 0

    def take_control(self) -> bytes:
        """All control frames due now, as one bytes object; they count as sent from here on.

        Write them at the next frame boundary, before any DATA, and the whole of them before asking again.
        """
        due = []
        late: list[bytes] = []
        if self._ack_due:
            due.append(pack(ACK, offset=self.acknowledged))
        for stream in self._credit_due.values():
            credit = pack(CREDIT, stream=stream.id, offset=stream.recv_credit)
            # The peer does not know this stream, or a lower limit is queued for it: that goes first.
            (late if stream.announcing else due).append(credit)
        due += [
            pack(COMMIT, stream=stream.id, offset=stream.recv_committed)
            for stream in self._commit_due.values()
        ]
        if self._frames:
            self._prefaced = True
            due += self._frames
        due += late
        for stream in self._announcing:
            stream.announcing = False
        self._announcing.clear()
        self._discard_control()
        return b"".join(due)

    def _queue(self, header: bytes, body: bytes = b"") -> None:
        self._frames.append(header + body if body else header)
        self.control_pending = True

    def _announce(self, stream: StreamState, header: bytes, body: bytes) -> None:
        """Queue its OPEN or REPLY."""
        stream.announcing = True
        self._announcing.append(stream)
        self._queue(header, body)

    def _discard_control(self) -> None:
        self._ack_due = False
        self._credit_due.clear()
        self._commit_due.clear()
        self._frames.clear()
        self._pongs = self._answers = 0
        self.control_pending = False
