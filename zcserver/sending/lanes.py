"""Three ways for framed bytes to the socket: by reference, from a file's pages, or copied.

All lanes write the same train of frames in order; each call writes from the train's head as much as the
socket takes, and raises ``BlockingIOError`` when the socket is full. The pipe in between is disposable for
memory (what the socket did not take is discarded and sent again from its offset), never for files.
"""

import contextlib
import errno
import socket
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import islice
from typing import Any, Final

from zcserver.kernel.calls import IoVec, Kernel
from zcserver.kernel.pipe import WORTHWHILE_SLOTS, Pipe, PipeShare
from zcserver_protocol.codec import Codec
from zcserver_protocol.frames import HEADER_SIZE

from .message import COPY, FILE, REFERENCE, Frame
from .statistics import TransferStatistics

# One vmsplice + one splice carry at most this many page fragments (1 MiB of payload, and a pipe of the
# usual size): the more messages go together, the less each of them costs.
PIECE_SLOTS: Final = 256
# A run of frames below this many bytes is copied: two system calls and page look-ups cost more.
REFERENCE_THRESHOLD: Final = 32 * 1024
_COPY_BUFFERS: Final = 128  # sendmsg takes at most IOV_MAX (1024) buffers
_COPY_BYTES: Final = 1 << 20
_PAGE_SHIFT: Final = 12
_PAGE_MASK: Final = 4095


