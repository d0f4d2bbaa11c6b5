"""Publishing: each message into the topic once and in order, across lost connections."""

import contextlib
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

import anyio

from zcserver.again import again
from zcserver.errors import ConnectionLostError, MessageTooLargeError, MisuseError, PoolTimeoutError
from zcserver.memory import Buffer
from zcserver.stream import Stream
from zcserver.topic_protocol import INLINE, MAX_KEY, MAX_TYPE, PUBLISH, Head, Kind
from zcserver.views import as_bytes

from .request import number
from .retrying import INTERRUPTED, Retrying, is_refusal

if TYPE_CHECKING:
    from .client import Client

_FEW: Final = 4096
"""Messages that may wait to be accepted, besides their bytes."""
_KEPT: Final = 32
"""Publishers of one-off messages that wait for more of them."""


class Publication:
    """A message on its way. ``sequence``: this publisher's own number for it, from 1 on."""

    __slots__ = ("_publisher", "sequence")

    def __init__(self, publisher: "Publisher", sequence: int) -> None:
        self._publisher = publisher
        self.sequence = sequence

    async def wait(self) -> None:
        """Return when the topic has it, by however many connections that takes."""
        publisher = self._publisher
        await publisher.settle(lambda: publisher.accepted >= self.sequence)


class _Outbound:
    """A message until it is accepted. ``upto``: ZCP/1 messages sent on the stream with it; 0: it was not."""

    __slots__ = ("body", "head", "nbytes", "sequence", "upto")

    def __init__(self, sequence: int, head: bytes, body: Buffer | memoryview | None, nbytes: int) -> None:
        self.sequence = sequence
        self.head = head
        self.body = body
        self.nbytes = nbytes
        self.upto = 0

    def let_go(self) -> None:
        if isinstance(self.body, Buffer):
            self.body.home()
        self.body = None


