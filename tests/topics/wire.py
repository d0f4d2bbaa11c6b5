"""Topics in the words of the wire, so that the server is tested without its client."""

import contextlib
from typing import Any

import anyio

import zcserver
from tests.raw_peer import RawPeer, deadline
from zcserver.topic_protocol import INLINE, PUBLISH, SUBSCRIBE, Head, Kind, decode
from zcserver.topics import Topics, TopicSettings
from zcserver_protocol.events import Replied, Reset

MIB = 1 << 20


@contextlib.asynccontextmanager
async def serving(
    make_context: Any, settings: TopicSettings | None = None, *, max_topics: int = 256, **context: Any
) -> Any:
    """A server of topics, with ``topics`` and ``connect()`` (a connection with a context of its own)."""
    with deadline():
        async with Served(make_context, settings, max_topics, context) as served:
            yield served


class Served:
    def __init__(
        self,
        make_context: Any,
        settings: TopicSettings | None,
        max_topics: int,
        context: dict[str, Any],
    ) -> None:
        self._make_context = make_context
        self.context = make_context(**context)
        self.topics = Topics(self.context, settings, max_topics=max_topics)
        self.stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> "Served":
        self.server = await self.stack.enter_async_context(
            zcserver.serve(self.topics.handle, port=0, context=self.context)
        )
        return self

    async def connect(self, **settings: Any) -> zcserver.Connection:
        context = self._make_context(**settings)
        return await self.stack.enter_async_context(zcserver.connect(port=self.server.port, context=context))

    async def __aexit__(self, *error: Any) -> None:
        self.topics.close()
        with contextlib.suppress(zcserver.ConnectionLostError):  # a test may have cut some of them
            await self.stack.__aexit__(*error)


class Publisher:
    """One PUBLISH stream. ``messages`` counts what was sent on it, in ZCP/1 messages."""

    def __init__(self, stream: zcserver.Stream, first: int) -> None:
        self.stream = stream
        self.sequence = first
        self.messages = 0

    async def send(self, data: Any, *, sequence: int = 0, body: bool | None = None, **head: Any) -> None:
        inline = len(data) <= INLINE if body is None else not body
        kind = Kind.INLINE if inline else Kind.BODY
        encoded = Head(kind, sequence or self.sequence, 0, len(data), **head).encode(data if inline else b"")
        self.sequence += 1
        self.messages += 1
        await self.stream.send(encoded)
        if not inline:
            self.messages += 1
            await self.stream.send(data)

    async def accepted(self) -> None:
        await self.stream.wait_committed(self.messages)


async def held(connection: Any, method: str, topic: str, **arguments: Any) -> zcserver.Stream:
    """A stream that stays as long as its connection, whether the test goes on with it or not."""
    stream: zcserver.Stream = await connection.open(method, topic, **arguments)
    vars(connection).setdefault("held", []).append(stream)
    return stream


async def publisher(connection: Any, topic: str = "/t", name: str = "") -> Publisher:
    arguments = {"publisher": name} if name else {}
    stream = await held(connection, PUBLISH, topic, **arguments)
    reply = await stream.response()
    return Publisher(stream, reply["accepted"] + 1)


class Subscriber:
    def __init__(self, stream: zcserver.Stream, reply: dict[str, Any]) -> None:
        self.stream = stream
        self.reply = reply
        self.messages = 0

    async def next(self) -> tuple[Head, bytes]:
        """The next head, and the payload of a message."""
        head, rest = decode((await self.stream.receive()).data)
        self.messages += 1
        if head.kind is not Kind.BODY:
            return head, bytes(rest)
        self.messages += 1
        return head, bytes(await self.stream.receive())

    async def take(self, count: int) -> list[tuple[int, bytes]]:
        """So many messages, and nothing missing between."""
        found = []
        for _ in range(count):
            head, payload = await self.next()
            assert head.kind is not Kind.MISSING, head
            found.append((head.sequence, payload))
        return found

    async def story(self, upto: int) -> list[Any]:
        """Sequence numbers, and ``(first, last, reason)`` for what is missing, up to one number."""
        told: list[Any] = []
        while True:
            head, _ = await self.next()
            if head.kind is Kind.MISSING:
                told.append((head.sequence, head.last, head.reason))
            else:
                told.append(head.sequence)
            if max(head.sequence, head.last) >= upto:
                return told


async def subscriber(connection: Any, topic: str = "/t", **arguments: Any) -> Subscriber:
    given = {name.rstrip("_"): value for name, value in arguments.items()}
    stream = await held(connection, SUBSCRIBE, topic, **given)
    return Subscriber(stream, await stream.response())


async def settled(condition: Any) -> None:
    while not condition():
        await anyio.lowlevel.checkpoint()


class StoppedSubscriber:
    """A subscriber that takes nothing, and acknowledges nothing, until it is told to."""

    def __init__(self, peer: RawPeer, stream: Any) -> None:
        self.peer = peer
        self._stream = stream

    async def story(self, upto: int) -> list[Any]:
        """As :meth:`Subscriber.story`, of all that has come and comes, from the beginning."""
        await self.peer.read_until(lambda: self._told() and _last(self._told()[-1]) >= upto)
        return self._told()

    async def reset(self) -> tuple[list[Any], Reset]:
        """What came before the stream was reset, and the reset."""
        await self.peer.read_until(lambda: any(isinstance(event, Reset) for event in self.peer.events))
        (reset,) = [event for event in self.peer.events if isinstance(event, Reset)]
        return self._told(), reset

    def _told(self) -> list[Any]:
        told: list[Any] = []
        messages = iter(self.peer.messages.get(self._stream.id, []))
        for message in messages:
            head, _ = decode(memoryview(message))
            if head.kind is Kind.MISSING:
                told.append((head.sequence, head.last, head.reason))
                continue
            if head.kind is Kind.BODY and next(messages, None) is None:
                break
            told.append(head.sequence)
        return told


def _last(told: Any) -> int:
    return told if isinstance(told, int) else told[1]


async def stopped_subscriber(served: Served, topic: str = "/t", **arguments: Any) -> StoppedSubscriber:
    peer = await RawPeer.connect(served.server.port)
    served.stack.callback(peer.close)
    given = {name.rstrip("_"): value for name, value in arguments.items()}
    stream = peer.codec.open(SUBSCRIBE, topic, given, 1 << 40)
    await peer.flush()
    await peer.read_until(lambda: any(isinstance(event, Replied) for event in peer.events))
    return StoppedSubscriber(peer, stream)
