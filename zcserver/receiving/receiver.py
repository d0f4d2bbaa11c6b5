"""Reading the socket: header and payload go straight to where they belong.

Three ways, by the size of a frame, so that neither system calls nor copies pile up:

large   its payload lands in the stream's memory, and the next header in the staging buffer behind it
        (``recvmsg`` with two buffers): one system call a frame
middle  while they come in numbers, many are read at once into a block of receive memory and handed out as
        slices of it; the block goes back when the last slice is gone
small   many are read at once into the staging buffer and copied out of it, so that a short message which the
        application keeps does not keep a block

Nothing here ever waits for the application or for the sender: whatever arrives has a place, because credit
backed it (deadlock rule 1).
"""

import socket
from collections.abc import Callable
from typing import Any, Final

from zcserver.errors import MessageTooLargeError
from zcserver.kernel.calls import Kernel
from zcserver.sending.statistics import TransferStatistics
from zcserver_protocol.codec import Codec
from zcserver_protocol.errors import ErrorCode, RemoteProtocolError
from zcserver_protocol.events import Data, Event
from zcserver_protocol.frames import CRC, HEADER_SIZE

from .inbox import Inbox
from .memory import SMALL, ReceiveMemory

_STAGING: Final = 64 * 1024
# What frames that come in numbers share, in bytes: four of 64 KiB with their headers, in whole pages. A slice
# that the application keeps holds all of it.
_BLOCK: Final = 4 * 64 * 1024 + 4096
# And what those of a peer share that sends faster than is read: the sender's pieces. Only while not much of
# the account is used, for applications that keep a few of many messages.
_LARGE_BLOCK: Final = 1 << 20
# Frames of which fewer fit into a block have memory of their own.
_WORTHWHILE: Final = 3
_DRAIN: Final = 256 * 1024
# Bytes read per readiness before other connections get their turn.
_TURN: Final = 1 << 20
# A control frame counts for so many of them: it takes microseconds.
_CONTROL_FRAME: Final = 1 << 10


