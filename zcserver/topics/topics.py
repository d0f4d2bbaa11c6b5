"""All topics of a server, and the handler that takes PUBLISH, SUBSCRIBE and POSITION streams to them."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

from zcserver.context import Context
from zcserver.errors import MisuseError, StreamResetError
from zcserver.file_protocol import UNKNOWN_METHOD
from zcserver.server.access import Request
from zcserver.server.arguments import number, text
from zcserver.server.refusals import shown
from zcserver.stream import Stream
from zcserver.topic_protocol import (
    COMMITTED,
    EARLIEST,
    LATEST,
    MAX_NAME,
    MAX_SEQUENCE,
    METHODS,
    POSITION,
    PUBLISH,
    Policy,
)
from zcserver_protocol.errors import ErrorCode

from .publishing import Publishing
from .retention import Retention
from .subscription import Subscription
from .topic import Topic, TopicSettings, is_topic


class Topics:
    """Give ``handle`` to :func:`zcserver.serve`, alone or behind another handler (see ``methods``).

    Topics come into being when somebody publishes or subscribes, up to ``max_topics``; then one that nobody
    has published to, nor uses, makes way for another. ``publishable=False``: only the server itself
    publishes. ``context`` is the server's. ``on_request`` is called with every stream that has ended. Close
    it before the server, so that subscribers learn of the end.
    """

    methods = METHODS

    def __init__(
        self,
        context: Context,
        settings: TopicSettings | None = None,
        *,
        max_topics: int = 256,
        publishable: bool = True,
        on_request: Callable[[Request], object] = lambda request: None,
    ) -> None:
        self._context = context
        self._settings = _within(context, settings or TopicSettings())
        self._max_topics = max_topics
        self._publishable = publishable
        self._on_request = on_request
        self.epoch = f"{time.time_ns() // 10**6:012x}{uuid4().hex[:8]}"
        """Another one after a restart, which sorts behind: their sequence numbers are not comparable."""
        self._topics: dict[str, Topic] = {}
        self._retention = Retention(self._topics, context.pool, self._settings.pinned)
        self._publishings: dict[tuple[str, str], Publishing] = {}
        self._all_publishings: set[Publishing] = set()
        self.closed = False

    @property
    def active(self) -> int:
        """Subscribers whose streams run, or who have not acknowledged what they were sent."""
        return sum(len(topic.subscriptions | topic.holders) for topic in self._topics.values())

    def topic(self, name: str) -> Topic:
        """The topic of this name, for the server's own use, and so kept from now on.

        The name begins with a slash; StreamResetError if it does not, or when there are too many.
        """
        topic = self._topic(name)
        topic.lasting = True
        return topic

    def _topic(self, name: str) -> Topic:
        topic = self._topics.get(name)
        if topic is None:
            if not is_topic(name):
                raise StreamResetError(
                    ErrorCode.NOT_FOUND,
                    f"{shown(name)} is no topic: a name begins with a slash, is printable and has at most "
                    f"{MAX_NAME} characters",
                )
            if len(self._topics) >= self._max_topics and not self._make_way():
                reason = f"this server has {self._max_topics} topics already: use one of those, or restart it"
                raise StreamResetError(ErrorCode.LIMIT, f"{reason} and try again later")
            topic = Topic(name, self.epoch, self._settings, self._context, self._retention)
            self._topics[name] = topic
            topic.closed = self.closed
        return topic

    def _make_way(self) -> bool:
        """Forget a topic that would be the same if it came into being again; False if there is none."""
        published_to = {publishing.topic for publishing in self._all_publishings}
        for topic in self._topics.values():
            if topic.is_untouched and topic not in published_to:
                del self._topics[topic.name]
                topic.close()
                return True
        return False

    async def handle(self, stream: Stream) -> None:
        """Serve one stream to its end; raises StreamResetError, which the server passes on to the peer."""
        request = Request(stream.connection.name, stream.method, stream.path)
        begin = time.monotonic()
        failure: BaseException | None = None
        try:
            if stream.method not in METHODS:
                known = ", ".join(sorted(METHODS))
                reason = f"this server serves topics only: it knows {known}, not {shown(stream.method)}"
                raise StreamResetError(UNKNOWN_METHOD, reason)
            if self.closed:
                raise StreamResetError(ErrorCode.CANCELLED, "the server is closing")
            if stream.method == PUBLISH:
                await self._publish(stream, request)
            elif stream.method == POSITION:
                await self._position(stream)
            else:
                await self._subscribe(stream, request)
        except BaseException as error:
            failure = error
            raise
        finally:
            request.end(failure, time.monotonic() - begin)
            self._on_request(request)

    async def _publish(self, stream: Stream, request: Request) -> None:
        if not self._publishable:
            raise StreamResetError(ErrorCode.FORBIDDEN, "this server lets nobody publish: it has no --topics")
        publisher = _name(stream, "publisher")
        topic = self._topic(stream.path)
        publishing = Publishing(topic, stream, publisher)
        key = (topic.name, publisher)
        if publisher:
            if key in self._publishings:
                self._publishings[key].supersede()
            self._publishings[key] = publishing
        self._all_publishings.add(publishing)
        try:
            await stream.reply(
                epoch=topic.epoch,
                accepted=topic.accepted.get(publisher, 0) if publisher else 0,
                max_message=topic.settings.largest,
                next=topic.next,
            )
            await publishing.accept()
        finally:
            request.nbytes = publishing.nbytes
            self._all_publishings.discard(publishing)
            if self._publishings.get(key) is publishing:
                del self._publishings[key]

    async def _subscribe(self, stream: Stream, request: Request) -> None:
        topic = self._topic(stream.path)
        topic.expire()
        name = _name(stream, "name")
        policy = _policy(stream, topic)
        committed = _committed(stream, topic, name)
        start = self._start(stream, topic, name)
        await stream.reply(epoch=topic.epoch, first=topic.first, next=topic.next, start=start)
        subscription = Subscription(topic, stream, policy, start, name, committed)
        try:
            await subscription.deliver()
        finally:
            request.nbytes = subscription.delivered_bytes

    async def _position(self, stream: Stream) -> None:
        """A subscriber has committed what it was sent on a stream of before."""
        topic = self._topic(stream.path)
        name = _name(stream, "name")
        committed = _committed(stream, topic, name)
        if committed is None:
            raise StreamResetError(
                ErrorCode.REFUSED, "POSITION needs a name, and what it has committed of the present epoch"
            )
        for subscription in topic.subscriptions:
            if subscription.name == name:
                subscription.committed = max(subscription.committed, min(committed, topic.next - 1))
        topic.moved()
        await stream.reply()

    def _start(self, stream: Stream, topic: Topic, name: str) -> int:
        """The sequence number to begin with."""
        start: Any = stream.args.get("from", LATEST)
        epoch = text(stream, "epoch")
        if epoch is not None and epoch != topic.epoch:
            return 1  # its numbers are of another count, and of this one it has had nothing
        match start:
            case str() if start == LATEST:
                return topic.next
            case str() if start == EARLIEST:
                return topic.first
            case str() if start == COMMITTED:
                if not name:
                    raise StreamResetError(ErrorCode.REFUSED, "from 'committed' needs the subscriber's name")
                return topic.positions.get(name, topic.first - 1) + 1
            case int() if not isinstance(start, bool) and 1 <= start <= MAX_SEQUENCE:
                return start
        raise StreamResetError(
            ErrorCode.REFUSED,
            f"from must be latest, earliest, committed or a number from 1 to {MAX_SEQUENCE}, not {start!r}",
        )

    def close(self) -> None:
        """Take nothing more, and end all streams. Idempotent."""
        self.closed = True
        self._retention.close()
        for publishing in list(self._all_publishings):
            publishing.stream.reset(ErrorCode.CANCELLED, "the server is closing")
        for topic in self._topics.values():
            topic.close()


def _within(context: Context, settings: TopicSettings) -> TopicSettings:
    """The settings with the largest message that the context can take, and its like at the other end."""
    limit = min(context.max_message, context.pool.size // 2)
    if settings.max_message > limit:
        raise MisuseError(
            f"max_message ({settings.max_message} bytes) is over what this context can take "
            f"({limit} bytes, the smaller of its max_message and half of its pool_size)"
        )
    return replace(settings, max_message=min(settings.largest, limit))


def _name(stream: Stream, argument: str) -> str:
    name = text(stream, argument) or ""
    if len(name) > MAX_NAME or not name.isprintable():
        raise StreamResetError(
            ErrorCode.REFUSED, f"{argument} must be printable and of at most {MAX_NAME} characters"
        )
    return name


def _committed(stream: Stream, topic: Topic, name: str) -> int | None:
    """What the subscriber says that it has committed in this epoch, which is remembered; None if nothing.

    Only forwards: what it has said by COMMIT may be ahead of this. And no further than there
    are messages: one that begins with a number to come names what lies before that.
    """
    committed = number(stream, "committed")
    if committed is None or not name or text(stream, "epoch") != topic.epoch:
        return None
    reached = min(committed, topic.next - 1)
    topic.remember(topic.positions, name, max(reached, topic.positions.get(name, 0)))
    return committed


def _policy(stream: Stream, topic: Topic) -> Policy:
    given = text(stream, "policy") or Policy.DROP_OLDEST
    try:
        policy = Policy(given)
    except ValueError:
        reason = f"the policy must be one of {', '.join(Policy)}, not {shown(given)}"
        raise StreamResetError(ErrorCode.REFUSED, reason) from None
    if policy is Policy.BLOCK and not topic.settings.block:
        raise StreamResetError(
            ErrorCode.FORBIDDEN, f"{topic.name} does not let subscribers block its publishers (--allow-block)"
        )
    return policy
