"""From the streams' queues to frames on the train: turns, window, credit, headers."""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from zcserver.memory import PAGE
from zcserver_protocol.codec import Codec
from zcserver_protocol.frames import CRC, END_MESSAGE, HEADER_SIZE
from zcserver_protocol.states import FLOWING
from zcserver_protocol.streams import StreamState

from .batch import Batch
from .files import FileRegion, Offload
from .lanes import Lanes
from .ledger import Ledger
from .message import COPY, FILE, REFERENCE, Frame, Outgoing, run_out_of
from .slab import PLACES, HeaderPages, HeaderSlab
from .statistics import TransferStatistics

if TYPE_CHECKING:
    from zcserver.channel import Channel

# Frames are cut this far ahead of the socket, in bytes (by up to one frame or run more): enough for the next
# pieces, and little for another stream to wait behind.
_FRAMED_AHEAD: Final = 1 << 20
# A run of messages has so many bytes at most when other streams have something to send, too.
_SHARED_TURN: Final = 64 << 10
Checksum = Callable[[object], int]


class Framer:
    """Owned by the sender. ``make_ready`` a channel, then ``cut_ahead`` whenever some of it may be sent.

    ``window`` (bytes) bounds what is unacknowledged, ``max_frame`` the payload of a frame. ``offload`` (work
    for a thread), ``resume`` ("pump again") and ``failed`` (a file cannot be read on) are the engine's.
    """

    def __init__(
        self,
        codec: Codec,
        lanes: Lanes,
        ledger: Ledger,
        headers: HeaderPages,
        window: int,
        statistics: TransferStatistics,
        checksum: Checksum | None,
    ) -> None:
        self.ready: deque[Channel] = deque()
        self.window = window
        self.max_frame = max(window // 4 - HEADER_SIZE, PAGE)
        self.offload: Offload | None = None
        self.resume: Callable[[], None] = lambda: None
        self.failed: Callable[[Any, BaseException], None] = lambda channel, error: None
        self._codec = codec
        self._lanes = lanes
        self._train = lanes.train
        self._ledger = ledger
        self._headers = headers
        self._statistics = statistics
        self._checksum = checksum

    def make_ready(self, channel: "Channel") -> None:
        """``channel`` may have something to frame (a message, credit, a file's next piece); then ``pump``.

        Without credit, or before the REPLY, it has not: the frame that brings them calls this.
        """
        state = channel.state
        room = state.send_credit - state.send_wire >= HEADER_SIZE and state.send_state == FLOWING
        if room and not channel.ready and channel.outgoing:
            channel.ready = True
            self.ready.append(channel)

    def forget(self, channel: "Channel") -> None:
        """Nothing of ``channel`` is to be framed any more."""
        if channel.ready:
            self.ready.remove(channel)
            channel.ready = False

    def cut_ahead(self) -> None:
        """Cut frames, of each ready channel in turn, while window, credit and the look-ahead allow."""
        ledger, ready, lanes = self._ledger, self.ready, self._lanes
        while ready and ledger.framed - lanes.written < _FRAMED_AHEAD:
            channel = ready[0]
            outgoing = channel.outgoing[0]
            size = outgoing.stop - outgoing.framed
            if size > self.max_frame:
                size = self.max_frame
            in_flight = ledger.framed - ledger.acknowledged
            if in_flight and in_flight + size + HEADER_SIZE > self.window:
                return  # the acknowledgement that makes room calls pump again
            state = channel.state
            room = state.send_credit - state.send_wire - HEADER_SIZE
            if room < size or state.send_state != FLOWING:
                if room <= 0 or state.send_state != FLOWING:
                    self._set_aside(channel)  # until CREDIT, or REPLY
                    continue
                size = room
            if outgoing.file is not None:
                if not self._frame_file(channel, outgoing.file, outgoing, size):
                    if channel.ready:  # else it was given up
                        self._set_aside(channel)
                    continue
            else:
                turn = _FRAMED_AHEAD if len(ready) == 1 else _SHARED_TURN
                most = min(room + HEADER_SIZE, self.window - in_flight, turn)
                batch = outgoing.batch
                if batch is None or not self._frame_batch(channel, outgoing, batch, size, most):
                    self._frame_messages(channel, outgoing, size, most)
            if not channel.outgoing:
                self._set_aside(channel)
            elif len(ready) > 1:
                ready.rotate(-1)

    def _frame_messages(self, channel: "Channel", outgoing: Outgoing, size: int, most: int) -> None:
        """Cut ``size`` bytes off the first message; if it is a short one, a run of up to ``most`` bytes."""
        slab = None
        if outgoing.address:
            slab = self._headers.page(outgoing.shared)
        if size < most >> 2 and size == outgoing.nbytes and outgoing.plain and len(channel.outgoing) > 1:
            self._frame_run(channel, slab, most)
        else:
            lane = COPY if slab is None else REFERENCE
            frame = Frame([outgoing], [size + HEADER_SIZE], lane, slab, outgoing.framed)
            self._commit(channel, outgoing, frame)

    def _frame_run(self, channel: "Channel", slab: HeaderSlab | None, most: int) -> None:
        """Cut a run of the first messages, whole ones of up to ``most`` bytes in all. The first one fits."""
        queue, longest = channel.outgoing, self.max_frame
        shared, copied = queue[0].shared, not queue[0].address
        row = PLACES if slab is None else slab.row
        messages: list[Outgoing] = []
        lengths: list[int] = []
        ends: list[int] = []
        end = 0
        while queue and len(ends) < row:
            outgoing = queue[0]
            size = outgoing.nbytes
            end += size + HEADER_SIZE
            if (
                end > most
                or size > longest
                or not outgoing.plain
                or outgoing.shared is not shared
                or (not outgoing.address) is not copied
            ):
                break
            messages.append(queue.popleft())
            lengths.append(size)
            ends.append(end)
        frame = Frame(messages, ends, COPY if slab is None else REFERENCE, slab)
        frame.ending = count = len(ends)
        self._statistics.messages_sent += count
        start = frame.header_start
        places = range(start, start + count * HEADER_SIZE, HEADER_SIZE)
        self._write_headers(channel.state, frame, places, lengths, END_MESSAGE)
        self._enqueue(channel, frame, ends[-1] - count * HEADER_SIZE)

    def _frame_batch(
        self, channel: "Channel", outgoing: Outgoing, batch: Batch, size: int, most: int
    ) -> bool:
        """Cut a run of up to ``most`` bytes off the batch; False if its next message must be cut in two."""
        ends, first = batch.ends, outgoing.message
        before = outgoing.framed
        if before != batch.start(first) or size < outgoing.stop - before:
            return False
        start, longest = before - HEADER_SIZE, self.max_frame
        stop = max(bisect_right(ends, start + most), first + 1)
        places = [start, *ends[first : stop - 1]]
        lengths = [end - place - HEADER_SIZE for place, end in zip(places, ends[first:stop], strict=True)]
        if max(lengths) > longest:  # it has to be cut, and ends the run
            count = next(number for number, length in enumerate(lengths) if length > longest)
            stop, lengths = first + count, lengths[:count]
        frame = run_out_of(batch, outgoing, REFERENCE if outgoing.address else COPY, stop)
        outgoing.framed = ends[stop - 1]
        flags = self._end_messages(channel, outgoing, frame, len(lengths))
        self._write_headers(channel.state, frame, places[: len(lengths)], lengths, flags)
        self._enqueue(channel, frame, outgoing.framed - before)
        return True

    def _set_aside(self, channel: "Channel") -> None:
        """The channel at the head has nothing to frame now: others go on; it waits to be made ready."""
        self.ready.popleft()
        channel.ready = False

    def _frame_file(self, channel: "Channel", region: FileRegion, outgoing: Outgoing, size: int) -> bool:
        """Cut a frame of what has been read of the file; False when the channel has to wait after that.

        Either a thread has to read the next piece first, or this frame's pipe has to be drained; or the
        file failed, and the channel was given up.
        """
        assert self.offload is not None

        def resume() -> None:
            self.make_ready(channel)
            self.resume()

        if region.busy:
            return False  # CREDIT came early: a thread, or an unfinished frame, still uses the pipe
        due = not region.ready and region.error is None and size
        if due and not region.prepare(size, self.offload, resume):
            return False
        if region.error is not None:
            self.failed(channel, region.error)
            return False
        lane = FILE if region.chunk is None else COPY
        frame = Frame([outgoing], [region.ready + HEADER_SIZE], lane, None, outgoing.framed)
        frame.payload = region.pipe if region.chunk is None else memoryview(region.chunk)
        region.consumed()
        if frame.last:
            frame.written = region.close
        elif frame.lane == FILE:
            frame.written = partial(self._drained, region, channel)
        self._commit(channel, outgoing, frame)
        # The pipe is this frame's payload until it is drained; the next message has one of its own.
        return frame.last or frame.lane != FILE

    def _drained(self, region: FileRegion, channel: "Channel") -> None:
        """The region's pipe is in the socket; ``pump``, which called this, goes on with the next piece."""
        region.busy = False
        self.make_ready(channel)

    def _commit(self, channel: "Channel", outgoing: Outgoing, frame: Frame) -> None:
        """Write the header of a single frame, which is next of what ``outgoing`` sends, and enqueue it."""
        size = frame.nbytes - HEADER_SIZE
        flags = crc = 0
        before = outgoing.framed
        outgoing.framed = framed = before + size
        left = outgoing.stop - framed
        if left <= 0:
            flags = self._end_messages(channel, outgoing, frame, 1)
        if self._checksum is not None and size:
            crc = self._checksum(frame.payload_of(0))
            flags |= CRC
        start = frame.header_start
        self._codec.data_header_into(frame.header, start, channel.state, size, left, flags, crc)
        self._enqueue(channel, frame, outgoing.framed - before)

    def _end_messages(self, channel: "Channel", outgoing: Outgoing, frame: Frame, count: int) -> int:
        """In ``frame`` the next ``count`` messages of ``outgoing`` end; return the flags of the last one."""
        frame.ending = count
        self._statistics.messages_sent += count
        if not frame.last:
            outgoing.skip(count)
            return END_MESSAGE
        outgoing.batch = None
        channel.outgoing.popleft()
        return outgoing.flags

    def _write_headers(
        self, state: StreamState, frame: Frame, places: Iterable[int], lengths: list[int], last_flags: int
    ) -> None:
        """The headers of a run of whole messages."""
        if self._checksum is None and last_flags == END_MESSAGE:
            self._codec.data_headers_into(frame.header, state, places, lengths)
            return
        for index, (place, length) in enumerate(zip(places, lengths, strict=True)):
            flags = END_MESSAGE if index + 1 < len(lengths) else last_flags
            crc = 0
            if self._checksum is not None and length:
                crc = self._checksum(frame.payload_of(index))
                flags |= CRC
            self._codec.data_header_into(frame.header, place, state, length, 0, flags, crc)

    def _enqueue(self, channel: "Channel", frame: Frame, taken: int) -> None:
        """Give the frame its place in the byte stream: from here it will be sent."""
        self._train.append(frame)
        self._ledger.add(frame)
        channel.framed_end = frame.end
        channel.queued = queued = channel.queued - taken
        if queued <= channel.room_below:
            channel.on_room()
