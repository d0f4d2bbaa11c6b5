"""One publisher's stream: its messages come into the topic's memory, and each is accepted once."""

from collections import deque
from typing import Final

import anyio

from zcserver.errors import MessageTooLargeError, StreamResetError
from zcserver.memory import Buffer
from zcserver.receiving.message import Message
from zcserver.stream import Stream
from zcserver.topic_protocol import (
    INLINE,
    MAX_KEY,
    MAX_SEQUENCE,
    SUPERSEDED,
    Head,
    Kind,
    MalformedError,
    decode,
)
from zcserver_protocol.errors import ErrorCode

from .topic import Topic

_HEADS: Final = INLINE + 4 * MAX_KEY
"""The largest message that is no body."""


class Publishing:
    """``publisher`` names who publishes over all of its connections; nobody in particular if it is empty."""

    def __init__(self, topic: Topic, stream: Stream, publisher: str) -> None:
        self.topic = topic
        self.stream = stream
        self.publisher = publisher
        self.nbytes = 0
        self._placed: deque[Buffer] = deque()

    def supersede(self) -> None:
        """The publisher has connected again. From now on nothing of this stream is accepted."""
        self.stream.reset(SUPERSEDED, f"{self.publisher} publishes to {self.topic.name} by another stream")

    async def accept(self) -> None:
        """Accept messages until the publisher ends its side."""
        self.stream.on_change = self.topic.wake_publishers  # it may have failed, and waits in vain
        self.stream.place_messages(self._place, max(self.topic.settings.largest, _HEADS))
        received = 0
        try:
            async for message in self.stream:
                received += await self._take(message)
                await self.stream.commit(received)
        except MessageTooLargeError as error:
            raise StreamResetError(ErrorCode.TOO_LARGE, str(error)) from error
        except MalformedError as error:
            raise StreamResetError(ErrorCode.REFUSED, str(error)) from error
        finally:
            while self._placed:
                self._take_placed().release()

    def _place(self, nbytes: int) -> memoryview | None:
        buffer = self.topic.place(nbytes)
        if buffer is None:
            return None
        self._placed.append(buffer)
        return buffer.view

    async def _take(self, message: Message) -> int:
        """Accept the message that begins with this one; return how many ZCP/1 messages it was."""
        head, _ = decode(message.data)
        self._check(head)
        # Nothing here outlives the call: an idle stream must not keep its last payload.
        content = self._content(await self._payload(head)) if head.kind is Kind.BODY else None
        if self._is_duplicate(head):
            _let_go(content)
        else:
            await self._append(head, message, content)
        return 1 if head.kind is Kind.INLINE else 2

    async def _payload(self, head: Head) -> Message:
        try:
            body = await self.stream.receive()
        except anyio.EndOfStream:
            raise MalformedError("the stream ended between a head and its payload") from None
        if len(body) != head.length:
            raise MalformedError(f"{len(body)} bytes came where {head.length} were announced")
        return body

    def _check(self, head: Head) -> None:
        if head.kind is Kind.MISSING:
            raise MalformedError("only messages can be published")
        if head.sequence > MAX_SEQUENCE:
            raise MalformedError(f"a sequence number is {MAX_SEQUENCE} at most, not {head.sequence}")
        if head.kind is Kind.INLINE and head.length > INLINE:
            raise MalformedError(f"a payload over {INLINE} bytes goes in a message of its own")
        if head.length > self.topic.settings.largest:
            raise StreamResetError(ErrorCode.TOO_LARGE, self.topic.too_large(head.length))
        last = self.topic.accepted.get(self.publisher)
        if self.publisher and last is not None and head.sequence > last + 1:
            raise StreamResetError(
                ErrorCode.REFUSED,
                f"{self.publisher} goes on with {head.sequence}, but the last that was accepted is {last}",
            )

    def _is_duplicate(self, head: Head) -> bool:
        return bool(self.publisher) and head.sequence <= self.topic.accepted.get(self.publisher, 0)

    async def _append(self, head: Head, message: Message, content: Buffer | memoryview | None) -> None:
        topic = self.topic
        if topic.waiting_bytes and topic.waiting_bytes + head.length > topic.settings.retain_bytes:
            _let_go(content)
            reason = f"{topic.waiting_bytes} bytes wait for the subscribers of {topic.name}: try again"
            raise StreamResetError(ErrorCode.CANCELLED, reason)
        await topic.add(message.data, content, head.timestamp_ns, self.stream.check_open)
        self.nbytes += head.length
        if self.publisher:
            topic.remember(topic.accepted, self.publisher, head.sequence)

    def _content(self, body: Message) -> Buffer | memoryview:
        """What the window keeps of a payload: the buffer that it landed in, sealed, or else a copy.

        Receive memory would be missing for what comes next, to whatever topic or file.
        """
        if not self._placed or body.data is not self._placed[0].view:
            return memoryview(bytes(body))
        buffer = self._take_placed()
        buffer.seal()
        return buffer

    def _take_placed(self) -> Buffer:
        buffer = self._placed.popleft()
        self.topic.placed(buffer)
        return buffer


def _let_go(content: Buffer | memoryview | None) -> None:
    if isinstance(content, Buffer):
        content.home()
