"""Acknowledged offsets become freed frames.

The peer's ACK is one cumulative count of DATA-frame bytes, so frames come home strictly in the order in
which they were framed: a queue and two counters are the whole bookkeeping, O(1) amortised per frame.
"""

from collections import deque
from collections.abc import Iterator

from .message import Frame


class Ledger:
    """DATA frames that were given a place in the byte stream and are not acknowledged yet.

    ``framed`` and ``acknowledged`` count DATA-frame bytes, headers included, since the connection began.
    """

    __slots__ = ("_frames", "acknowledged", "framed")

    def __init__(self) -> None:
        self._frames: deque[Frame] = deque()
        self.framed = 0
        self.acknowledged = 0

    def __len__(self) -> int:
        return len(self._frames)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._frames)

    def add(self, frame: Frame) -> None:
        """Give ``frame`` its place; call in wire order, before any of its bytes are written."""
        self.framed = frame.end = self.framed + frame.nbytes
        self._frames.append(frame)

    def acknowledge(self, upto: int) -> Iterator[Frame]:
        """Yield, and forget, every frame whose last byte lies below ``upto``.

        The codec has already refused counts that go backwards or beyond what was written (rule 5).
        """
        self.acknowledged = upto
        frames = self._frames
        while frames and frames[0].end <= upto:
            yield frames.popleft()

    @property
    def head(self) -> Frame | None:
        """The first one, of which the peer may have acknowledged a part."""
        return self._frames[0] if self._frames else None

    def clear(self) -> list[Frame]:
        """Forget and return all frames (the connection is dead)."""
        frames = list(self._frames)
        self._frames.clear()
        return frames
