"""What is cancelled or closed in the middle leaves nothing behind at the server."""

import anyio
import pytest

import zcserver
from tests.raw_peer import until
from tests.topics.wire import serving
from zcserver.topics import TopicSettings

pytestmark = pytest.mark.anyio


def client_of(served, make_context):
    return zcserver.Client(f"zc://127.0.0.1:{served.server.port}/", context=make_context())


async def cancelled_before_the_reply(client, operation):
    """Run it until its request is under way, and cancel it then."""
    streams = client.connection.engine.codec.streams
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(operation)
        await until(lambda: streams)
        tasks.cancel_scope.cancel()


async def test_a_subscriber_cancelled_while_it_subscribes_blocks_nobody(make_context):
    async with (
        serving(make_context, TopicSettings(retain_count=2, block=True)) as served,
        client_of(served, make_context) as client,
    ):
        topic = served.topics.topic("/t")
        subscription = client.subscribe("/t", policy="block", name="w")
        await cancelled_before_the_reply(client, subscription.open)
        await until(lambda: not client.connection.engine.codec.streams and not topic.subscriptions)
        for _ in range(10):
            await topic.publish(b"x")


@pytest.mark.parametrize("connected", [False, True])
async def test_a_subscription_that_another_task_closes_ends_without_another_try(make_context, connected):
    retries = []
    async with serving(make_context) as served, client_of(served, make_context) as client:
        subscription = client.subscribe("/t", on_retry=retries.append)
        streams = client.connection.engine.codec.streams
        stream = await subscription.open() if connected else None

        async def read():
            assert [message async for message in subscription] == []

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await until(lambda: streams if stream is None else stream._receiving)
            await subscription.aclose()
        await until(lambda: not streams and not served.topics.topic("/t").subscriptions)
        assert retries == []


async def test_a_publisher_cancelled_while_it_connects_leaves_no_stream(make_context):
    async with serving(make_context) as served, client_of(served, make_context) as client:
        publisher = client.publisher("/t")
        await cancelled_before_the_reply(client, publisher.flush)
        publisher.close()
        await until(lambda: not client.connection.engine.codec.streams)
        await until(lambda: not served.topics._all_publishings)


async def test_a_publisher_that_another_task_closes_says_so_to_all_who_wait(make_context):
    settings = TopicSettings(retain_count=1, block=True)
    async with serving(make_context, settings) as served, client_of(served, make_context) as client:
        writer = client.publisher("/t", window=1)
        closed = []

        async def told(operation):
            with pytest.raises(zcserver.MisuseError, match="is closed"):
                await operation
            closed.append(operation)

        async with client.subscribe("/t", policy="block", name="w"), anyio.create_task_group() as tasks:
            await writer.publish(b"1")
            publication = await writer.publish(b"2")
            for operation in (writer.flush(), publication.wait(), writer.publish(b"3")):
                tasks.start_soon(told, operation)
            await until(lambda: served.topics.topic("/t")._moved is not None)
            writer.close()
        assert len(closed) == 3
        await until(lambda: not served.topics._all_publishings)


async def test_a_publisher_closed_while_it_connects_or_sends_leaves_no_stream(make_context):
    async with serving(make_context) as served, client_of(served, make_context) as client:
        streams = client.connection.engine.codec.streams
        for connected in (False, True):
            writer = client.publisher("/t")
            if connected:
                await writer.flush()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(closed_meanwhile, writer)
                await until(lambda: streams)
                writer.close()
            await until(lambda: not streams and not served.topics._all_publishings)


async def closed_meanwhile(writer):
    with pytest.raises(zcserver.MisuseError, match="is closed"):
        await (await writer.publish(bytes(1 << 20))).wait()
