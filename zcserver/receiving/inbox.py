"""One stream's receiving half: where its payload lands, what is queued, and how much more may come.

Three ways to consume, chosen by each call: whole messages (assembled in one piece of memory, since
the header says how much of the message follows), chunks as they landed, or the caller's own memory.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from zcserver.errors import MessageTooLargeError
from zcserver_protocol.frames import END_MESSAGE, END_STREAM, HEADER_SIZE, UNKNOWN
from zcserver_protocol.streams import StreamState

from .memory import SMALL, ReceiveMemory

# How a stream is consumed: as the last call wanted it. Until the first one nobody knows.
UNDECIDED: Final = 0
MESSAGES: Final = 1
CHUNKS: Final = 2

# What a stream is promised before anybody knows how fast it is read, in bytes.
FIRST_WINDOW: Final = 256 * 1024

# What a piece outside the pool takes besides its wire bytes: an object, a tuple and a place (bytes, about).
_OVERHEAD: Final = 96
_NOWHERE: Final = memoryview(bytearray(0))
_EMPTY: Final = (b"", True, HEADER_SIZE)  # an empty message


class Inbox:
    """Owned by a stream's channel; the receiver lands payload in it, the application takes it out.

    ``window`` (bytes, at most) bounds what is promised to the peer and not taken yet; ``max_message``
    bounds what is assembled in one piece.
    """

    __slots__ = (
        "_assembly",
        "_assembly_total",
        "_assembly_wire",
        "_grown_at",
        "_landed",
        "_memory",
        "_open_bytes",
        "_open_length",
        "_sink",
        "_sink_filled",
        "_target",
        "_unit",
        "discarding",
        "ended",
        "held",
        "max_message",
        "max_window",
        "messages",
        "mode",
        "pieces",
        "place",
        "sink_done",
        "sink_ends",
        "state",
        "window",
    )

    def __init__(self, state: StreamState, memory: ReceiveMemory, window: int, max_message: int) -> None:
        self.state = state
        self.window = min(FIRST_WINDOW, window)
        self.max_window = window
        self.max_message = max_message
        self.mode = UNDECIDED
        self.place: Callable[[int], memoryview | None] | None = None  # where large messages are to land
        # (content, ends a message, wire bytes). What is ``bytes`` is short, and held outside the pool.
        self.pieces: deque[tuple[bytes | memoryview, bool, int]] = deque()
        self.messages = 0  # complete messages among the pieces
        self.held = 0  # wire bytes of the pieces
        self.ended = False
        self.discarding = False
        self.sink_done = False
        self.sink_ends = False  # the message ended in the sink, the last one if there is none
        self._grown_at = 0  # how many wire bytes had come when the window last grew
        self._memory = memory
        self._open_bytes = 0  # wire bytes of the pieces that belong to the unfinished message
        self._open_length = 0  # and their payload
        self._unit = 0  # wire bytes of the last message in one frame; 0 if its length was not known
        self._target: Any = _NOWHERE
        self._landed = 0
        self._assembly: memoryview | None = None
        self._assembly_total = 0
        self._assembly_wire = 0
        self._sink: memoryview | None = None
        self._sink_filled = 0

    # -- the receiver's side -------------------------------------------------------------------------

    def begin(self, length: int, remaining: int, target: memoryview | None = None) -> None:
        """A DATA frame with ``length`` payload bytes begins; decide where it lands.

        In ``target``, if the receiver has memory for it; only for a frame that ``takes_whole``.
        Raises MessageTooLargeError when messages are wanted and this one cannot be assembled.
        """
        self._memory.unreserve(HEADER_SIZE + length)
        self._landed = 0
        if self._assembly is None and not self._open_bytes:
            self._unit = HEADER_SIZE + length + remaining if remaining < UNKNOWN else 0
        if target is not None:
            self._target = target
            return
        if self._assembly is not None:
            self._target = self._assembly[self._assembly_total :]
            return
        if self._open_length + length + remaining > self.max_message and self.mode == MESSAGES:
            self._doubt(length, remaining)
        if not remaining and not self._open_bytes and self._sink is None:  # a whole message, most often
            self._target = self._take(length) if length > SMALL else None
            return
        if self.mode == MESSAGES and 0 < remaining < UNKNOWN and not self._open_bytes:
            self._assembly = self._claim(length + remaining)
            if self._assembly is not None:
                self._target = self._assembly
                return
        self._target = self._memory.take(length) if length > SMALL and not self._sink_open() else None

    def _take(self, nbytes: int) -> memoryview:
        view = self._placed(nbytes)
        return self._memory.take(nbytes) if view is None else view

    def _claim(self, total: int) -> memoryview | None:
        """Memory for all of a message of which only the first frame has come.

        None when it would be of the second half of the account: the length is only what the peer claims,
        and others must not starve for it. The message is joined at its end then.
        """
        view = self._placed(total)
        return self._memory.take(total) if view is None and self._memory.roomy(total) else view

    def _placed(self, nbytes: int) -> memoryview | None:
        return self.place(nbytes) if self.place is not None and nbytes > SMALL else None

    def _doubt(self, length: int, remaining: int) -> None:
        """A frame came of a message which is, or may become, larger than what is assembled.

        One that begins while nobody waits for a whole message, and cannot be here before somebody asks, is
        left to who asks next.
        """
        come = self._open_length + length
        total = come if remaining == UNKNOWN else come + remaining
        if total <= self.max_message:
            return
        if come <= self.max_message and total > self.max_window and not self.state.owner.wants_news:
            self.mode = UNDECIDED
            return
        raise MessageTooLargeError(
            f"a message of {total} bytes exceeds max_message ({self.max_message} bytes): read it with "
            f"receive_into() or chunks(), or raise max_message"
        )

    def _sink_open(self) -> bool:
        return self._sink is not None and not self.sink_done

    def landing(self, left: int) -> Any:
        """Where the next bytes of the current frame go: a writable view of at most ``left`` bytes."""
        target = self._target
        if target is None:
            if self._sink_open():
                assert self._sink is not None
                return self._sink[self._sink_filled : self._sink_filled + left]
            self._target = target = memoryview(bytearray(left)) if left <= SMALL else self._memory.take(left)
            self._landed = 0
        landed = self._landed
        return target if not landed and len(target) == left else target[landed : landed + left]

    def landed(self, count: int) -> None:
        """``count`` bytes were copied to where ``landing`` said."""
        if self._target is None:
            self._sink_filled += count
            assert self._sink is not None
            if self._sink_filled == len(self._sink):
                self.sink_done = True
        else:
            self._landed += count

    def complete(self, flags: int, length: int) -> bool:
        """The frame is whole; True when the application has something new to look at."""
        ends = bool(flags & END_MESSAGE)
        if flags & END_STREAM:
            self.ended = True
        target = self._target
        self._target = _NOWHERE  # or an idle stream would keep its last message's memory
        wire = HEADER_SIZE + length
        if self._assembly is not None:
            self._assembly_total += length
            self._assembly_wire += wire
            if not ends:
                return self.ended
            target, self._assembly = self._assembly, None
            self._landed, wire = self._assembly_total, self._assembly_wire
            self._assembly_total = self._assembly_wire = 0
        elif target is None and length:  # all of it went to the sink
            self.sink_done = self.sink_done or ends
            self.sink_ends = ends
            return self.sink_done or self.ended
        if length or ends:
            landed = self._landed
            if target is None:
                target = _NOWHERE
            self._push(target if landed == len(target) else target[:landed], ends, wire)
            if self._sink_open():  # it was attached while this frame landed elsewhere
                self._pour()
        return self.messages > 0 or self.ended or self.mode != MESSAGES

    def whole(self, content: bytes | memoryview, flags: int) -> None:
        """A whole frame, already in memory where it may stay: ``bytes`` if it is short."""
        wire = HEADER_SIZE + len(content)
        if flags == END_MESSAGE:
            self._unit = wire
        if flags & END_STREAM:
            self.ended = True
        if wire > HEADER_SIZE or flags & END_MESSAGE:
            self._push(content, bool(flags & END_MESSAGE), wire)
        self._memory.unreserve(wire)

    def messages_came(self, contents: list[bytes | memoryview], wire: int) -> None:
        """As ``whole``, for several messages that take ``wire`` bytes: all short, or none."""
        for content in contents:
            length = len(content)
            self.pieces.append((content, True, HEADER_SIZE + length) if length else _EMPTY)
        self._unit = HEADER_SIZE + len(contents[-1])
        self.held += wire
        self.messages += len(contents)
        self._open_bytes = self._open_length = 0
        if contents[-1].__class__ is bytes:
            self._memory.hold(wire + _OVERHEAD * len(contents))
        self._memory.unreserve(wire)

    def takes_whole(self, length: int, remaining: int) -> bool:
        """Whether a frame may be delivered by ``whole``: nothing is to be assembled, or lands elsewhere."""
        if self._assembly is not None or self._sink is not None:
            return False
        if self.place is not None and length > SMALL:
            return False
        if self.mode != MESSAGES:
            return True
        return not remaining and not self._open_bytes and length <= self.max_message

    def _push(self, content: bytes | memoryview, ends: bool, wire: int) -> None:
        length = len(content)
        if length <= SMALL:
            content = bytes(content)
            self._memory.hold(wire + _OVERHEAD)
        self.pieces.append((content, ends, wire) if length or not ends else _EMPTY)
        self.held += wire
        if ends:
            self.messages += 1
            self._open_bytes = self._open_length = 0
        else:
            self._open_bytes += wire
            self._open_length += length

    def _pop(self) -> tuple[bytes | memoryview, bool]:
        """The first of the pieces, off the account if held there, and whether a message ends with it."""
        content, ends, wire = self.pieces.popleft()
        self.held -= wire
        if content.__class__ is bytes:
            self._memory.let_go(wire + _OVERHEAD)
        return content, ends

    # -- the application's side ----------------------------------------------------------------------

    def take_message(self) -> memoryview | None:
        """The next whole message, or None when there is none yet."""
        if not self.messages:
            return None
        self.messages -= 1
        content, ends = self._pop()
        if ends:
            return content if content.__class__ is memoryview else memoryview(content)
        parts = [content]
        while not ends:
            content, ends = self._pop()
            parts.append(content)
        total = sum(len(part) for part in parts)
        joined = self._memory.take(total) if total > SMALL else memoryview(bytearray(total))
        position = 0
        for part in parts:
            joined[position : position + len(part)] = part
            position += len(part)
        return joined

    def take_chunk(self) -> memoryview | None:
        """The next piece as it landed, or None."""
        if not self.pieces:
            return None
        content = self._take_part()[0]
        return content if content.__class__ is memoryview else memoryview(content)

    def _take_part(self) -> tuple[bytes | memoryview, bool]:
        """As ``_pop``, where messages are not taken whole."""
        wire = self.pieces[0][2]
        content, ends = self._pop()
        if ends:
            self.messages -= 1
        elif not self.messages:  # it is of the unfinished one
            self._open_bytes -= wire
            self._open_length -= len(content)
        return content, ends

    def drop(self) -> None:
        """Nobody takes what is queued."""
        while self.pieces:
            self._take_part()

    def attach(self, sink: memoryview) -> None:
        """Let the rest of the current message land in ``sink``, beginning with what is queued."""
        self._sink = sink
        self._sink_filled = 0
        self.sink_ends = False
        self.sink_done = not len(sink)
        self._pour()

    def _pour(self) -> None:
        """Move what is queued into the sink, so that what lands there next comes behind it."""
        sink = self._sink
        assert sink is not None
        while self.pieces and not self.sink_done:
            content, ends, wire = self.pieces[0]
            filled = self._sink_filled
            room = len(sink) - filled
            if len(content) > room:
                sink[filled:] = content[:room]
                self._sink_filled += room
                self.pieces[0] = (content[room:], ends, wire)
                if not self.messages:
                    self._open_length -= room
                self.sink_done = True
                return
            self._take_part()
            sink[filled : filled + len(content)] = content
            self._sink_filled += len(content)
            self.sink_ends = ends
            self.sink_done = ends or self._sink_filled == len(sink)

    def detach(self) -> int:
        """Stop landing in the sink; return how many bytes it got."""
        filled, self._sink, self._sink_filled = self._sink_filled, None, 0
        return filled

    def give_back(self) -> None:
        """A cancelled ``receive_into``: what landed in the sink becomes the head of the queue again."""
        sink, filled = self._sink, self.detach()
        ends = self.sink_ends
        if filled or ends:
            assert sink is not None
            self.pieces.appendleft((memoryview(bytes(sink[:filled])), ends, filled))
            self.held += filled
            self.messages += ends
            if not self.messages:
                self._open_bytes += filled
                self._open_length += filled

    # -- credit --------------------------------------------------------------------------------------

    @property
    def grant_due(self) -> bool:
        """Whether `grant` would find enough to promise; cheaper than asking it."""
        state, window = self.state, self.window
        held = self.held - self._open_bytes if self.mode == MESSAGES else self.held
        return window - held - state.recv_credit + state.recv_wire >= window >> 2

    def grant(self) -> int:
        """How many more wire bytes to promise now (0: nothing worth a frame); reserves them.

        Returns -1 when more is due but the account is full. The window begins small and doubles with
        every window that has come, as long as half the account is free: promises cannot be taken back,
        and idle streams must not hold what others need; of the second half only a quarter of a window is
        promised at once. What is assembled for a waiting application is not
        held against it, or a message larger than the window would wait for its own end.
        """
        held = self.held - self._open_bytes if self.mode == MESSAGES else self.held
        arrived = self.state.recv_wire
        outstanding = self.state.recv_credit - arrived
        window = self.window
        if window < self.max_window and arrived - self._grown_at >= window and self._memory.roomy(window):
            self.window = window = min(2 * window, self.max_window)
            self._grown_at = arrived
        room = window + (window >> 8) - held  # a little for headers: the window is to hold its payload
        want = room - outstanding
        if not self._memory.roomy(want):
            want = min(want, window >> 2)
        elif self._unit and want >= window >> 2:
            want = self._whole_messages(want, room)
        if want < window >> 2:
            return 0
        return want if self._memory.reserve(want) else -1

    def _whole_messages(self, want: int, room: int) -> int:
        """Less than ``want``, so that the credit ends where a message does if all are as long as the last.

        Any other end cuts one in two: one more frame, and a short one. The whole of ``want`` when otherwise
        a peer that has little credit left would get none.
        """
        owed = self.state.recv_remaining  # of the message that has begun
        ahead = room - (HEADER_SIZE + owed if 0 < owed < UNKNOWN else 0)
        whole = want - ahead % self._unit
        quarter = self.window >> 2
        return whole if whole >= quarter or want < 2 * quarter else want

    def close(self) -> None:
        """No more will come: return the promised bytes to the account."""
        outstanding = self.state.recv_credit - self.state.recv_wire
        if outstanding > 0:
            self._memory.unreserve(outstanding)
        self.discarding = True
        self._assembly = None
        self._target = _NOWHERE

    def __del__(self) -> None:
        if not hasattr(self, "_memory"):
            return  # half made; compiled code would crash on it
        kept = [wire for content, _, wire in self.pieces if content.__class__ is bytes]
        if kept:
            self._memory.dropped(sum(kept) + _OVERHEAD * len(kept))
