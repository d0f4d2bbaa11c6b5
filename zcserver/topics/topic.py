"""A topic: messages with consecutive numbers, kept for a while in pool memory that its subscribers share.

The topic is the principal of that memory (rule 3), so one buffer goes by reference to every subscriber and
comes home when the window has let go of it and the last of them has acknowledged it. Subscribers have no
queues of their own: each is a position in the window.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any, Final

import anyio

from zcserver.context import MIB, Context
from zcserver.errors import ConnectionLostError, MisuseError, RequestTooLargeError
from zcserver.memory import PAGE, Buffer, Principal, PrincipalKind
from zcserver.memory.region import pages_of
from zcserver.topic_protocol import INLINE, MAX_NAME, Head, Kind, Policy, restamped
from zcserver.views import as_bytes

if TYPE_CHECKING:
    from .retention import Retention
    from .subscription import Subscription

_log = logging.getLogger("zcserver")
_NAMES: Final = 1024
"""Publishers and subscribers whose positions are remembered after they have gone, each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSettings:
    """What a topic keeps and allows. Sizes are bytes.

    ``retain_bytes``, ``retain_count``, ``retain_seconds``   the retention window: whichever is reached first;
                    age is looked at when something is published or somebody subscribes. It is less while
                    memory is short: all topics together keep half of the pool at most
    ``max_message`` the largest message; by default what ``retain_bytes``, the context's ``max_message`` and
                    half of its pool allow
    ``block``       subscribers may ask that the publisher wait for them
    ``in_flight``   what one subscriber may leave unacknowledged; one message always may be
    ``pinned``      what subscribers of all topics may together leave unacknowledged of what has left the
                    windows; past that, the connection of the one that is furthest behind is cut loose
    """

    retain_bytes: int = 16 * MIB
    retain_count: int = 1024
    retain_seconds: float = inf
    max_message: int = 0
    block: bool = False
    in_flight: int = 4 * MIB
    pinned: int = 32 * MIB

    def __post_init__(self) -> None:
        if min(self.retain_bytes, self.retain_count, self.in_flight, self.pinned) < 1:
            raise MisuseError("each limit of a topic has to be at least 1 (byte or message)")
        if self.max_message > self.retain_bytes:
            raise MisuseError(
                f"max_message ({self.max_message} bytes) is over retain_bytes ({self.retain_bytes}): "
                "such a message could not be retained; raise retain_bytes"
            )

    @property
    def largest(self) -> int:
        return self.max_message or self.retain_bytes


class Record:
    """One message of a topic. ``head`` is its first ZCP/1 message, ``body`` the second if it has one.

    ``nbytes`` is the memory it takes, ``placed_bytes`` that of the pool; ``readers`` counts subscriptions
    that have not acknowledged it yet.
    """

    __slots__ = ("body", "head", "nbytes", "placed_bytes", "readers", "retained", "sequence", "time")

    def __init__(
        self, sequence: int, head: bytes, body: Buffer | memoryview | None, nbytes: int, now: float
    ) -> None:
        self.sequence = sequence
        self.head = head
        self.body = body
        self.time = now
        self.readers = 0
        self.retained = True
        self.nbytes = nbytes
        self.placed_bytes = nbytes if isinstance(body, Buffer) else 0


def is_topic(name: str) -> bool:
    """Whether a topic may be called so."""
    return name.startswith("/") and len(name) <= MAX_NAME and name.isprintable()


def _charge(head: bytes | memoryview, body: Buffer | memoryview | None) -> int:
    """What a message takes, in bytes. The head of a body is not worth counting."""
    return len(head) if body is None else pages_of(len(body)) * PAGE


