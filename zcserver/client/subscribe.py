"""Subscribing: the messages of a topic, each once and in order, across lost connections."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import anyio

from zcserver.errors import TransferError
from zcserver.stream import Stream
from zcserver.topic_protocol import (
    MAX_SEQUENCE,
    POSITION,
    SUBSCRIBE,
    Head,
    Kind,
    MalformedError,
    Reason,
    decode,
)

from .request import number, text
from .retrying import INTERRUPTED, Retrying

if TYPE_CHECKING:
    from .client import Client

_PARTING: Final = 2.0
_GAPS: Final = 64  # told apart before a message; more that follow each other count as one


@dataclass(frozen=True, slots=True)
class Missing:
    """The sequence numbers ``first`` to ``last`` (included) did not come, and will not.

    ``last`` is None when nobody knows: the server was restarted and counts from 1 again.
    """

    first: int
    last: int | None
    reason: Reason

    def __str__(self) -> str:
        which = f"{self.first} to {self.last}" if self.last is not None else f"{self.first} and later"
        return f"missing {which} ({self.reason.name.lower().replace('_', ' ')})"


class TopicMessage:
    """One message. ``data`` is a memoryview of its payload, which lives as :class:`zcserver.Message` does.

    ``sequence``: the topic's number, within its ``epoch``, a text that changes when the server is restarted:
    both together name a message for good. ``timestamp_ns``: when it was published, nanoseconds since 1970.
    ``missed``: what should have come between the message before and this one.
    """

    __slots__ = (
        "_mark",
        "_subscription",
        "content_type",
        "data",
        "epoch",
        "key",
        "missed",
        "sequence",
        "timestamp_ns",
    )

    def __init__(
        self,
        head: Head,
        data: memoryview,
        missed: Sequence[Missing],
        subscription: "Subscription",
        mark: tuple[Stream, int],
    ) -> None:
        self.data = data
        self.sequence = head.sequence
        self.epoch = subscription.epoch
        self.timestamp_ns = head.timestamp_ns
        self.key = head.key
        self.content_type = head.content_type
        self.missed = tuple(missed)
        self._subscription = subscription
        self._mark = mark

    async def commit(self) -> None:
        """Tell the server that this message, and all before it, are done with.

        A subscriber of the same name that begins with ``committed`` goes on behind it. It is not lost with
        the connection: the next one carries it. After a restart of the server, which counts anew, it means
        nothing any more.
        """
        await self._subscription.committed_upto(self.epoch, self.sequence, *self._mark)

    def __len__(self) -> int:
        return len(self.data)

    def __bytes__(self) -> bytes:
        return bytes(self.data)

    def __repr__(self) -> str:
        return f"<TopicMessage {self.sequence} of {len(self.data)} bytes>"


class Subscription:
    """Made by :meth:`Client.subscribe`: iterate over it, in one task. ``async with`` ends it early.

    ``position``: the sequence number that comes next (None before the first connection), in ``epoch``.
    ``missed`` counts the messages that did not come, ``committed`` is the last that was committed.
    """

    def __init__(
        self, client: "Client", topic: str, start: str | int, policy: str, name: str, retrying: Retrying
    ) -> None:
        self.topic = topic
        self.position: int | None = None
        self.epoch = ""
        self.committed = 0
        self.missed = 0
        self._client = client
        self._start = start
        self._policy = policy
        self._name = name
        self._retrying = retrying
        self._stream: Stream | None = None
        self._received = 0  # ZCP/1 messages on this stream
        self._told = 0  # committed as the server knows, or before the first that was asked for
        self._head: Head | None = None  # its payload is still to come
        self._gaps: list[Missing] = []
        self._closed = False

    @property
    def missing(self) -> tuple[Missing, ...]:
        """What did not come since the last message. The next one has it in ``missed``."""
        return tuple(self._gaps)

    @property
    def reconnections(self) -> int:
        """How often it went on by a new connection."""
        return self._retrying.reconnections

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TopicMessage:
        while not self._closed:
            stream = self._stream
            try:
                if stream is None:
                    stream = await self.open()
                return await self._receive(stream)
            except INTERRUPTED as error:
                self._stream = None
                if not self._closed:
                    await self._retrying.failed(error, stream)
        raise StopAsyncIteration

    async def open(self) -> Stream:
        """Subscribe now instead of with the first message: what is published from here on is not missed."""
        if self._stream is not None:
            return self._stream
        carried = max(self.committed, self._told)
        stream, reply = await self._retrying.open(
            SUBSCRIBE,
            self.topic,
            **{"from": self._start if self.position is None else self.position},
            policy=self._policy,
            name=self._name,
            epoch=self.epoch,
            committed=carried if self._name and self.position is not None else None,
        )
        if self._closed:  # by another task, meanwhile
            stream.reset(reason="the subscriber is done")
            raise anyio.EndOfStream
        epoch, start = text(reply, "epoch"), number(reply, "start", 1)
        if self.epoch == epoch:
            self._told = carried
        else:
            if self.position is not None:
                self._gaps.append(Missing(self.position, None, Reason.RESTARTED))
            self.committed, self._told = 0, start - 1
        self.epoch, self.position = epoch, start
        self._stream, self._received, self._head = stream, 0, None
        if self.committed > self._told:
            await self._tell()  # it was committed in the meantime
        return stream

    async def _receive(self, stream: Stream) -> TopicMessage:
        while True:
            head = self._head
            if head is None:
                head, data = _decode((await stream.receive()).data)
                self._received += 1
                self._retrying.progressed()
                self._check(head)
                if head.kind is Kind.MISSING:
                    self._miss(head)
                    continue
            if head.kind is Kind.BODY:
                self._head = head  # a cancelled call loses nothing
                data = (await stream.receive()).data
                self._received += 1
                self._head = None
                if len(data) != head.length:
                    raise TransferError(f"message {head.sequence} has {len(data)} bytes, not {head.length}")
            self._advance(head.sequence)
            gaps, self._gaps = self._gaps, []
            return TopicMessage(head, data, gaps, self, (stream, self._received))

    def _check(self, head: Head) -> None:
        if head.sequence != self.position:
            raise TransferError(
                f"the server sent message {head.sequence} of {self.topic} where {self.position} was due"
            )

    def _miss(self, head: Head) -> None:
        if head.last < head.sequence:
            raise TransferError(f"the server announced a gap from {head.sequence} to {head.last}")
        self._advance(head.last)
        try:
            reason = Reason(head.reason)
        except ValueError:
            reason = Reason.DROPPED
        self.missed += head.last - head.sequence + 1
        gaps, first = self._gaps, head.sequence
        if gaps and gaps[-1].last == first - 1 and (gaps[-1].reason is reason or len(gaps) >= _GAPS):
            before = gaps.pop()
            first, reason = before.first, before.reason
        gaps.append(Missing(first, head.last, reason))

    def _advance(self, last: int) -> None:
        if last >= MAX_SEQUENCE:  # nothing could be asked for behind it
            raise TransferError(f"the server counts to {last}: numbers of messages are below {MAX_SEQUENCE}")
        self.position = last + 1

    async def committed_upto(self, epoch: str, sequence: int, stream: Stream, count: int) -> None:
        """What :meth:`TopicMessage.commit` does."""
        if epoch != self.epoch or sequence <= self.committed:
            return
        self.committed = sequence
        current = self._stream
        if current is None or current.is_over:
            return  # the next connection carries it
        if stream is current:
            self._told = sequence
            await stream.commit(count)
        else:
            await self._tell()

    async def _tell(self) -> None:
        """Commit by number: no count of this stream's messages can name what came by one of before."""
        if not self._name:
            return
        committed = self.committed
        with contextlib.suppress(*INTERRUPTED):
            stream, _ = await self._retrying.open(
                POSITION, self.topic, name=self._name, epoch=self.epoch, committed=committed
            )
            stream.reset(reason="that was all")
            self._told = max(self._told, committed)

    async def __aenter__(self) -> Self:
        while self._stream is None and not self._closed:
            try:
                await self.open()
            except INTERRUPTED as error:
                await self._retrying.failed(error)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the subscription; what was committed reaches the server, unless that is out of reach."""
        self._closed = True
        stream, self._stream = self._stream, None
        lost = stream is None or stream.is_over
        try:
            with anyio.move_on_after(_PARTING), contextlib.suppress(*INTERRUPTED):
                if self.committed > (0 if lost else self._told):  # what it was told may be lost, too
                    await self._tell()
                if stream is not None and not lost:
                    # The end must not overtake a commit, nor a reset the end.
                    await (await stream.end()).wait()
        finally:
            if stream is not None:
                stream.reset(reason="the subscriber is done")


def _decode(data: memoryview) -> tuple[Head, memoryview]:
    try:
        return decode(data)
    except MalformedError as error:
        raise TransferError(f"the server sent {error}") from None