class Lanes:
    """The socket's end of the sender: ``train`` holds framed, not yet fully written frames in wire order.

    ``control`` are the control frames to be written before them, by one system call with what is copied.
    """

    def __init__(
        self,
        sock: socket.socket,
        kernel: Kernel,
        pipes: PipeShare,
        codec: Codec,
        statistics: TransferStatistics,
    ) -> None:
        self.train: deque[Frame] = deque()
        self.control = memoryview(b"")
        self.written = 0  # DATA-frame bytes handed to the socket
        self._when_written: list[tuple[int, int, Callable[[], object]]] = []  # a heap
        self._sock = sock
        self._fd = sock.fileno()
        self._kernel = kernel
        self._pipes = pipes
        self._codec = codec
        self._statistics = statistics
        self._iovec = IoVec(PIECE_SLOTS)
        self._refused = False  # vmsplice, since this connection began

    def send_control(self, more: bool) -> None:
        """Write the control frames.

        ``more``: the train follows at once, so that both may arrive together and wake the peer once.
        """
        self._control_sent(self._kernel.send(self._sock, self.control, socket.MSG_MORE if more else 0))

    def _control_sent(self, nbytes: int) -> int:
        """So many bytes are in the socket, control frames first; return how many of them were not."""
        sent = min(nbytes, len(self.control))
        self.control = self.control[sent:]
        self._statistics.control_bytes += sent
        return nbytes - sent

    def when_written(self, end: int, callback: Callable[[], object]) -> None:
        """Call back once all DATA before ``end`` is in the socket: at once, if it is."""
        if end <= self.written:
            callback()
        else:
            heappush(self._when_written, (end, len(self._when_written), callback))

    def send_train(self, one_frame: bool) -> None:
        """Write from the head of the train by the lane that suits it.

        ``one_frame``: stop at the end of the first frame, because control frames wait for that boundary.
        """
        lane = self.train[0].lane
        if lane == FILE:
            self._send_file()
        elif lane == COPY or self._refused:
            self._send_copies(one_frame, lane)
        else:
            self._send_references(one_frame)

    def _send_references(self, one_frame: bool) -> None:
        try:
            pipe = self._pipes.take()
        except OSError:  # out of descriptors
            self._send_copies(one_frame, REFERENCE)
            return
        slots = pipe.slots if pipe.slots < PIECE_SLOTS else PIECE_SLOTS
        count, total, frames = self._gather(slots, one_frame)
        # (The rest of a message that began to go by reference follows it, however short it is.)
        if (total < REFERENCE_THRESHOLD and not self.train[0].begun.referenced) or slots < WORTHWHILE_SLOTS:
            self._send_copies(one_frame, REFERENCE)
            return
        try:
            pipe.fill_from_memory(self._iovec.cdata, count)
        except OSError as error:  # nothing is queued, and the socket has seen nothing of it
            self._refused = error.errno in (errno.EPERM, errno.ENOSYS)
            pipe.close()
            self._send_copies(one_frame, REFERENCE)
            return
        gathered = list(islice(self.train, frames))
        try:
            sent = self._drain(pipe)
            self._advance(sent, REFERENCE)
        except BaseException:
            # How much the socket took cannot be known: treat all of it as in flight.
            for frame in gathered:
                for outgoing in frame.messages:
                    outgoing.referenced = True
            pipe.close()
            raise
        if pipe.queued:
            pipe.discard()
            raise BlockingIOError

    def _drain(self, pipe: Pipe) -> int:
        """Move to the socket what it takes of the pipe's content; return the bytes moved."""
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while pipe.queued and (moved := pipe.drain_to(self._fd, pipe.queued)):
                sent += moved
        return sent

    def _gather(self, slots: int, one_frame: bool) -> tuple[int, int, int]:
        """Fill the iovec from the frames at the head of the train; return its (entries, bytes, frames)."""
        words: list[int] = []
        total = frames = 0
        for frame in self.train:
            if frame.lane != REFERENCE:
                break
            for header_at, header, at, left in frame.pieces(one_frame):
                offset = at & _PAGE_MASK
                pages = (offset + left + _PAGE_MASK) >> _PAGE_SHIFT
                if header:
                    slots -= 1
                if pages > slots:
                    if slots < PIECE_SLOTS >> 1 and words:
                        # It goes with the next piece, whole: a short rest would cost as much as a piece.
                        return self._iovec.fill(words), total, frames + 1
                    pages = slots
                    left = (slots << _PAGE_SHIFT) - offset
                if header:
                    words.append(header_at)
                    words.append(header)
                words.append(at)
                words.append(left)
                slots -= pages
                total += header + left
            frames += 1
            if one_frame:
                break
        return self._iovec.fill(words), total, frames

    def _send_copies(self, one_frame: bool, lane: int) -> None:
        buffers: list[Any] = [self.control] if self.control else []
        total = 0
        for frame in self.train:
            if frame.lane != lane or total >= _COPY_BYTES or len(buffers) >= _COPY_BUFFERS:
                break
            buffers += frame.copyable(one_frame)
            if one_frame:
                break
            total += frame.nbytes - frame.sent
        sent = self._kernel.sendmsg(self._sock, buffers)
        buffers.clear()  # memory can only come home when no view of it is left
        if self.control:
            sent = self._control_sent(sent)
        self._advance(sent, COPY)

    def _send_file(self) -> None:
        frame = self.train[0]
        if frame.sent < HEADER_SIZE:
            # MSG_MORE: the payload follows at once from the pipe, let them share a segment.
            header = memoryview(frame.header)[frame.sent :]
            self._advance(self._kernel.send(self._sock, header, socket.MSG_MORE), FILE)
            if frame.sent < HEADER_SIZE:
                raise BlockingIOError
        pipe = frame.payload
        try:
            while frame.sent < frame.nbytes:  # then the pipe may be closed already
                moved = pipe.drain_to(self._fd, pipe.queued)
                if not moved:
                    raise BlockingIOError
                self._advance(moved, FILE)
        except BlockingIOError:
            raise
        except OSError:
            pipe.close()
            raise

    def _advance(self, sent: int, lane: int) -> None:
        """``sent`` more bytes of the train are in the socket."""
        self.written += sent
        self._codec.data_written(sent)
        train = self.train
        payload = sent
        while sent:
            frame = train[0]
            before = frame.sent
            after = before + sent
            if after > frame.nbytes:
                after = frame.nbytes
            frame.sent = after
            sent -= after - before
            if lane == REFERENCE:
                for outgoing in frame.touched(before, after):
                    outgoing.referenced = True
            elif lane == COPY:
                for outgoing in frame.ended(before, after):
                    if not outgoing.referenced and outgoing.file is None:
                        outgoing.memory_home()  # all of it was copied: free before the peer acknowledges
            if after < frame.nbytes:
                payload -= frame.headers_in(before, after)
                break
            payload -= frame.headers_in(before, after) if before else HEADER_SIZE * len(frame.ends)
            train.popleft()
            if frame.written is not None:
                frame.written()
        while self._when_written and self._when_written[0][0] <= self.written:
            heappop(self._when_written)[2]()
        statistics = self._statistics
        if lane == REFERENCE:
            statistics.reference_bytes += payload
        elif lane == FILE:
            statistics.file_bytes += payload
        else:
            statistics.copied_bytes += payload
