"""How many topics there may be, and which of them make way for others."""

import pytest

import zcserver
from tests.raw_peer import until
from tests.topics.wire import publisher, serving, subscriber
from zcserver_protocol.errors import ErrorCode

pytestmark = pytest.mark.anyio


async def test_topics_that_nobody_has_published_to_nor_uses_make_way_for_others(make_context):
    async with serving(make_context, max_topics=4) as served:
        connection = await served.connect()
        log = served.topics.topic("/log")  # the server may publish to it at any time
        writer = await publisher(connection, "/published")
        await writer.send(b"x")
        await writer.accepted()
        await writer.stream.end()
        writing = await publisher(connection, "/writing")
        reading = await subscriber(connection, "/reading", name="r")
        await until(lambda: len(served.topics._all_publishings) == 1)
        with pytest.raises(zcserver.StreamResetError, match="use one of those, or restart it") as caught:
            await subscriber(connection, "/one-too-many")
        assert caught.value.code == ErrorCode.LIMIT
        reading.stream.reset()
        topic = served.topics._topics["/reading"]
        await until(lambda: not topic.subscriptions)
        for number in range(8):
            idle = await subscriber(connection, f"/idle{number}")
            idle.stream.reset()
            topic = served.topics._topics[f"/idle{number}"]
            await until(lambda topic=topic: not topic.subscriptions)
        assert set(served.topics._topics) == {"/log", "/published", "/writing", "/idle7"}
        await writing.send(b"x")
        await writing.accepted()
        assert await log.publish(b"x") == 1
        again = await subscriber(connection, "/published", from_="earliest")
        assert await again.take(1) == [(1, b"x")]


async def test_a_subscriber_that_comes_back_to_a_topic_that_made_way_goes_on_with_it(make_context):
    async with serving(make_context, max_topics=1) as served:
        connection = await served.connect()
        before = await subscriber(connection, "/t", name="r")
        before.stream.reset()
        (topic,) = served.topics._topics.values()
        await until(lambda: not topic.subscriptions)
        other = await subscriber(connection, "/u")
        other.stream.reset()
        (other_topic,) = served.topics._topics.values()
        await until(lambda: not other_topic.subscriptions)
        assert other_topic.name == "/u"
        where = {"from_": before.reply["start"], "epoch": before.reply["epoch"], "committed": 0}
        after = await subscriber(connection, "/t", name="r", **where)
        assert after.reply == before.reply
        await served.topics.topic("/t").publish(b"x")
        assert await after.take(1) == [(1, b"x")]
