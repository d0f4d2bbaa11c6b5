"""What is on its way: messages as the application queued them, frames as the wire sees them."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable
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
    that the kernel may hold its pages. ``shared``: whose memory it is, if not the connection's.

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


def _still_read(error: BaseException) -> BaseException:
    lost = ConnectionLostError(f"{error}; the peer may still read the memory that was sent by reference")
    lost.__cause__ = error
    return lost


def batch_of_messages(batch: "Batch", address: int, ends_stream: bool) -> Outgoing:
    """All messages of a sealed batch."""
    outgoing = Outgoing(batch.ends[-1], batch.buffer, None, address, ends_stream)
    outgoing.batch = batch
    outgoing.framed = batch.start(0)
    outgoing.stop = batch.ends[0]
    return outgoing


def end_marker() -> Outgoing:
    """An END_STREAM of its own, which ends no message."""
    marker = Outgoing(0, view=memoryview(b""), ends_stream=True)
    marker.flags = END_STREAM
    return marker


class Frame:
    """One DATA frame: 32 header bytes and some of one message's payload. Or several, see `run_of_frames`.

    ``sent`` counts the bytes written to the socket, header first; ``end`` is the frame's end in the
    connection's count of DATA bytes; ``last`` marks the last frame of ``outgoing``. The header is in
    ``header`` from ``header_start`` on: in the ``slab``, for frames that may go by reference, else in memory
    of its own. ``messages`` are how many end in it. ``ends``: of several frames, where each ends in the
    memory. ``written`` is called once the whole frame is in the socket.
    """

    __slots__ = (
        "end", "ends", "header", "header_start", "lane", "last", "messages", "nbytes", "outgoing", "payload",
        "sent", "slab", "start", "written",
    )  # fmt: skip

    def __init__(self, outgoing: Outgoing, size: int, lane: int, slab: "HeaderSlab | None") -> None:
        self.outgoing = outgoing
        self.start = start = outgoing.framed  # the payload's offset in its memory
        self.nbytes = size + HEADER_SIZE
        self.lane = lane
        self.slab = slab
        if slab is None:
            self.header: Any = bytearray(HEADER_SIZE)
            self.header_start = 0
        else:
            self.header = slab.view
            self.header_start = slab.take()
        self.payload: Any = None
        self.messages = 0
        self.ends: list[int] | None = None
        self.sent = 0
        self.end = 0
        self.last = start + size == outgoing.nbytes
        self.written: Callable[[], object] | None = None

    def copyable(self) -> tuple[Any, Any]:
        """The header and the payload still to be sent, as buffers for ``sendmsg``."""
        payload = self.payload
        if payload is None:
            outgoing = self.outgoing
            view = outgoing.view if outgoing.view is not None else outgoing.memory.data  # type: ignore[union-attr]
            payload = view[self.start : self.start + self.nbytes - HEADER_SIZE]
        if self.sent >= HEADER_SIZE:
            return b"", payload[self.sent - HEADER_SIZE :]
        start = self.header_start
        return memoryview(self.header)[start + self.sent : start + HEADER_SIZE], payload

    @property
    def rest(self) -> int:
        """How many bytes of a frame that was begun are still to be written; 0 between two frames of a run."""
        if self.ends is None:
            return self.nbytes - self.sent
        position = self.start - HEADER_SIZE + self.sent
        return self.ends[bisect_left(self.ends, position)] - position

    def headers_in(self, start: int, stop: int) -> int:
        """How many of its bytes from ``start`` to ``stop`` are headers."""
        return self._headers_before(stop) - self._headers_before(start)

    def _headers_before(self, nbytes: int) -> int:
        ends = self.ends or ()
        begin = self.start - HEADER_SIZE
        index = bisect_right(ends, begin + nbytes)
        begun = begin + nbytes - (ends[index - 1] if index else begin)  # of the frame that this lies in
        return index * HEADER_SIZE + min(begun, HEADER_SIZE)


def run_of_frames(outgoing: Outgoing, batch: "Batch", lane: int, stop: int) -> Frame:
    """The next messages of a batch, before message ``stop``, sent and acknowledged as if they were one frame.

    They lie in memory as on the wire, each header right before its payload, the first one before ``start``.
    """
    ends = batch.ends[outgoing.message : stop]
    frame = Frame(outgoing, ends[-1] - outgoing.framed, lane, None)
    frame.ends = ends
    # Written to when the run's turn has come: until then these bytes are not in flight (rule 1).
    frame.header = memoryview(memory_at(pointer_to(batch.buffer.address), ends[-1]))
    frame.header_start = frame.start - HEADER_SIZE
    return frame
