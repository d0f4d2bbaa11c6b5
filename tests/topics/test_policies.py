"""A subscriber that is too slow gets what its policy says, learns what it misses, and delays nobody."""

import logging
from dataclasses import replace

import pytest

from tests.raw_peer import until
from tests.topics.wire import publisher, serving, stopped_subscriber, subscriber
from zcserver import StreamResetError
from zcserver.topic_protocol import TOO_SLOW, Reason
from zcserver.topics import TopicSettings
from zcserver_protocol.errors import ErrorCode

pytestmark = pytest.mark.anyio
SIZE = 64 * 1024
COUNT = 20
# Four messages are retained; two may be on their way to a subscriber.
SETTINGS = TopicSettings(retain_count=4, in_flight=2 * SIZE, block=True)


async def publish_to(readers, writer, first, last):
    """Each message reaches all of the others before the next is published."""
    for number in range(first, last + 1):
        await writer.send(bytes([number]) * SIZE)
        for reader in readers:
            assert await reader.take(1) == [(number, bytes([number]) * SIZE)]


@pytest.mark.parametrize(
    ("policy", "in_flight", "told"),
    [
        ("drop-oldest", 2 * SIZE, [1, 2, (3, 16, Reason.DROPPED), 17, 18, 19, 20]),
        ("latest", 2 * SIZE, [1, 2, (3, 19, Reason.CONFLATED), 20]),
        ("latest", 8 * SIZE, [1, 2, (3, 19, Reason.CONFLATED), 20]),
    ],
)
async def test_a_subscriber_that_stops_for_a_while_is_told_what_it_missed(
    make_context, policy, in_flight, told
):
    async with serving(make_context, replace(SETTINGS, in_flight=in_flight)) as served:
        stopped = await stopped_subscriber(served, policy=policy)
        readers = [await subscriber(await served.connect()) for _ in range(15)]
        writer = await publisher(await served.connect())
        await publish_to(readers, writer, 1, COUNT)
        assert await stopped.story(COUNT) == told
        missed = [each.missed for each in served.topics.topic("/t").subscriptions]
        assert sum(missed) == sum(each[1] - each[0] + 1 for each in told if isinstance(each, tuple))


@pytest.mark.parametrize("more", [3, 10])
async def test_what_leaves_the_window_while_a_gap_is_announced_is_told_too(make_context, monkeypatch, more):
    most = 64
    monkeypatch.setattr("zcserver.stream.QUEUED_MESSAGES", most)
    monkeypatch.setattr("zcserver.wakeups.QUEUED_MESSAGES", most)
    async with serving(make_context, SETTINGS) as served:
        topic = served.topics.topic("/t")
        reader = await subscriber(await served.connect())
        await until(lambda: topic.subscriptions)
        (subscription,) = topic.subscriptions
        while len(subscription.stream._channel.outgoing) < most:
            await topic.publish(b"x")
            await until(lambda: subscription.cursor == topic.next)
        for _ in range(10):
            await topic.publish(b"x")
        await until(lambda: subscription.missed)  # which it cannot be told yet
        for _ in range(more):
            await topic.publish(b"x")
        due = 1
        for each in await reader.story(topic.next - 1):
            first, last = each[:2] if isinstance(each, tuple) else (each, each)
            assert first == due
            due = last + 1


async def test_the_newest_is_what_a_subscriber_of_the_latest_begins_with(make_context):
    async with serving(make_context) as served:
        for _ in range(5):
            await served.topics.topic("/t").publish(b"x")
        reader = await subscriber(await served.connect(), policy="latest", from_=2)
        assert await reader.story(5) == [(2, 4, Reason.CONFLATED), 5]


async def test_a_subscriber_that_would_rather_not_miss_anything_is_disconnected(make_context):
    async with serving(make_context, SETTINGS) as served:
        stopped = await stopped_subscriber(served, policy="disconnect")
        readers = [await subscriber(await served.connect()) for _ in range(15)]
        writer = await publisher(await served.connect())
        await publish_to(readers, writer, 1, COUNT)
        told, reset = await stopped.reset()
        assert told == [1, 2]
        assert (reset.code, reset.reason[:17]) == (TOO_SLOW, "the messages 3 to")
        assert len(served.topics.topic("/t").subscriptions) == len(readers)


async def test_a_subscriber_is_disconnected_as_soon_as_what_it_needs_is_too_old(make_context):
    async with serving(make_context, TopicSettings(retain_seconds=60, in_flight=1)) as served:
        topic = served.topics.topic("/t")
        clock = [1000.0]
        topic._clock = lambda: clock[0]
        stopped = await stopped_subscriber(served, policy="disconnect")
        for _ in range(3):
            await topic.publish(b"x")
        await stopped.peer.read_until(stopped._told, acknowledge=False)
        clock[0] += 100
        topic.expire()
        await until(lambda: not topic.subscriptions)
        told, reset = await stopped.reset()
        assert (told, reset.code) == ([1], TOO_SLOW)


