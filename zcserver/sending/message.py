"""What is on its way: messages as the application queued them, frames as the wire sees them."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

from zcserver.errors import ConnectionLostError
from zcserver.kernel.calls import memory_at, pointer_to
from zcserver_protocol.frames import END_MESSAGE, END_STREAM, HEADER_SIZE

from .completion import Completion

if TYPE_CHECKING:
    from zcserver.memory import Principal

    from .batch import Batch
    from .files import FileRegion
    from .slab import HeaderSlab

# Lanes, by how a frame's memory may travel. Plain ints: they are compared for every frame.
COPY: Final = 0
REFERENCE: Final = 1
FILE: Final = 2


class Memory(Protocol):
    """Whatever owns the bytes of a message: a pool ``Buffer``, or a hold on foreign memory."""

    def home(self) -> None:
        """Nobody reads these bytes any more: they are free."""

    def abandon(self) -> None:
        """The connection died while a peer may still read them: cut loose or quarantine."""

    @property
    def data(self) -> memoryview:
        """The bytes, for the copy lane."""


class Outgoing(Completion):
    """One message, from ``send`` to the acknowledgement of its last byte, and the promise of that.

    ``address`` is 0 for what may only be copied; ``view`` is what the copy lane reads; ``framed`` is how
    many of its ``nbytes`` have become DATA frames, the last of which carries ``flags``; ``referenced`` tells
    that the kernel may hold its pages. ``shared``: whose memory it is, if not the connection's. ``plain``: it
    may share a run of frames with its neighbours.

    Or the messages of a ``batch``: ``message`` is the number of the one to be framed next, which goes on at
    offset ``framed`` and ends at ``stop``; ``nbytes`` counts the room for headers, too.
    """

    __slots__ = (
        "address",
        "batch",
        "file",
        "flags",
        "framed",
        "memory",
        "message",
        "nbytes",
        "plain",
        "referenced",
        "shared",
        "stop",
        "view",
    )

    def __init__(
        self,
        nbytes: int,
        memory: Memory | None = None,
        view: Any = None,
        address: int = 0,
        ends_stream: bool = False,
        file: "FileRegion | None" = None,
        shared: "Principal | None" = None,
    ) -> None:
        self.nbytes = nbytes
        self.memory = memory
        self.view = view
        self.address = address
        self.flags = END_MESSAGE | END_STREAM if ends_stream else END_MESSAGE
        self.file = file
        self.shared = shared
        self.plain = file is None and not ends_stream
        self.batch: Batch | None = None
        self.message = 0
        self.framed = 0
        self.stop = nbytes
        self.referenced = False
        # What Completion.__init__ does: one call less for every message.
        self.done = False
        self._error = self._event = self._callbacks = None

    def skip(self, count: int) -> None:
        """The batch's next ``count`` messages are framed: go on with the one behind them."""
        batch = self.batch
        assert batch is not None
        self.message = message = self.message + count
        self.framed = batch.start(message)
        self.stop = batch.ends[message]

    def keep_rest(self) -> None:
        """The caller may write to the memory from now on: copy it, unless all of it is in the socket."""
        if self.view is not None:
            self.view = memoryview(bytes(self.view))

    def memory_home(self) -> None:
        """Give the memory back: at the acknowledgement, or when every byte of it has been copied."""
        memory, self.memory, self.view = self.memory, None, None
        if memory is not None:
            memory.home()
        if self.file is not None:
            self.file.close()

    def fail(self, error: BaseException) -> None:
        """The stream or connection died. Pages that the peer may still read are not simply freed."""
        memory, foreign = self.memory, self.view is not None
        self.memory = self.view = None
        if memory is not None:
            if self.referenced:
                memory.abandon()
                if foreign:  # unlike the pool's, it cannot be cut loose (rule 6)
                    error = _still_read(error)
            else:
                memory.home()
        if self.file is not None:
            self.file.close()
        self.resolve(error)

    def __repr__(self) -> str:
        what = f"{self.nbytes} bytes" if self.batch is None else f"{len(self.batch.ends)} messages"
        state = "failed" if self._error is not None else "acknowledged" if self.done else "on its way"
        return f"<Completion of {what}, {state}>"


