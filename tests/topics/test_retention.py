"""What topics retain stops nobody: it goes when there is no room, the topic that keeps most first."""

import os
from contextlib import closing

import pytest

from tests.raw_peer import RawPeer, until
from tests.topics.wire import MIB, publisher, serving, stopped_subscriber, subscriber
from zcserver.cli.pieces import Pieces
from zcserver.memory import REGION
from zcserver.topic_protocol import PUBLISH, SUBSCRIBE, Head, Kind
from zcserver.topics import TopicSettings
from zcserver_protocol.events import Replied
from zcserver_protocol.frames import HEADER_SIZE

pytestmark = pytest.mark.anyio
SOME = 20_000
SMALL = {"pool_size": 8 * MIB, "receive_memory": 16 * MIB}


async def kept(connection, topic):
    """The sequence numbers that a topic retains."""
    reader = await subscriber(connection, topic=topic, from_="earliest")
    return reader.reply["first"], reader.reply["next"] - 1


async def test_more_topics_than_the_memory_can_keep_take_and_give_messages(make_context):
    async with serving(make_context, TopicSettings(retain_bytes=2 * MIB), **SMALL) as served:
        connection = await served.connect()
        for number in range(12):
            writer = await publisher(connection, f"/t{number}")
            reader = await subscriber(connection, f"/t{number}")
            for sequence in range(1, 4):
                await writer.send(bytes([sequence]) * MIB)
                await writer.accepted()
                assert await reader.take(1) == [(sequence, bytes([sequence]) * MIB)]
        assert await kept(connection, "/t11") == (2, 3)
        others = [await kept(connection, f"/t{number}") for number in range(11)]
        assert sum(last - first + 1 for first, last in others) == 2  # of 4 MiB, half of the pool


async def test_topics_that_keep_little_do_not_keep_the_regions_from_others(make_context):
    async with serving(make_context, **SMALL) as served:
        for number in range(8):
            await served.topics.topic(f"/t{number}").publish(bytes(20_000))
        connection = await served.connect()
        writer = await publisher(connection)
        await writer.send(bytes(MIB))
        await writer.accepted()
        if served.context.by_reference:
            assert served.context.pool.stats().regions_by_principal["topic /t"] == 1


async def test_what_a_topic_keeps_is_counted_as_the_pool_counts_it(make_context):
    async with serving(make_context, TopicSettings(retain_bytes=8 * MIB), pool_size=32 * MIB) as served:
        topic = served.topics.topic("/t")
        for size in (9000, MIB + 1, 2 * MIB, 2 * MIB + 1, 2 * MIB + 1):
            await topic.publish(bytes(size))
            assert topic.placed_bytes == served.context.pool.live <= 8 * MIB
        assert (topic.first, topic.next) == (4, 6)  # each of them takes two regions


async def test_whoever_waits_for_memory_gets_what_topics_retain(make_context):
    async with serving(make_context, **SMALL) as served:
        for number in range(4):
            await served.topics.topic(f"/t{number}").publish(bytes(MIB))
        connection = await served.connect()
        await subscriber(connection)
        (theirs,) = served.server.connections
        for buffer in await theirs.acquire_many([MIB] * 6):
            buffer.release()
        (await served.topics.topic("/log").acquire(4 * MIB)).release()


async def test_messages_that_find_no_room_in_the_pool_do_not_use_up_receive_memory(make_context):
    async with serving(make_context, TopicSettings(retain_bytes=4 * MIB), **SMALL) as served:
        hog = served.topics.topic("/hog")
        held = [hog.try_acquire(REGION) for _ in range(4)]
        connection = await served.connect()
        writer = await publisher(connection)
        for _ in range(8):
            await writer.send(bytes(MIB))
            await writer.accepted()
        assert await hog.publish(bytes(MIB)) == 1
        assert await kept(connection, "/t") == (6, 8)
        assert served.topics._retention._arriving == 0
        memory = served.context.receive_memory
        await until(lambda: memory.used == memory.promised)
        for buffer in held:
            buffer.release()


async def begin_to_publish(served, topic, nbytes):
    """Announce a message, and send only what begins it."""
    peer = await RawPeer.connect(served.server.port)
    served.stack.callback(peer.close)
    stream = peer.codec.open(PUBLISH, topic, {}, 1 << 40)
    await peer.flush()
    await peer.read_until(lambda: any(isinstance(event, Replied) for event in peer.events))
    await peer.send(stream, Head(Kind.BODY, 1, length=nbytes).encode())
    header = bytearray(HEADER_SIZE)
    peer.codec.data_header_into(header, 0, stream, SOME, nbytes - SOME, 0, 0)
    peer.codec.data_written(HEADER_SIZE + SOME)
    await peer.write(bytes(header) + bytes(SOME))


