"""The sender of one connection: control frames first, acknowledgements, and what failure leaves behind.

Bytes move in one direction through here: a channel's queue → frames (``Framer``) in the ``Ledger`` and on
the train → ``Lanes`` → socket; an acknowledged offset comes back through the ledger and frees what it covers.
"""

from bisect import bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING

from zcserver.memory import Pool, Principal
from zcserver_protocol.codec import Codec

from .framing import Checksum, Framer
from .lanes import Lanes
from .ledger import Ledger
from .message import COPY, Outgoing
from .slab import HeaderPages
from .statistics import TransferStatistics

if TYPE_CHECKING:
    from zcserver.channel import Channel


class Sender:
    """Owned by the engine. ``pump`` writes all that may be written now; everything else only queues."""

    def __init__(
        self,
        codec: Codec,
        lanes: Lanes,
        pool: Pool,
        principal: Principal,
        holder: str,
        window: int,
        statistics: TransferStatistics,
        checksum: Checksum | None,
    ) -> None:
        self.ledger = Ledger()
        self._headers = HeaderPages(pool, principal, holder)
        self.framer = Framer(codec, lanes, self.ledger, self._headers, window, statistics, checksum)
        self._codec = codec
        self._lanes = lanes
        self._train = lanes.train
        self._ready = self.framer.ready
        self._statistics = statistics

    @property
    def idle(self) -> bool:
        """Nothing is queued, on the train or unacknowledged."""
        return not self.ledger and not self._ready and not self._lanes.control

    @property
    def loaded(self) -> bool:
        """Some DATA may be written now, as far as window and socket allow."""
        return bool(self._ready or self._train)

    @property
    def ahead(self) -> int:
        """Bytes framed and not yet in the socket."""
        return self.ledger.framed - self._lanes.written

    # -- writing -------------------------------------------------------------------------------------

    def pump(self) -> bool:
        """Write until the socket is full (True: wait until it is writable) or nothing may be sent (False).

        Raises ``OSError`` when the connection is dead.
        """
        lanes = self._lanes
        train = lanes.train
        codec = self._codec
        try:
            while True:
                if self._ready:
                    self.framer.cut_ahead()
                if not train or not train[0].sent or not train[0].rest:
                    # To the last frame that is due: behind what the full socket left of the ones before,
                    # a REPLY may have come whose stream's DATA is on the train.
                    while lanes.control or codec.control_pending:
                        if not lanes.control:
                            lanes.control = memoryview(codec.take_control())
                        if train and train[0].lane == COPY and not codec.control_pending:
                            break  # by the same system call
                        lanes.send_control(bool(train))
                if train:
                    lanes.send_train(codec.control_pending)
                elif not codec.control_pending:
                    if not self.ledger:
                        self._headers.drop()  # an idle connection keeps no page of a region in flight
                    return False
        except BlockingIOError:
            return True

    def farewell(self) -> None:
        """The connection ends now: write the control frames that are due, if no frame is half written."""
        if not self._train or not self._train[0].sent or not self._train[0].rest:
            self._lanes.control = memoryview(bytes(self._lanes.control) + self._codec.take_control())
            self._lanes.send_control(False)

    # -- acknowledgement and failure -----------------------------------------------------------------

    def acknowledged(self, upto: int) -> None:
        """The peer has copied out every DATA byte below ``upto``: free what that covers, then ``pump``."""
        completed = 0
        for frame in self.ledger.acknowledge(upto):
            if frame.slab is not None:
                self._headers.acknowledged(frame.slab, len(frame.ends))
            completed += frame.ending - frame.home
            if frame.last:
                _bring_home(frame.messages[frame.home :] if frame.home else frame.messages)
        head = self.ledger.head
        if head is not None and len(head.messages) > 1:
            count = bisect_right(head.ends, upto - head.end + head.nbytes)
            first, head.home = head.home, count  # before a callback can drop the connection
            completed += count - first
            _bring_home(head.messages[first:count])
        self._statistics.messages_acknowledged += completed

    def cut(self, channel: "Channel", error: BaseException, then: Callable[[], object] | None) -> None:
        """Give up what ``channel`` has queued. Its frames are still sent; ``then`` is called after them.

        A message cut in two fails, and its memory comes home, when nobody will read that memory any more.
        """
        queued = list(channel.outgoing)
        channel.outgoing.clear()
        self.framer.forget(channel)
        partly = queued[0] if queued and queued[0].framed else None
        for outgoing in queued:
            if outgoing is not partly:
                outgoing.fail(error)
        if partly is not None:
            frames = [frame for frame in self.ledger if frame.messages[0] is partly]
            copied = not partly.referenced and partly.file is None
            if not frames or (copied and frames[-1].sent == frames[-1].nbytes):
                partly.memory_home()
                partly.resolve(error)
            else:
                partly.doom(error)
                frames[-1].last = True
        if then is not None:
            self._lanes.when_written(channel.framed_end, then)

    def fail(self, error: BaseException) -> None:
        """The connection is dead and its socket closed: nothing queued, framed or in flight survives."""
        self._lanes.train.clear()
        slabs = {frame.slab for frame in self.ledger if frame.slab is not None}
        outgoing = {id(each): each for frame in self.ledger for each in frame.messages[frame.home :]}
        for channel in self._ready:
            channel.ready = False
        self._ready.clear()
        self.ledger.clear()
        for message in outgoing.values():
            message.fail(error)
        self._headers.abandon(slabs)


def _bring_home(messages: list[Outgoing]) -> None:
    """The peer has acknowledged all of these."""
    for outgoing in messages:
        outgoing.memory_home()
        outgoing.resolve()
