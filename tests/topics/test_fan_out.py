"""One page, many readers: a message is received once, sent from the same pages to all, and comes home."""

import hashlib

import anyio
import pytest

from tests.raw_peer import until
from tests.topics.wire import MIB, publisher, serving, subscriber
from zcserver import MisuseError, StreamResetError
from zcserver.memory import REGION
from zcserver.topic_protocol import HEAD_SIZE
from zcserver.topics import Topics, TopicSettings
from zcserver_protocol.errors import ErrorCode

pytestmark = pytest.mark.anyio


def frame(number, size=MIB):
    return hashlib.shake_128(bytes([number])).digest(size)


@pytest.mark.parametrize("size", [0, 1, 8192, 8193, 20_000, 100_000, MIB, 3 * MIB + 5])
async def test_a_message_of_any_size_reaches_every_subscriber_as_it_was_sent(make_context, size):
    content = frame(7, size)
    async with serving(make_context) as served:
        readers = [await subscriber(await served.connect()) for _ in range(3)]
        writer = await publisher(await served.connect())
        await writer.send(content, key="left eye", content_type="image/png")
        await writer.send(content)
        await writer.accepted()
        for reader in readers:
            head, payload = await reader.next()
            assert (head.sequence, head.key, head.content_type) == (1, "left eye", "image/png")
            assert (head.length, payload) == (size, content)
            assert head.timestamp_ns > 0
            assert await reader.take(1) == [(2, content)]


async def test_frames_go_by_reference_to_all_from_one_copy_in_memory(make_context):
    frames = [frame(number) for number in range(12)]
    settings = TopicSettings(retain_bytes=4 * MIB)
    async with serving(make_context, settings, pool_size=32 * MIB) as served:
        readers = [await subscriber(await served.connect()) for _ in range(8)]
        writer = await publisher(await served.connect())
        topic = served.topics.topic("/t")
        for number, content in enumerate(frames, 1):
            await writer.send(content)
            await writer.accepted()
            for reader in readers:
                assert await reader.take(1) == [(number, content)]
        subscriptions = list(topic.subscriptions)
        await until(lambda: not topic.holders)
        stats = served.context.pool.stats()
        assert len(subscriptions) == len(readers)
        for subscription in subscriptions:
            statistics = subscription.stream.connection.statistics
            if served.context.by_reference:
                assert statistics.reference_bytes == len(frames) * MIB
                assert statistics.copied_bytes == len(frames) * HEAD_SIZE
            else:
                assert statistics.reference_bytes == 0
        # Retained: 4 frames once each, and one page of headers at most for each connection.
        assert 4 * MIB <= stats.in_flight <= 4 * MIB + len(readers) * 4096
        assert stats.peak <= 6 * MIB + len(readers) * 4096
        if served.context.by_reference:
            assert stats.regions_by_principal["topic /t"] * REGION <= 8 * MIB
        (published,) = [c for c in served.server.connections if c.statistics.received_bytes > MIB]
        # Before the first messages have come nobody knows that they are large.
        assert published.statistics.received_copied_bytes < 2 * 65536
    assert served.context.pool.stats().in_flight == 0


async def test_what_a_dead_subscriber_holds_is_cut_loose_and_the_others_go_on(
    make_context,
):
    async with serving(make_context, TopicSettings(retain_bytes=MIB), pool_size=16 * MIB) as served:
        good = await subscriber(await served.connect())
        bad_connection = await served.connect()
        await subscriber(bad_connection)
        writer = await publisher(await served.connect())
        topic = served.topics.topic("/t")
        # It reads nothing and acknowledges nothing from here on.
        bad_connection._loop.detach()
        for number in range(1, 4):
            await writer.send(frame(number))
            assert await good.take(1) == [(number, frame(number))]
        await until(lambda: len(topic.holders) == 1)
        bad_connection.abort()
        await until(lambda: len(topic.subscriptions) == 1 and not topic.holders)
        if served.context.by_reference:
            assert served.context.pool.stats().quarantined > 0
        for number in range(4, 12):
            await writer.send(frame(number))
            assert await good.take(1) == [(number, frame(number))]
        if served.context.by_reference:
            assert served.context.pool.stats().cut > 0