def _still_read(error: BaseException) -> BaseException:
    lost = ConnectionLostError(f"{error}; the peer may still read the memory that was sent by reference")
    lost.__cause__ = error
    return lost


def batch_of_messages(batch: "Batch", address: int, ends_stream: bool) -> Outgoing:
    """All messages of a sealed batch."""
    outgoing = Outgoing(batch.ends[-1], batch.buffer, None, address, ends_stream)
    outgoing.batch = batch
    outgoing.plain = False
    outgoing.framed = batch.start(0)
    outgoing.stop = batch.ends[0]
    return outgoing


def end_marker() -> Outgoing:
    """An END_STREAM of its own, which ends no message."""
    marker = Outgoing(0, view=memoryview(b""), ends_stream=True)
    marker.flags = END_STREAM
    return marker


class Frame:
    """What is written and acknowledged as one: a DATA frame, or a run of several of one stream.

    A frame is 32 header bytes and some of one message's payload. ``ends`` tells where each of them ends on
    the wire, counted from the first one's header; ``nbytes`` is the last of these. Its memory:

    - one frame: ``start`` is the offset in its message's memory. The header is in ``header`` from
      ``header_start`` on: in the ``slab``, if it may go by reference, else in memory of its own;
    - a run of whole ``messages``: the same, and the headers side by side;
    - a run out of a batch (``inline``): ``header`` is that memory, where headers and payload lie as on the
      wire, from ``start`` on.

    ``sent`` counts the bytes written to the socket; ``end`` is the end in the connection's count of DATA
    bytes; ``last`` tells that its messages end with it, and ``home`` how many of them were acknowledged
    already. ``ending`` counts the messages that end in it, a batch's among them. ``written`` is called once
    all of it is in the socket.
    """

    __slots__ = (
        "end", "ending", "ends", "header", "header_start", "home", "inline", "lane", "last", "messages",
        "nbytes", "payload", "sent", "slab", "start", "written",
    )  # fmt: skip

    def __init__(
        self,
        messages: list[Outgoing],
        ends: list[int],
        lane: int,
        slab: "HeaderSlab | None",
        start: int = 0,
        inline: Any = None,
    ) -> None:
        self.messages = messages
        self.ends = ends
        self.nbytes = ends[-1]
        self.lane = lane
        self.slab = slab
        self.start = start
        self.inline = inline is not None
        self.header: Any
        if slab is not None:
            self.header = slab.view
            self.header_start = slab.take(len(ends))
        elif inline is None:
            self.header = bytearray(HEADER_SIZE * len(ends))
            self.header_start = 0
        else:
            self.header = inline
            self.header_start = start
        self.payload: Any = None
        self.ending = 0
        self.home = 0
        self.sent = 0
        self.end = 0
        self.last = start + ends[0] - HEADER_SIZE == messages[0].nbytes
        self.written: Callable[[], object] | None = None

    @property
    def begun(self) -> Outgoing:
        """The message whose bytes are to be written next."""
        return self.touched(self.sent, self.sent + 1)[0]

    def touched(self, start: int, stop: int) -> list[Outgoing]:
        """The messages to which its bytes from ``start`` to ``stop`` belong."""
        if len(self.messages) == 1:
            return self.messages
        return self.messages[bisect_right(self.ends, start) : bisect_left(self.ends, stop) + 1]

    def ended(self, start: int, stop: int) -> list[Outgoing]:
        """The messages that end in its bytes from ``start`` to ``stop``."""
        if len(self.messages) == 1:
            return self.messages if self.last and stop == self.nbytes else []
        return self.messages[bisect_right(self.ends, start) : bisect_right(self.ends, stop)]

    @property
    def rest(self) -> int:
        """How many bytes of a frame that was begun are still to be written; 0 between two of a run."""
        return self.ends[bisect_left(self.ends, self.sent)] - self.sent

    def headers_in(self, start: int, stop: int) -> int:
        """How many of its bytes from ``start`` to ``stop`` are headers."""
        return self._headers_before(stop) - self._headers_before(start)

    def _headers_before(self, nbytes: int) -> int:
        ends = self.ends
        index = bisect_right(ends, nbytes)
        return index * HEADER_SIZE + min(nbytes - (ends[index - 1] if index else 0), HEADER_SIZE)

    def pieces(self, one_frame: bool) -> list[tuple[int, int, int, int]]:
        """Where that is which is still to be sent by reference, or its first frame: headers and payloads.

        Of each frame the address and bytes (0 to 32) of its header, then of the rest.
        """
        messages, sent = self.messages, self.sent
        if self.inline:
            at = messages[0].address + self.header_start + sent
            return [(0, 0, at, self.rest if one_frame else self.nbytes - sent)]
        assert self.slab is not None
        first_header = self.slab.address + self.header_start
        if len(messages) == 1:
            header = HEADER_SIZE - sent if sent < HEADER_SIZE else 0
            at = messages[0].address + self.start + sent + header - HEADER_SIZE
            return [(first_header + sent, header, at, self.nbytes - sent - header)]
        if not sent:
            headers = range(first_header, first_header + HEADER_SIZE * len(messages), HEADER_SIZE)
            return [
                (header, HEADER_SIZE, message.address, message.nbytes)
                for header, message in zip(headers, messages, strict=True)
            ]
        pieces = []
        for index, skip, length in self._unsent(one_frame):
            header = max(HEADER_SIZE - skip, 0)
            begun = max(skip - HEADER_SIZE, 0)
            header_at = first_header + index * HEADER_SIZE + skip
            pieces.append((header_at, header, messages[index].address + begun, length - begun))
        return pieces

    def copyable(self, one_frame: bool) -> list[Any]:
        """What is still to be sent of it, or of its first frame, as buffers for ``sendmsg``."""
        if self.inline:
            start = self.header_start + self.sent
            return [self.header[start : start + (self.rest if one_frame else self.nbytes - self.sent)]]
        buffers: list[Any] = []
        for index, skip, _ in self._unsent(one_frame):
            payload = self.payload_of(index)
            if skip < HEADER_SIZE:
                start = self.header_start + index * HEADER_SIZE
                buffers += (memoryview(self.header)[start + skip : start + HEADER_SIZE], payload)
            else:
                buffers.append(payload[skip - HEADER_SIZE :])
        return buffers

    def payload_of(self, index: int) -> Any:
        """The payload of the run's frame ``index``, as a buffer."""
        end = self.ends[index]
        begin = self.ends[index - 1] if index else 0
        if self.inline:
            return self.header[self.header_start + begin + HEADER_SIZE : self.header_start + end]
        if self.payload is not None:
            return self.payload
        message = self.messages[index]
        view = message.view
        if view is None:
            assert message.memory is not None
            view = message.memory.data
        return view[self.start : self.start + end - begin - HEADER_SIZE]

    def _unsent(self, one_frame: bool) -> Iterator[tuple[int, int, int]]:
        """Of each frame not wholly sent: its number, the bytes of it that were, and its payload's length."""
        ends = self.ends
        first = bisect_right(ends, self.sent)
        begin = ends[first - 1] if first else 0
        skip = self.sent - begin
        for index in range(first, first + 1 if one_frame else len(ends)):
            yield index, skip, ends[index] - begin - HEADER_SIZE
            begin, skip = ends[index], 0


def run_out_of(batch: "Batch", outgoing: Outgoing, lane: int, stop: int) -> Frame:
    """The next messages of a batch, before message ``stop``: one range of its memory."""
    start = outgoing.framed - HEADER_SIZE
    ends = [end - start for end in batch.ends[outgoing.message : stop]]
    # Written to when the run's turn has come: until then these bytes are not in flight (rule 1).
    memory = memoryview(memory_at(pointer_to(batch.buffer.address), start + ends[-1]))
    frame = Frame([outgoing], ends, lane, None, start, memory)
    frame.last = stop == len(batch.ends)
    return frame
