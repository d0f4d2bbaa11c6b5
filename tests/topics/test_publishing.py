"""What comes from publishers, clients or the server itself, and what becomes of the odd."""

import array

import anyio
import pytest

import zcserver
from tests.raw_peer import until
from tests.topics.line import Line
from tests.topics.wire import MIB, publisher, serving, stopped_subscriber, subscriber
from zcserver.topics import TopicSettings
from zcserver_protocol.errors import ErrorCode

pytestmark = pytest.mark.anyio


async def test_large_messages_that_are_sent_again_hold_no_memory_and_delay_no_others(make_context):
    async with serving(make_context) as served:
        writer = await publisher(await served.connect(), name="p")
        for sequence in (1, 2, 2, 2, 2, 1, 3, 4):
            await writer.send(bytes(MIB), sequence=sequence)
        await writer.accepted()
        stats = served.context.pool.stats()
        assert stats.filling == 0
        assert 4 * MIB <= stats.in_flight < 5 * MIB  # each is where it landed, once


async def test_a_large_message_without_a_message_of_its_own_is_refused(make_context):
    async with serving(make_context) as served:
        writer = await publisher(await served.connect())
        await writer.send(bytes(9000), body=False)
        with pytest.raises(zcserver.StreamResetError, match="message of its own") as caught:
            await writer.accepted()
        assert caught.value.code == ErrorCode.REFUSED


@pytest.mark.parametrize("name", ["", "p"])
async def test_a_sequence_number_that_no_reply_could_tell_is_refused(make_context, name):
    async with serving(make_context) as served:
        connection = await served.connect()
        writer = await publisher(connection, name=name)
        await writer.send(b"x", sequence=2**63)
        with pytest.raises(zcserver.StreamResetError, match=r"9223372036854775807 at most") as caught:
            await writer.accepted()
        assert caught.value.code == ErrorCode.REFUSED
        assert (await publisher(connection, name=name)).sequence == 1


async def test_messages_without_a_payload_are_retained_like_others(make_context):
    async with serving(make_context, TopicSettings(retain_count=3, retain_bytes=10_000)) as served:
        topic = served.topics.topic("/t")
        for _ in range(5):
            await topic.publish(b"")
        assert (topic.first, topic.next) == (3, 6)
        for _ in range(5):
            await topic.publish(b"", key="k" * 1024, content_type="x" * 255)
        assert (topic.first, topic.next) == (8, 11)
    async with serving(make_context, TopicSettings(retain_bytes=10_000)) as served:
        topic = served.topics.topic("/t")
        for _ in range(20):
            await topic.publish(b"", key="k" * 1000)
        assert (topic.first, topic.next) == (12, 21)  # 9 x 1040 bytes


async def test_messages_without_a_payload_wait_for_blocking_subscribers_however_old_they_are(make_context):
    settings = TopicSettings(retain_count=3, retain_seconds=60, in_flight=1, block=True)
    async with serving(make_context, settings) as served:
        topic = served.topics.topic("/t")
        clock = [1000.0]
        topic._clock = lambda: clock[0]
        stopped = await stopped_subscriber(served, policy="block")
        writer = await publisher(await served.connect())
        for _ in range(10):
            await writer.send(b"")
        await until(lambda: topic.next == 5 and topic._moved is not None)  # one on its way, one waits
        clock[0] += 100
        topic.expire()
        topic.moved()
        await until(lambda: topic._moved is not None)
        assert (topic.first, topic.next) == (2, 5)
        assert await stopped.story(10) == list(range(1, 11))


@pytest.mark.parametrize(
    "memory",
    [
        array.array("I", [1, 2, 3]),
        memoryview(array.array("d", [1.5] * 5000)),
        memoryview(bytes(range(12))).cast("B", (3, 4)),
        bytearray(b"bytes"),
    ],
    ids=lambda memory: type(memory).__name__,
)
async def test_the_server_publishes_memory_of_any_format_as_its_bytes(make_context, memory):
    async with serving(make_context) as served:
        reader = await subscriber(await served.connect())
        await served.topics.topic("/t").publish(memory)
        assert await reader.take(1) == [(1, bytes(memory))]
        with pytest.raises(zcserver.MisuseError, match="not C-contiguous"):
            await served.topics.topic("/t").publish(memoryview(bytes(20))[::2])
        with pytest.raises(zcserver.MisuseError, match="buffer protocol"):
            await served.topics.topic("/t").publish("text")


@pytest.mark.parametrize(("window", "few"), [(100_000, 4096), (1 << 30, 1)], ids=["bytes", "messages"])
async def test_no_more_is_sent_than_may_wait_to_be_accepted(make_context, monkeypatch, window, few):
    monkeypatch.setattr("zcserver.client.publish._FEW", few)
    async with serving(make_context, TopicSettings(retain_count=1, block=True)) as served:
        reader = await subscriber(await served.connect(), policy="block", name="w")
        async with Line(served, make_context) as line, line.client.publisher("/t", window=window) as writer:
            await (await writer.publish(bytes(60_000))).wait()
            await writer.publish(bytes(60_000))  # waits until the first one is committed
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(writer.publish, bytes(60_000))
                await anyio.wait_all_tasks_blocked()
                assert len(writer._unaccepted) == 1
                for _ in range(3):
                    await reader.take(1)
                    await reader.stream.commit(reader.messages)


async def test_nothing_is_published_to_a_topic_that_is_closed(make_context):
    async with serving(make_context) as served:
        topic = served.topics.topic("/t")
        buffer = await topic.acquire(20_000)
        served.topics.close()
        for data in (b"small", bytes(20_000), buffer):
            with pytest.raises(zcserver.MisuseError, match="is closed"):
                await topic.publish(data)
        with pytest.raises(zcserver.MisuseError, match="is closed"):
            await served.topics.topic("/new").publish(b"")
        stats = served.context.pool.stats()
        assert (stats.filling, stats.in_flight) == (0, 0)