async def test_subscribers_begin_where_they_ask(make_context):
    settings = TopicSettings(retain_count=3)
    async with serving(make_context, settings) as served:
        writer = await publisher(await served.connect())
        for number in range(1, 6):
            await writer.send(b"%d" % number)
        await writer.accepted()
        connection = await served.connect()
        earliest = await subscriber(connection, from_="earliest")
        fourth = await subscriber(connection, from_=4)
        first = await subscriber(connection, from_=1)
        eighth = await subscriber(connection, from_=8)
        latest = await subscriber(connection)
        for number in range(6, 9):
            await writer.send(b"%d" % number)
        assert await earliest.story(8) == [3, 4, 5, 6, 7, 8]
        assert await fourth.story(8) == [4, 5, 6, 7, 8]
        assert await first.story(8) == [(1, 2, 1), 3, 4, 5, 6, 7, 8]
        assert await eighth.story(8) == [8]
        assert await latest.story(8) == [6, 7, 8]


async def test_what_is_too_old_is_not_given_to_new_subscribers(make_context):
    async with serving(make_context, TopicSettings(retain_seconds=60)) as served:
        topic = served.topics.topic("/t")
        clock = [1000.0]
        topic._clock = lambda: clock[0]
        for number in range(3):
            clock[0] += 40
            await topic.publish(b"%d" % number)
        reader = await subscriber(await served.connect(), from_=1)
        await topic.publish(b"3")
        assert await reader.story(4) == [(1, 1, 1), 2, 3, 4]


async def test_what_a_topic_cannot_take_is_refused_with_the_limit(make_context):
    async with serving(make_context, TopicSettings(retain_bytes=MIB)) as served:
        connection = await served.connect()
        writer = await publisher(connection)
        await writer.send(bytes(MIB + 1))
        with pytest.raises(StreamResetError, match=r"1048577 bytes .*1048576 bytes") as caught:
            await writer.accepted()
        assert caught.value.code == ErrorCode.TOO_LARGE
        for arguments in ({"policy": "never"}, {"policy": "block"}, {"from_": "now"}, {"from_": "committed"}):
            with pytest.raises(StreamResetError):
                await subscriber(connection, **arguments)
        with pytest.raises(StreamResetError, match="is no topic"):
            await subscriber(connection, topic="frames")
        writer = await publisher(connection)
        await writer.stream.send(b"no head")
        with pytest.raises(StreamResetError, match="no head of a message"):
            await writer.stream.wait_committed(1)


@pytest.mark.parametrize(
    ("context", "largest"),
    [({"pool_size": 320 * MIB}, 64 * MIB), ({"pool_size": 8 * MIB}, 4 * MIB), ({"max_message": MIB}, MIB)],
)
async def test_a_topic_takes_no_message_that_could_not_be_kept_or_received(make_context, context, largest):
    async with serving(make_context, TopicSettings(retain_bytes=160 * MIB), **context) as served:
        stream = await (await served.connect()).open("PUBLISH", "/t")
        assert (await stream.response())["max_message"] == largest
        with pytest.raises(MisuseError, match=f"{largest + 1} bytes is over the limit"):
            await served.topics.topic("/t").publish(bytes(largest + 1))
        with pytest.raises(MisuseError, match="what this context can take"):
            Topics(served.context, TopicSettings(retain_bytes=160 * MIB, max_message=largest + 1))


async def test_the_server_publishes_too_and_its_end_reaches_everybody(make_context):
    async with serving(make_context) as served:
        reader = await subscriber(await served.connect())
        topic = served.topics.topic("/t")
        buffer = await topic.acquire(100_000)
        buffer.view[:] = frame(1, 100_000)
        assert await topic.publish(buffer, key="k") == 1
        assert await topic.publish(b"small") == 2
        assert await topic.publish(frame(2, 50_000)) == 3
        sizes = [len(payload) for _, payload in await reader.take(3)]
        assert sizes == [100_000, 5, 50_000]
        served.topics.close()
        with pytest.raises(anyio.EndOfStream):
            await reader.next()


@pytest.mark.parametrize("pool", [2, 4])
async def test_a_small_pool_has_a_small_window_and_still_delivers(make_context, pool):
    """Sending may have to wait between a head and its payload, and the window lets go of it meanwhile."""
    settings = TopicSettings(retain_bytes=MIB // 2, block=True)
    content = frame(5, 60_000)
    count = 200
    async with serving(make_context, settings, pool_size=pool * MIB) as served:
        topic = served.topics.topic("/t")
        readers = [await subscriber(await served.connect(), policy="block") for _ in range(3)]

        async def publish():
            for _ in range(count):
                await topic.publish(content)

        async def read(reader):
            assert await reader.take(count) == [(number, content) for number in range(1, count + 1)]

        async with anyio.create_task_group() as tasks:
            for reader in readers:
                tasks.start_soon(read, reader)
            tasks.start_soon(publish)
