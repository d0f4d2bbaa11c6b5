"""``Client.publish``: one message at a time, to any number of topics, from any memory."""

import array

import anyio
import pytest

import zcserver
from tests.raw_peer import until
from tests.topics.wire import serving, subscriber
from zcserver.topics import TopicSettings

pytestmark = pytest.mark.anyio
MOST = 32


@pytest.fixture
def client_of(make_context):
    def make(served):
        return zcserver.Client(f"zc://127.0.0.1:{served.server.port}/", context=make_context())

    return make


async def test_messages_to_any_number_of_topics_leave_the_connection_to_others(make_context, client_of):
    topics = 300  # a connection has 256 streams
    async with serving(make_context, max_topics=topics) as served, client_of(served) as client:
        for _ in range(2):
            for number in range(topics):
                await client.publish(f"/t{number}", b"x")
        assert all(served.topics.topic(f"/t{number}").next == 3 for number in range(topics))
        await until(lambda: len(served.topics._all_publishings) == MOST)
        assert len(client.connection.engine.codec.streams) <= 2 * MOST
        (names,) = {tuple(topic.accepted) for topic in served.topics._topics.values()}
        assert len(names) == 1  # it takes no other publisher's place in what a topic remembers


async def test_messages_to_any_number_of_topics_go_at_once(make_context, client_of):
    topics = 300
    async with serving(make_context, max_topics=topics) as served, client_of(served) as client:
        async with anyio.create_task_group() as tasks:
            for number in range(topics):
                for data in (b"1", b"2"):
                    tasks.start_soon(client.publish, f"/t{number}", data)
        assert all(served.topics.topic(f"/t{number}").next == 3 for number in range(topics))
        await until(lambda: len(served.topics._all_publishings) == MOST)


async def test_a_message_that_is_not_accepted_yet_is_not_given_up_for_others(make_context, client_of):
    settings = TopicSettings(retain_count=1, block=True)
    async with serving(make_context, settings) as served:
        reader = await subscriber(await served.connect(), policy="block", name="r")
        topic = served.topics.topic("/t")
        async with client_of(served) as client:
            await client.publish("/t", b"1")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.publish, "/t", b"2")
                await until(lambda: topic._moved is not None)
                for number in range(2 * MOST):
                    await client.publish(f"/other{number}", b"x")
                tasks.cancel_scope.cancel()
            for number in range(2 * MOST):
                await client.publish(f"/other{number}", b"x")
            assert await reader.take(1) == [(1, b"1")]
            await reader.stream.commit(1)
            assert await reader.take(1) == [(2, b"2")]


@pytest.mark.parametrize(
    "memory",
    [
        memoryview(array.array("d", [1.5] * 5000)),
        memoryview(bytes(range(12))).cast("B", (3, 4)),
        array.array("d"),
        bytearray(b"bytes"),
    ],
    ids=range(4),
)
async def test_memory_of_any_format_is_published_as_its_bytes(make_context, client_of, memory):
    async with serving(make_context) as served:
        reader = await subscriber(await served.connect())
        async with client_of(served) as client:
            await client.publish("/t", memory)
            assert await reader.take(1) == [(1, bytes(memory))]


async def test_what_is_no_memory_or_is_viewed_still_is_refused_and_leaves_no_hole(make_context, client_of):
    async with serving(make_context) as served, client_of(served) as client:
        with pytest.raises(zcserver.MisuseError, match="not C-contiguous"):
            await client.publish("/t", memoryview(bytes(20))[::2])
        with pytest.raises(zcserver.MisuseError, match="buffer protocol"):
            await client.publish("/t", "text")
        async with client.publisher("/t") as writer:
            buffer = await writer.acquire(20_000)
            view = buffer.view[:10]
            with pytest.raises(zcserver.ViewsAliveError):
                await writer.publish(buffer)
            view.release()
            del view
            await writer.publish(buffer)
        await client.publish("/t", b"x")
        assert served.topics.topic("/t").next == 3
