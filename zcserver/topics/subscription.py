"""One subscriber of a topic: a position in its window, moved on as the subscriber takes what it is sent."""

from collections import deque
from functools import partial
from itertools import islice
from math import inf
from typing import Final

import anyio

from zcserver.errors import StreamResetError
from zcserver.memory import Buffer
from zcserver.sending.completion import Completion
from zcserver.stream import Stream
from zcserver.topic_protocol import TOO_SLOW, Head, Kind, Policy, Reason

from .topic import Record, Topic

_LATEST_UNDER_WAY: Final = 2
"""Messages on their way to a subscriber that wants the newest: more of them would be old when they come."""
_UNCOMMITTED: Final = 4096
"""Messages that one subscriber has not committed and that are noted one by one. Of more, only every second is
left, and so on: a commit then counts as one of a message a little before, until the next."""


class Subscription:
    """``cursor`` is the sequence number that it gets next; ``missed`` counts those that it did not get.

    ``oldest``: the lowest number it has not acknowledged. ``needed``: the lowest that a publisher has to wait
    for, should the policy be to block: what was not sent, or with a ``name`` what was not ``committed``. One
    that resumes says what that is, since it may still commit what it was sent before ``start``.
    """

    def __init__(
        self,
        topic: Topic,
        stream: Stream,
        policy: Policy,
        start: int,
        name: str,
        committed: int | None,
    ) -> None:
        self.topic = topic
        self.stream = stream
        self.policy = policy
        self.name = name
        self.cursor = start
        self.delivered = 0
        self.delivered_bytes = 0
        self.missed = 0
        self.committed = start - 1 if committed is None else committed
        self._under_way: deque[Record] = deque()
        self._under_way_bytes = 0
        self._uncommitted: deque[tuple[int, int]] = deque()  # (messages sent by then, sequence number)
        self._sent = 0  # ZCP/1 messages on the stream
        # Well below where `send` would wait: what is next is decided when it can go, not before.
        self._most = min(topic.settings.in_flight, stream.connection.context.limits.window // 2)
        self._began = False
        self._news: anyio.Event | None = None
        stream.on_change = self._changed

    @property
    def oldest(self) -> float:
        return self._under_way[0].sequence if self._under_way else inf

    @property
    def needed(self) -> int:
        return self.committed + 1 if self.name else self.cursor

    async def deliver(self) -> None:
        """Send until the subscriber or the topic ends; StreamResetError when it is too slow."""
        self.topic.subscriptions.add(self)
        try:
            while not self.stream.is_over:
                if await self._step():
                    continue
                if self.topic.closed and self.cursor >= self.topic.next:
                    break
                self._news = anyio.Event()
                await self._news.wait()
        finally:
            self._changed()
            self.topic.leave(self)

    def wake(self) -> None:
        """Something was published, acknowledged, lost or ended."""
        if self._news is not None:
            self._news.set()

    async def _step(self) -> bool:
        """Send what is next; False when nothing can be sent now."""
        topic = self.topic
        behind, began = self.cursor < topic.first, self._began
        self._began = True
        if behind and began and self.policy is Policy.DISCONNECT:
            raise StreamResetError(
                TOO_SLOW,
                f"the messages {self.cursor} to {topic.first - 1} of {topic.name} left its window "
                "before they could be sent: subscribe again from where you want to go on",
            )
        if self._is_full():
            return False
        # Announcing may have to wait, and the window moves on meanwhile: what comes then is decided anew.
        if behind and not began:
            await self._miss(topic.first, Reason.NOT_RETAINED)
        elif self.policy is Policy.LATEST and self.cursor < topic.next - 1:
            await self._miss(topic.next - 1, Reason.CONFLATED)
        elif behind:
            await self._miss(topic.first, Reason.DROPPED)
        elif self.cursor < topic.next:
            await self._send(topic.record(self.cursor))
        else:
            return False
        return True

    def _is_full(self) -> bool:
        """It has to acknowledge some of what it was sent first."""
        if not self._under_way:
            return False
        if self.policy is Policy.LATEST and len(self._under_way) >= _LATEST_UNDER_WAY:
            return True
        return self._under_way_bytes >= self._most

    async def _miss(self, upto: int, reason: Reason) -> None:
        """Announce that the numbers from the cursor on do not come, and go on with ``upto``."""
        first, self.cursor = self.cursor, upto
        self.missed += upto - first
        head = Head(Kind.MISSING, first, last=upto - 1, reason=reason)
        self._sent += 1
        await self.stream.send(head.encode())
        self.topic.moved()

    async def _send(self, record: Record) -> None:
        body = record.body
        self.cursor = record.sequence + 1
        self._sent += 1 if body is None else 2
        if self.name:
            self._note(record.sequence)
        record.readers += 1
        self._under_way.append(record)
        self._under_way_bytes += record.nbytes
        self.topic.holders.add(self)
        try:
            completion = await self._send_both(record.head, body)
        except BaseException:
            self._arrived(record)
            raise
        self.delivered += 1
        self.delivered_bytes += record.nbytes
        completion.add_done_callback(partial(self._acknowledged, record))
        self.topic.moved()

    def _note(self, sequence: int) -> None:
        """Remember what a commit of all that was sent by now will mean."""
        self._uncommitted.append((self._sent, sequence))
        if len(self._uncommitted) == _UNCOMMITTED:
            self._uncommitted = deque(islice(self._uncommitted, 1, None, 2))

    async def _send_both(self, head: bytes, body: Buffer | memoryview | None) -> Completion:
        if not isinstance(body, Buffer):
            completion = await self.stream.send(head)
            return completion if body is None else await self.stream.send(body)
        body.hold()  # the window may let go of it while other streams of the connection make `send` wait
        try:
            await self.stream.send(head)
            return await self.stream.send_shared(body)
        finally:
            body.home()

    def _acknowledged(self, record: Record, _completion: Completion) -> None:
        self._arrived(record)
        self.wake()

    def _arrived(self, record: Record) -> None:
        """Acknowledged or given up: it pins the message no more."""
        self._under_way.remove(record)  # at the front, unless streams and connections fail
        self._under_way_bytes -= record.nbytes
        self.topic.released(record)
        if not self._under_way:
            self.topic.holders.discard(self)

    def _changed(self) -> None:
        """The subscriber may have committed messages."""
        waiting, committed = self._uncommitted, self.stream.committed
        before = self.committed
        while waiting and waiting[0][0] <= committed:
            self.committed = max(self.committed, waiting.popleft()[1])
        if self.name and self.committed > before:
            self.topic.remember(self.topic.positions, self.name, self.committed)
            self.topic.moved()
        self.wake()