async def test_messages_of_slow_publishers_use_up_nothing_of_what_is_retained(make_context):
    async with serving(make_context, TopicSettings(retain_bytes=2 * MIB), **SMALL) as served:
        topic = served.topics.topic("/t")
        for _ in range(2):
            await topic.publish(bytes(MIB))
        memory, pool = served.context.receive_memory, served.context.pool
        elsewhere = memory.used - memory.promised
        for number in range(4):
            await begin_to_publish(served, f"/slow{number}", 2 * MIB)
            begun = 2 * MIB * (number + 1)
            await until(
                lambda begun=begun: pool.stats().filling + memory.used - memory.promised - elsewhere >= begun
            )
        assert (topic.first, topic.next) == (1, 3)
        assert pool.stats().filling == 4 * MIB  # half of the pool
        for connection in list(served.server.connections):
            connection.abort()
        await until(lambda: not served.topics._all_publishings)
        assert pool.stats().filling == served.topics._retention._arriving == 0


async def test_input_is_cut_into_pieces_though_others_hold_the_pool(make_context):
    async with serving(make_context, **SMALL) as served:
        topic = served.topics.topic("/t")
        held = [topic.try_acquire(REGION) for _ in range(4)]

        async def acquire(nbytes):
            return topic.try_acquire(nbytes)

        receiving, sending = os.pipe()
        with closing(os.fdopen(receiving)), closing(os.fdopen(sending, "wb", buffering=0)) as writer:
            writer.write(bytes(64 << 10))
            piece = await Pieces(receiving, 64 << 10, acquire, MIB).next()
        assert piece == bytes(64 << 10)
        for buffer in held:
            buffer.release()


async def test_what_stopped_subscribers_of_all_topics_pin_is_bounded_together(make_context):
    settings = TopicSettings(retain_count=1, in_flight=2 * MIB, pinned=3 * MIB)
    async with serving(make_context, settings) as served:
        topics = [served.topics.topic(name) for name in ("/a", "/b")]
        for topic in topics:
            await stopped_subscriber(served, topic.name)
            (subscription,) = topic.subscriptions
            for _ in range(2):
                await topic.publish(bytes(MIB))
                await until(lambda subscription=subscription, topic=topic: subscription.cursor == topic.next)
            await topic.publish(bytes(MIB))
        assert sum(topic.cut_loose for topic in topics) == 1
        await until(lambda: sum(topic.pinned for topic in topics) == 2 * MIB)


async def test_a_subscriber_cut_loose_before_its_message_is_queued_is_cut_loose_once(make_context):
    settings = TopicSettings(retain_bytes=4 * MIB, retain_count=2, pinned=MIB)
    async with serving(make_context, settings) as served:
        topic = served.topics.topic("/t")
        with await RawPeer.connect(served.server.port) as peer:
            peer.codec.open(SUBSCRIBE, "/t", {}, 64)  # hardly any credit: nothing goes out
            await peer.flush()
            await until(lambda: topic.subscriptions)
            (subscription,) = topic.subscriptions
            while len(subscription.stream._channel.outgoing) < 4096:
                await topic.publish(b"small")
                await until(lambda: subscription.cursor == topic.next)
            await topic.publish(bytes(2 * MIB))
            await until(lambda: subscription.cursor == topic.next)
            for _ in range(3):
                await topic.publish(b"small")
            assert topic.cut_loose == 1
            await until(lambda: not topic.subscriptions)
            assert topic.pinned == 0


async def test_what_blocking_subscribers_still_need_stays_and_other_topics_go_on(make_context):
    settings = TopicSettings(retain_bytes=4 * MIB, in_flight=1, block=True)
    async with serving(make_context, settings, **SMALL) as served:
        topic = served.topics.topic("/t")
        stopped = await stopped_subscriber(served, policy="block")
        connection = await served.connect()
        writer = await publisher(connection)
        for number in range(1, 7):  # one on its way, four retained, one waits
            await writer.send(bytes([number]) * MIB)
        await until(lambda: topic._moved is not None)
        other = await publisher(connection, "/other")
        for number in range(1, 6):
            await other.send(bytes([number]) * MIB)
            await other.accepted()
        assert await kept(connection, "/other") == (5, 5)
        assert await stopped.story(6) == list(range(1, 7))
        await writer.accepted()