async def test_a_blocking_subscriber_makes_the_publisher_wait_and_misses_nothing(make_context):
    async with serving(make_context, SETTINGS) as served:
        stopped = await stopped_subscriber(served, policy="block")
        readers = [await subscriber(await served.connect()) for _ in range(15)]
        writer = await publisher(await served.connect())
        topic = served.topics.topic("/t")
        await publish_to(readers, writer, 1, 6)  # two on their way, four retained
        await writer.send(bytes([7]) * SIZE)
        await until(lambda: topic._moved is not None)
        assert topic.next == 7
        assert await stopped.story(7) == list(range(1, 8))
        for reader in readers:
            assert await reader.story(7) == [7]
        for number in range(8, COUNT + 1):
            await writer.send(bytes([number]) * SIZE)
        assert await stopped.story(COUNT) == list(range(1, COUNT + 1))
        await writer.accepted()


async def test_a_blocking_subscriber_that_goes_blocks_nobody(make_context):
    async with serving(make_context, SETTINGS) as served:
        stopped = await stopped_subscriber(served, policy="block")
        writer = await publisher(await served.connect())
        for number in range(1, COUNT + 1):
            await writer.send(bytes([number]) * SIZE)
        await until(lambda: served.topics.topic("/t")._moved is not None)
        stopped.peer.close()
        await writer.accepted()
        assert served.topics.topic("/t").next == COUNT + 1


async def test_only_so_much_waits_for_blocking_subscribers_as_the_topic_retains(make_context):
    settings = TopicSettings(retain_bytes=4 * SIZE, in_flight=2 * SIZE, block=True)
    async with serving(make_context, settings) as served:
        topic = served.topics.topic("/t")
        stopped = await stopped_subscriber(served, policy="block")
        connection = await served.connect()
        writers = [await publisher(connection) for _ in range(5)]
        for _ in range(6):  # two on their way, four retained
            await writers[0].send(bytes(SIZE))
            await writers[0].accepted()
        for waiting, writer in enumerate(writers[:4], 1):
            await writer.send(bytes(SIZE))
            await until(lambda waiting=waiting: topic.waiting_bytes == waiting * SIZE)
        await writers[4].send(bytes(SIZE))
        with pytest.raises(StreamResetError, match="try again") as caught:
            await writers[4].accepted()
        assert caught.value.code == ErrorCode.CANCELLED
        assert await stopped.story(10) == list(range(1, 11))
        again = await publisher(connection)
        await again.send(bytes(SIZE))
        for writer in (*writers[:4], again):
            await writer.accepted()
        assert topic.waiting_bytes == 0


@pytest.mark.parametrize("lost", ["connection", "stream"])
async def test_a_publisher_that_goes_while_it_is_made_to_wait_leaves_nothing(make_context, lost):
    async with serving(make_context, SETTINGS) as served:
        stopped = await stopped_subscriber(served, policy="block")
        connection = await served.connect()
        writer = await publisher(connection)
        for number in range(1, 8):  # two on their way, four retained, one waits
            await writer.send(bytes([number]) * SIZE)
        topic = served.topics.topic("/t")
        await until(lambda: topic.next == 7 and topic._moved is not None)
        held = served.context.pool.stats().in_flight
        if lost == "connection":
            connection.abort()
        else:
            writer.stream.reset()
        await until(lambda: served.context.pool.stats().in_flight <= held - SIZE)
        assert await stopped.story(6) == list(range(1, 7))
        writer = await publisher(await served.connect())
        await writer.send(b"from another")
        assert await stopped.story(7) == list(range(1, 8))
        assert len(stopped.peer.messages[stopped._stream.id]) == 6 * 2 + 1


async def test_what_stopped_subscribers_pin_is_bounded(make_context, caplog):
    """Each stops at another place, so that each pins other messages; the one furthest behind is cut loose."""
    caplog.set_level(logging.ERROR, "zcserver")
    settings = TopicSettings(retain_count=2, in_flight=2 * SIZE, pinned=6 * SIZE)
    async with serving(make_context, settings) as served:
        topic = served.topics.topic("/t")
        writer = await publisher(await served.connect())
        reader = await subscriber(await served.connect())
        stopped = []
        for number in range(1, COUNT + 1, 4):
            stopped.append(await stopped_subscriber(served))
            await publish_to([reader], writer, number, number + 3)
            assert topic.pinned <= settings.pinned
        assert topic.cut_loose == 2
        await until(lambda: len(topic.subscriptions) == 4)
        for each in stopped[:2]:
            with pytest.raises((EOFError, ConnectionResetError)):
                await each.story(COUNT)
        assert await stopped[2].story(COUNT) == [9, 10, (11, 18, Reason.DROPPED), 19, 20]
        assert await stopped[3].story(COUNT) == [13, 14, (15, 18, Reason.DROPPED), 19, 20]
    assert served.context.pool.stats().in_flight == 0


async def test_when_the_pool_is_full_messages_are_copied_and_nobody_waits(make_context):
    settings = TopicSettings(retain_bytes=2 * SIZE)
    async with serving(make_context, settings, pool_size=2 << 20) as served:
        topic = served.topics.topic("/t")
        writer = await publisher(await served.connect())
        readers = [await subscriber(await served.connect()) for _ in range(3)]
        held = [topic.try_acquire(512 * 1024) for _ in range(4)]
        assert None not in held
        assert topic.try_acquire(SIZE) is None
        await publish_to(readers, writer, 1, 5)
        for buffer in held:
            buffer.release()
        await publish_to(readers, writer, 6, 10)
        if served.context.by_reference:
            for each in topic.subscriptions:
                statistics = each.stream.connection.statistics
                assert (statistics.reference_bytes, statistics.copied_bytes > 5 * SIZE) == (5 * SIZE, True)