class Publisher:
    """Made by :meth:`Client.publisher`; use it as ``async with``. Any number of tasks may publish.

    Leaving the block waits until everything is accepted. ``accepted``: the last of its own sequence numbers
    that the topic is known to have.
    """

    def __init__(self, client: "Client", topic: str, name: str, window: int, retrying: Retrying) -> None:
        self.topic = topic
        self.name = name
        self.accepted = 0
        self.max_message = 0
        """The largest payload that the topic takes, in bytes, once it is known."""
        self._client = client
        self._window = window
        self._retrying = retrying
        self._sequence = 0
        self._unaccepted: deque[_Outbound] = deque()
        self._waiting_bytes = 0
        self._stream: Stream | None = None
        self._sent = 0  # ZCP/1 messages on this stream
        self._closed = False
        self._refusal: Exception | None = None
        self._lock = anyio.Lock()

    @property
    def reconnections(self) -> int:
        """How often it went on by a new connection."""
        return self._retrying.reconnections

    @property
    def is_idle(self) -> bool:
        """Whether everything that was published is accepted."""
        return not self._unaccepted

    @property
    def is_closed(self) -> bool:
        """Whether it was closed, or refused by the server: it publishes nothing any more."""
        return self._closed

    async def acquire(self, nbytes: int) -> Buffer:
        """A buffer to fill and publish, which goes by reference.

        Waits as :meth:`publish` does: while more than the window is not accepted yet, and for another
        connection if this one is lost. Raises as :meth:`publish` and :meth:`Connection.acquire` do, but no
        PoolTimeoutError while messages wait to be accepted: their memory will come home.
        """
        while True:
            await self.settle(lambda: self._has_room(nbytes))
            stream = self._stream
            assert stream is not None  # what `settle` has just seen to
            try:
                return await stream.connection.acquire(nbytes)
            except PoolTimeoutError:
                if not self._unaccepted:
                    raise
                await Publication(self, self._unaccepted[0].sequence).wait()
            except ConnectionLostError as error:
                await self._interrupted(error, stream)

    async def publish(self, data: Any, *, key: str = "", content_type: str = "") -> Publication:
        """Send a message; waits while more than the window is not accepted yet.

        ``data`` is a buffer of :meth:`acquire`, which is gone for you, or any bytes, which must not change
        before it is accepted. Cancelled while it waits for room it has published nothing; after that the
        message goes out with the next call. Raises MessageTooLargeError with the topic's limit,
        StreamResetError when the server refuses, and ConnectionLostError when it stays away. A refusal closes
        the publisher: what was not accepted is given up, and every later call raises it again.
        """
        content = data if isinstance(data, Buffer) else as_bytes(data)
        size = len(content)
        if len(key.encode()) > MAX_KEY or len(content_type.encode()) > MAX_TYPE:
            raise MisuseError(f"a key has at most {MAX_KEY} bytes, a content type {MAX_TYPE}")
        await self._check_size(size)
        await self.settle(lambda: self._has_room(size))
        async with self._lock:
            self._check_open()
            outbound = self._outbound(content, key, content_type)
            self._sequence = outbound.sequence
            self._unaccepted.append(outbound)
            self._waiting_bytes += size
            publication = Publication(self, outbound.sequence)
        await self.settle(lambda: not self._unsent())
        return publication

    def _outbound(self, data: Buffer | memoryview, key: str, content_type: str) -> _Outbound:
        size, sequence = len(data), self._sequence + 1
        inline = size <= INLINE and not isinstance(data, Buffer)
        kind = Kind.INLINE if inline else Kind.BODY
        head = Head(kind, sequence, length=size, key=key, content_type=content_type)
        if isinstance(data, Buffer):
            data.seal()  # held here, too, until it is accepted: a new connection may have to send it again
        elif inline:
            return _Outbound(sequence, head.encode(data), None, size)
        return _Outbound(sequence, head.encode(), data, size)

    async def flush(self) -> None:
        """Return when everything that was published is accepted."""
        await self.settle(lambda: not self._unaccepted)

    async def settle(self, satisfied: Callable[[], bool]) -> None:
        """Send, wait for the topic to accept, connect again if need be, until ``satisfied``."""
        while True:
            self._check_open()
            stream = self._stream
            try:
                async with self._lock:
                    stream = self._stream or await self._open()
                    await self._send_all(stream)
                    self._check_open()
                    if satisfied():
                        return
                    upto = self._unaccepted[0].upto
                await stream.wait_committed(upto)
            except INTERRUPTED as error:
                await self._interrupted(error, stream)
            if satisfied() and not self._unsent():
                return

    def _check_open(self) -> None:
        """Another task may close it, or learn that it is refused, whenever this one waits."""
        if self._refusal is not None:
            raise again(self._refusal)
        if self._closed:
            raise MisuseError(f"the publisher of {self.topic} is closed: what was not accepted is given up")

    async def _interrupted(self, error: Exception, stream: Stream | None) -> None:
        """What ``stream`` was used for has failed: wait until another one is worth a try, or raise."""
        async with self._lock:
            if self._closed or self._stream is not stream:
                return
            self._stream = None
            if is_refusal(error):  # it would be the same whatever is published next: that waits behind it
                self._refusal = error
                self.close()
            await self._retrying.failed(error, stream)

    async def _check_size(self, size: int) -> None:
        if not self.max_message:
            await self.settle(lambda: True)
        if size > self.max_message:
            raise MessageTooLargeError(
                f"a message of {size} bytes is over the limit of the topic {self.topic} ({self.max_message} "
                "bytes): send less at a time, or have the server retain more (--retain)"
            )

    def _has_room(self, size: int) -> bool:
        waiting = self._unaccepted
        return not waiting or (self._waiting_bytes + size <= self._window and len(waiting) < _FEW)

    def _unsent(self) -> bool:
        return self._stream is None or (bool(self._unaccepted) and not self._unaccepted[-1].upto)

    async def _open(self) -> Stream:
        stream, reply = await self._retrying.open(PUBLISH, self.topic, publisher=self.name)
        if self._closed:
            stream.reset(reason="the publisher is done")
            self._check_open()
        accepted = number(reply, "accepted")
        self.max_message = number(reply, "max_message", 1)
        if not self._sequence:
            self._sequence = accepted  # somebody of this name has published before
        if accepted > self.accepted:
            self.accepted = accepted
            self._retrying.progressed()
        while self._unaccepted and self._unaccepted[0].sequence <= accepted:
            self._drop_first()
        for outbound in self._unaccepted:
            outbound.upto = 0
        self._stream, self._sent = stream, 0
        stream.on_change = partial(self._reap, stream)
        return stream

    async def _send_all(self, stream: Stream) -> None:
        for outbound in list(self._unaccepted):
            if outbound.upto:
                continue
            try:
                await stream.send(outbound.head)
                await self._send_body(stream, outbound.body)
            except anyio.get_cancelled_exc_class():
                # Perhaps a head without its payload: the next call begins anew behind what was accepted.
                stream.reset(reason="cancelled in the middle of a message")
                self._stream = None
                raise
            self._sent += 1 if outbound.body is None else 2
            outbound.upto = self._sent

    async def _send_body(self, stream: Stream, body: Buffer | memoryview | None) -> None:
        if not isinstance(body, Buffer):
            if body is not None:
                await stream.send(body)
        elif body.principal is stream.connection.principal:
            await stream.send_shared(body)
        else:  # it was acquired for a connection that is gone
            await stream.send(body.data)

    def _reap(self, stream: Stream) -> None:
        """Let go of what was accepted, as soon as that is known: others may wait for its memory."""
        if stream is not self._stream:
            return
        committed = stream.committed
        while self._unaccepted and 0 < self._unaccepted[0].upto <= committed:
            self.accepted = self._unaccepted[0].sequence
            self._retrying.progressed()
            self._drop_first()

    def _drop_first(self) -> None:
        outbound = self._unaccepted.popleft()
        self._waiting_bytes -= outbound.nbytes
        outbound.let_go()

    async def __aenter__(self) -> Self:
        await self.settle(lambda: True)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                await self.flush()
                await self.end()
        finally:
            self.close()

    async def end(self) -> None:
        """End the stream, once everything is accepted. What is published next opens another."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with contextlib.suppress(*INTERRUPTED):  # the topic has everything already
                await stream.end()

    def close(self) -> None:
        """Give up what is not accepted yet. Idempotent."""
        self._closed = True
        while self._unaccepted:
            self._drop_first()
        stream, self._stream = self._stream, None
        if stream is not None and not stream.is_over:
            stream.reset(reason="the publisher is done")


class Publishers:
    """What publishes one-off messages, by topic. Each has a stream open, which the connection has few of."""

    def __init__(self, make: Callable[[str], Publisher]) -> None:
        self._make = make
        self._publishers: dict[str, Publisher] = {}  # the one used last comes last
        self._calls: Counter[str] = Counter()

    async def publish(self, topic: str, data: Any, key: str, content_type: str) -> None:
        """Publish a message and return when the topic has it."""
        publisher = self._publishers.pop(topic, None)
        if publisher is None or publisher.is_closed:
            publisher = self._make(topic)
        self._publishers[topic] = publisher
        self._calls[topic] += 1
        try:
            await (await publisher.publish(data, key=key, content_type=content_type)).wait()
        finally:
            self._calls[topic] -= 1
            await self._end_idle()

    async def _end_idle(self) -> None:
        """End those that were not used for longest, until few are left."""
        idle = [topic for topic, each in self._publishers.items() if each.is_idle and not self._calls[topic]]
        for topic in idle[: max(0, len(self._publishers) - _KEPT)]:
            del self._calls[topic]
            publisher = self._publishers.pop(topic)
            await publisher.end()
            publisher.close()

    def close(self) -> None:
        """Give up what is not accepted yet."""
        for publisher in self._publishers.values():
            publisher.close()