class Receiver:
    """Owned by the engine, which gets every event but DATA, and learns which inboxes have news.

    Call ``read`` when the socket is readable; it returns False at the end of the stream (FIN).
    """

    def __init__(
        self,
        sock: socket.socket,
        kernel: Kernel,
        codec: Codec,
        memory: ReceiveMemory,
        statistics: TransferStatistics,
        checksum: Callable[[object], int] | None,
        on_event: Callable[[Event], None],
        on_news: Callable[[Any], None],
        on_progress: Callable[[Any], None],
        on_refused: Callable[[Any, MessageTooLargeError], None],
    ) -> None:
        self._sock = sock
        self._kernel = kernel
        self._codec = codec
        self._memory = memory
        self._statistics = statistics
        self._checksum = checksum
        self._on_event = on_event
        self._on_news = on_news
        self._on_progress = on_progress
        self._on_refused = on_refused
        self.heard = False  # whether the last ``read`` got any bytes
        self.reading = False  # ``read`` is at work: it must not be called from what it calls
        self._closed = False  # perhaps by what ``read`` called
        self._own = memoryview(bytearray(_STAGING))
        self._next_header = self._own[:HEADER_SIZE]
        self._staging = self._own  # or a block, from which slices were handed out
        self._start = 0  # staged bytes not looked at yet: [start, end)
        self._end = 0
        self._length = 0  # payload of the last frame: the next is likely to be as long
        self._before = 0  # of the one before: short and long ones may take turns
        self._block = 0  # how large the next block is, if frames come in numbers
        self._in_place = False  # the current frame's payload stays where it is staged, in the block
        self._inbox: Inbox | None = None  # where the current frame's payload goes; None drains it
        self._frame: tuple[int, int, int] = (0, 0, 0)  # its flags, length, crc
        self._crc_parts: list[Any] = []
        self._drain: memoryview | None = None

    def read(self) -> bool:
        """Read what is there, hand it on, and queue the acknowledgement that is due.

        Raises OSError when the connection is dead, RemoteProtocolError when the peer broke the protocol.
        """
        codec = self._codec
        turn = 0
        alive = True
        waits = False
        self.heard = False
        self.reading = True
        try:
            while turn < _TURN:
                count, wanted = self._read_payload() if codec.payload_left else self._read_header()
                if not count:
                    alive = False
                    break
                turn += count
                self.heard = True
                turn += _CONTROL_FRAME * self._parse()
                if self._closed:
                    return True
                if codec.acknowledgeable - codec.acknowledged >= codec.acknowledge_every:
                    self._acknowledge()
                if count < wanted:
                    break  # the socket is empty; epoll would tell if that has changed meanwhile
            else:
                waits = self._kernel.unread(self._sock) > 0  # it will be readable again at once
        except BlockingIOError:
            pass
        # Rule 4: at the latest when the next read would block, so that no completion waits for traffic.
        if codec.acknowledgeable != codec.acknowledged and not waits:
            self._acknowledge()
        numbers = self._length > SMALL and turn >= 2 * (HEADER_SIZE + self._length)
        self._block = self._next_block(turn) if numbers else 0
        if self._staging is not self._own and not self._in_place:
            self._restage(self._own)  # an idle connection holds no block
        self.reading = False
        return alive

    def close(self) -> None:
        """The connection is over: hold no memory of the account, whatever it was in the middle of."""
        self._closed = True
        self._staging = self._own
        self._start = self._end = 0
        self._inbox = None
        self._crc_parts.clear()

    def _acknowledge(self) -> None:
        self._codec.acknowledge()
        self._statistics.acknowledgements_sent += 1

    def _next_block(self, turn: int) -> int:
        """The size of blocks after a turn of so many bytes; 0 where memory is scarce."""
        memory = self._memory
        if turn >= _TURN >> 1 and memory.roomy(_LARGE_BLOCK + (memory.limit >> 2)):
            return _LARGE_BLOCK
        return _BLOCK if memory.roomy(_BLOCK) else 0

    def _restage(self, staging: memoryview) -> None:
        """Go on at the beginning of ``staging``, with what was not looked at yet."""
        have = self._end - self._start
        if have:
            staging[:have] = bytes(self._staging[self._start : self._end])
        self._staging = staging
        self._start, self._end = 0, have

    def _read_header(self) -> tuple[int, int]:
        have = self._end - self._start
        frame = HEADER_SIZE + self._length
        if self._length > SMALL and frame * _WORTHWHILE <= self._block:
            # Whole frames, if the next are as long as the last: what is cut in two is copied to be joined.
            due = max(frame, self._codec.needs)
            if self._staging is self._own or len(self._staging) - self._start < due:
                self._restage(self._memory.take(self._block))
            room = len(self._staging) - self._start
            wanted = max(room - room % frame, due) - have
        else:
            if self._start:
                self._restage(self._own)
            # After a large frame ask for the header alone: its payload then needs no copy.
            wanted = _STAGING - have if self._short() else max(self._codec.needs - have, 1)
        return self._stage(wanted)

    def _short(self) -> bool:
        return self._length <= SMALL and self._before <= SMALL

    def _stage(self, wanted: int) -> tuple[int, int]:
        end = self._end
        count = self._kernel.recv_into(self._sock, self._staging[end : end + wanted])
        self._end = end + count
        return count, wanted

    def _read_payload(self) -> tuple[int, int]:
        """Only called with nothing staged."""
        left = self._codec.payload_left
        if self._in_place:
            room = len(self._staging) - self._end - left
            return self._stage(left + room - room % (HEADER_SIZE + self._length))
        inbox = self._wanted()
        if inbox is None:
            if self._drain is None:
                self._drain = memoryview(bytearray(_DRAIN))
            target = self._drain[:left]
        else:
            target = inbox.landing(left)
        room = len(target)
        if room < left:
            count = self._kernel.recv_into(self._sock, target)
            self._landed(target, count)
            return count, room
        ahead = self._own if self._short() else self._next_header
        count = self._kernel.recvmsg_into(self._sock, (target, ahead))
        self._staging = self._own
        self._start = 0
        if count < room:
            self._end = 0
            self._landed(target, count)
        else:
            self._end = count - room
            self._landed(target, room)
        return count, room + len(ahead)

    def _wanted(self) -> Inbox | None:
        """Where the current frame's payload goes; None once its stream was given up in mid-frame."""
        inbox = self._inbox
        if inbox is not None and inbox.discarding:
            inbox = self._inbox = None
            self._crc_parts.clear()
        return inbox

    def _parse(self) -> int:
        """Go through what is staged; return how many control frames there were."""
        codec = self._codec
        control = 0
        while True:
            have = self._end - self._start
            left = codec.payload_left
            if left:
                if not have:
                    return control
                inbox = self._wanted()
                step = min(have, left)
                staged = self._staging[self._start : self._start + step]
                if inbox is not None and not self._in_place:
                    target = inbox.landing(left)[:step]
                    step = len(target)
                    target[:] = staged[:step]
                    staged = target  # what is staged is overwritten before a checksum is taken
                    self._statistics.received_copied_bytes += step
                self._start += step
                self._landed(staged, step)
                continue
            needs = codec.needs
            if have < needs:
                if needs > _STAGING:
                    raise RemoteProtocolError(ErrorCode.FRAME_SIZE, f"a control body of {needs} bytes")
                return control
            position = self._start
            self._start = position + needs
            event = codec.feed(self._staging[position : self._start])
            if event is None:
                continue
            if event.__class__ is Data:
                self._begin(event)
            else:
                control += 1
                self._on_event(event)

    def _begin(self, event: Data) -> None:
        self._before = self._length
        self._length = length = event.length
        state = event.stream
        inbox: Inbox | None = None if state is None else state.owner.inbox
        if inbox is not None and inbox.discarding:
            inbox = None
        target: memoryview | None = None  # where the receiver, not the inbox, wants it to land
        if inbox is not None:
            start = self._start
            whole = self._end - start >= length
            if length <= SMALL:
                if whole and inbox.takes_whole(length, event.remaining):
                    copy = bytes(self._staging[start : start + length])
                    self._statistics.received_copied_bytes += length
                    self._take_whole(inbox, event, copy)
                    return
            elif (HEADER_SIZE + length) * _WORTHWHILE <= self._block and inbox.takes_whole(
                length, event.remaining
            ):
                target = self._place_in_block(length)
                if whole:
                    self._take_whole(inbox, event, target)
                    return
                self._in_place = True
        self._inbox = inbox
        self._frame = (event.flags, length, event.crc)
        if inbox is not None:
            try:
                inbox.begin(length, event.remaining, target)
            except MessageTooLargeError as error:
                self._inbox = None
                self._on_refused(inbox.state.owner, error)
        if not length:
            self._codec.payload_received(0)
            self._complete()

    def _place_in_block(self, length: int) -> memoryview:
        """The next ``length`` bytes of a block, where the payload stays; what is staged of it is there."""
        start = self._start
        if self._staging is self._own or len(self._staging) - start < length:
            self._statistics.received_copied_bytes += min(self._end - start, length)
            self._restage(self._memory.take(self._block))
            start = 0
        return self._staging[start : start + length]

    def _take_whole(self, inbox: Inbox, event: Data, payload: bytes | memoryview) -> None:
        """The whole payload is staged already, and ``payload`` is what the application gets."""
        length = event.length
        self._start += length
        if event.flags & CRC:
            try:
                self._verify(self._sum([payload]), event.crc)
            except RemoteProtocolError:
                self._memory.unreserve(HEADER_SIZE + length)  # it came, and goes nowhere
                raise
        self._codec.payload_received(length)
        self._statistics.received_bytes += length
        inbox.whole(payload, event.flags)
        if self._end - self._start > HEADER_SIZE:
            self._take_messages(inbox)
        channel = inbox.state.owner
        if channel.wants_news or inbox.ended:
            self._on_news(channel)

    def _take_messages(self, inbox: Inbox) -> None:
        """As ``_take_whole``, for as many more messages like the last one as are staged."""
        short = self._length <= SMALL
        most = SMALL if short else self._block // _WORTHWHILE - HEADER_SIZE
        most = min(most, inbox.max_message)
        staging, start = self._staging, self._start
        ends = self._codec.whole_messages(
            inbox.state, staging, start, self._end, 0 if short else SMALL + 1, most
        )
        if not ends:
            return
        contents: list[bytes | memoryview] = []
        for end in ends:
            content = staging[start + HEADER_SIZE : end]
            contents.append(bytes(content) if short else content)
            start = end
        taken = start - self._start
        payload = taken - HEADER_SIZE * len(ends)
        self._start = start
        self._before = self._length = len(contents[-1])
        self._statistics.received_bytes += payload
        if short:
            self._statistics.received_copied_bytes += payload
        inbox.messages_came(contents, taken)

    def _landed(self, target: Any, count: int) -> None:
        if not count:
            return
        self._statistics.received_bytes += count
        inbox = self._inbox
        if inbox is not None:
            if self._frame[0] & CRC:
                self._crc_parts.append(target[:count])
            inbox.landed(count)
        if self._codec.payload_received(count):
            self._complete()

    def _complete(self) -> None:
        inbox, self._inbox = self._inbox, None
        self._in_place = False
        if inbox is None:
            return
        flags, length, crc = self._frame
        if flags & CRC:
            parts, self._crc_parts = self._crc_parts, []
            self._verify(self._sum(parts), crc)
        if inbox.complete(flags, length):
            self._on_news(inbox.state.owner)
        elif inbox.grant_due:
            self._on_progress(inbox.state.owner)

    def _sum(self, parts: list[Any]) -> int:
        if self._checksum is None:
            raise RemoteProtocolError(ErrorCode.PROTOCOL, "a frame carries a CRC that was not agreed on")
        crc = 0
        for part in parts:
            crc = self._checksum(part, crc)  # type: ignore[call-arg]
        return crc

    def _verify(self, computed: int, sent: int) -> None:
        if computed != sent:
            raise RemoteProtocolError(
                ErrorCode.INTEGRITY,
                f"payload arrived with CRC32C {computed:08x} instead of {sent:08x}: "
                f"the sender's memory was written to while it was in flight",
            )