class Topic:
    """Made by :class:`~zcserver.topics.Topics`. ``first`` to ``next - 1`` are retained."""

    def __init__(
        self,
        name: str,
        epoch: str,
        settings: TopicSettings,
        context: Context,
        retention: "Retention",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.epoch = epoch
        self.settings = settings
        self.principal = Principal(f"topic {name}", PrincipalKind.IDENTITY)
        self.next = 1
        self.retained_bytes = 0
        self.placed_bytes = 0
        """Those of them that are memory of the pool."""
        self.waiting_bytes = 0
        """Of messages that wait until there is room for them."""
        self.pinned = 0
        """Bytes of messages that have left the window and are not acknowledged by all."""
        self.cut_loose = 0
        """Connections ended because of what they pinned."""
        self.subscriptions: set[Subscription] = set()
        self.holders: set[Subscription] = set()
        """Those, ended ones too, that have not acknowledged all that they were sent."""
        self.accepted: dict[str, int] = {}
        """By publisher: the last of its own sequence numbers that was accepted."""
        self.positions: dict[str, int] = {}
        """By subscriber's name: the last sequence number that it has committed."""
        self.lasting = False
        """The server itself may publish to it, whenever it likes."""
        self.closed = False
        self._context = context
        self._retention = retention
        self._clock = clock
        self._window: deque[Record] = deque()
        self._moved: anyio.Event | None = None

    @property
    def first(self) -> int:
        """The oldest sequence number that is retained; ``next`` if none is."""
        return self.next - len(self._window)

    @property
    def is_untouched(self) -> bool:
        """Whether nothing was ever published, nobody subscribes, and the server does not use it itself."""
        return self.next == 1 and not self.subscriptions and not self.lasting

    def record(self, sequence: int) -> Record:
        """The retained message with this number. IndexError if it is not."""
        if sequence < self.first:
            raise IndexError(f"message {sequence} has left the window of {self.name}")
        return self._window[sequence - self.first]

    # -- publishing ----------------------------------------------------------------------------------

    def try_acquire(self, nbytes: int) -> Buffer | None:
        """A buffer for a message's payload; None when the pool has no room, whatever retained messages go."""
        context, whose = self._context, (self.principal, self.principal.name)
        while True:
            try:
                buffer = context.pool.try_acquire(nbytes, *whose, context.by_reference)
            except RequestTooLargeError:
                return None
            if buffer is not None or not self._retention.reclaim():
                return buffer

    def place(self, nbytes: int) -> Buffer | None:
        """As :meth:`try_acquire`, for a message that a publisher has begun; `placed` it, once it is there."""
        if not self._retention.admit(nbytes):
            return None
        buffer = self.try_acquire(nbytes)
        if buffer is None:
            self._retention.arrived(nbytes)
        return buffer

    def placed(self, buffer: Buffer) -> None:
        """What `place` gave is complete and taken, or given up."""
        self._retention.arrived(len(buffer))

    async def acquire(self, nbytes: int) -> Buffer:
        """A buffer for a message's payload; waits for memory to come home. As :meth:`Connection.acquire`."""
        context = self._context
        return await context.pool.acquire(
            nbytes, self.principal, self.principal.name, context.memory_seconds, context.by_reference
        )

    async def publish(self, data: Any, *, key: str = "", content_type: str = "") -> int:
        """Publish from within the server; return the sequence number.

        ``data`` is a buffer of :meth:`acquire` (which is gone for you) or contiguous memory, which is copied.
        Waits only if the topic allows subscribers to block. MisuseError for what is too large, and once the
        topic is closed.
        """
        content = data if isinstance(data, Buffer) else as_bytes(data)
        if len(content) > self.settings.largest:
            raise MisuseError(self.too_large(len(content)))
        head = Head(Kind.BODY, 0, length=len(content), key=key, content_type=content_type)
        if not isinstance(content, Buffer):
            if len(content) <= INLINE:
                return await self.add(replace(head, kind=Kind.INLINE).encode(content), None)
            content = self._copied(content)
        if isinstance(content, Buffer):
            content.seal()
        return await self.add(head.encode(), content)

    def _copied(self, data: memoryview) -> Buffer | memoryview:
        buffer = self.try_acquire(len(data))
        if buffer is None:
            return memoryview(bytes(data))
        buffer.view[:] = data
        return buffer

    def too_large(self, nbytes: int) -> str:
        """The words for a message over the limit."""
        return (
            f"a message of {nbytes} bytes is over the limit of the topic {self.name} "
            f"({self.settings.largest} bytes): send less at a time, or have the server retain more"
        )

    async def add(
        self,
        head: bytes | memoryview,
        body: Buffer | memoryview | None,
        timestamp_ns: int = 0,
        check_open: Callable[[], object] | None = None,
    ) -> int:
        """Publish a message behind all others, as soon as there is room for it; return its sequence number.

        A buffer is sealed, and gone for you whatever happens. Other memory stays in the window: it must be
        neither pool nor receive memory. ``check_open`` raises when nothing more is taken: by default, once
        the topic is closed.
        """
        nbytes = _charge(head, body)
        check_open = check_open or self._check_open
        try:
            check_open()
            if not self._make_room(nbytes):
                await self._wait_for_room(nbytes, check_open)
        except BaseException:
            if isinstance(body, Buffer):
                body.home()
            raise
        sequence = self.next
        stamped = restamped(head, sequence, timestamp_ns or time.time_ns())
        self._append(Record(sequence, stamped, body, nbytes, self._clock()))
        return sequence

    async def _wait_for_room(self, nbytes: int, check_open: Callable[[], object]) -> None:
        self.waiting_bytes += nbytes
        try:
            while not self._make_room(nbytes):
                if self._moved is None:
                    self._moved = anyio.Event()
                await self._moved.wait()
                check_open()
        finally:
            self.waiting_bytes -= nbytes

    def _check_open(self) -> None:
        if self.closed:
            raise MisuseError(f"the topic {self.name} is closed: nothing more can be published")

    def _append(self, record: Record) -> None:
        self._window.append(record)
        self.retained_bytes += record.nbytes
        self.placed_bytes += record.placed_bytes
        self.next += 1
        for subscription in self.subscriptions:
            subscription.wake()
        self._retention.cut_loose()

    def moved(self) -> None:
        """A subscriber has got further, or has gone: publishers may have waited for that."""
        self.wake_publishers()
        self._retention.moved()

    def wake_publishers(self) -> None:
        """There may be room by now."""
        moved, self._moved = self._moved, None
        if moved is not None:
            moved.set()

    # -- the window ----------------------------------------------------------------------------------

    def expire(self) -> None:
        """Let go of what is too old."""
        oldest = self._clock() - self.settings.retain_seconds
        while self._window and self._window[0].time < oldest and self.evict():
            pass

    def _make_room(self, nbytes: int) -> bool:
        settings, window = self.settings, self._window
        self.expire()
        while window and (
            self.retained_bytes + nbytes > settings.retain_bytes or len(window) >= settings.retain_count
        ):
            if not self.evict():
                return False
        return self._retention.make_room(self, nbytes)

    def _floor(self) -> float:
        """The lowest sequence number that a blocking subscriber still has to get."""
        waited_for = (each.needed for each in self.subscriptions if each.policy is Policy.BLOCK)
        return min(waited_for, default=inf)

    def evict(self) -> bool:
        """Let go of the oldest message; False when there is none, or blocking subscribers still need it."""
        if not self._window or self._window[0].sequence >= self._floor():
            return False
        record = self._window.popleft()
        record.retained = False
        self.retained_bytes -= record.nbytes
        self.placed_bytes -= record.placed_bytes
        if record.readers:
            self.pinned += record.nbytes
        if isinstance(record.body, Buffer):
            record.body.home()
        record.body = None
        for subscription in self.subscriptions:
            if subscription.cursor <= record.sequence and subscription.policy is Policy.DISCONNECT:
                subscription.wake()
        return True

    def released(self, record: Record) -> None:
        """One subscription has acknowledged the message, or never will."""
        record.readers -= 1
        if not record.readers and not record.retained:
            self.pinned -= record.nbytes

    def end_slowest(self, limit: int) -> bool:
        """End the connection that holds the oldest message: only then may its pages be cut loose."""
        holding = [each for each in self.holders if each.oldest < self.first]
        worst = min(holding, key=lambda each: each.oldest, default=None)
        if worst is None or worst.stream.connection.is_closed:  # (it lets go as soon as its task runs)
            return False
        words = (
            f"{worst.stream.connection.name} does not take what it was sent of the topic {self.name}: "
            f"{self.pinned} bytes that have left the window are held, the limit is {limit} for all topics"
        )
        _log.warning("cut loose: %s", words)
        self.cut_loose += 1
        worst.stream.connection.abort(ConnectionLostError(words))
        return True

    # -- who takes part ------------------------------------------------------------------------------

    def remember(self, table: dict[str, int], name: str, sequence: int) -> None:
        """Note how far ``name`` has got; of many, the one silent for longest is forgotten."""
        table.pop(name, None)
        table[name] = sequence
        if len(table) > _NAMES:
            del table[next(iter(table))]

    def leave(self, subscription: "Subscription") -> None:
        """The subscription has ended."""
        self.subscriptions.discard(subscription)
        self.moved()
        if self.closed and not self.subscriptions:
            self._let_go()

    def close(self) -> None:
        """End the subscriptions, once they have what was published, and let go of the memory."""
        self.closed = True
        for subscription in self.subscriptions:
            subscription.wake()
        self.moved()
        if not self.subscriptions:
            self._let_go()

    def _let_go(self) -> None:
        while self.evict():
            pass
        self._context.pool.retire(self.principal)
