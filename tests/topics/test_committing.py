"""What subscribers commit: the server notes it, by name, in bounded memory, and across lost connections."""

import contextlib

import anyio
import pytest

import zcserver
from tests.raw_peer import deadline, until
from tests.topics.line import Line
from tests.topics.wire import serving, subscriber
from zcserver.topic_protocol import POSITION
from zcserver.topics import Topics, TopicSettings

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("name", "most"), [("", 0), ("w", 4096)])
async def test_a_subscriber_that_never_commits_costs_bounded_memory(make_context, name, most):
    count = 8192  # the last one makes them too many
    async with serving(make_context) as served:
        topic = served.topics.topic("/t")
        reader = await subscriber(await served.connect(), **({"name": name} if name else {}))
        for number in range(1, count + 1):
            await topic.publish(b"x")
            if number % 1024 == 0:
                await reader.take(1024)
        (subscription,) = topic.subscriptions
        assert len(subscription._uncommitted) <= most
        # Of so many, a commit in the middle may count as one of a message before; the last is exact.
        await reader.stream.commit(5001)
        await until(lambda: not name or "w" in topic.positions)
        assert topic.positions.get("w", 5000) in range(4990, 5002)
        await reader.stream.commit(count)
        await until(lambda: not name or topic.positions["w"] == count)


async def test_a_commit_of_before_a_restart_means_nothing_after_it(make_context):
    context = make_context()
    with deadline():
        topics = Topics(context)
        async with (
            zcserver.serve(topics.handle, port=0, context=context) as first,
            zcserver.Client(f"zc://127.0.0.1:{first.port}/", context=make_context()) as client,
            client.subscribe("/t", name="w") as worker,
        ):
            for _ in range(5):
                await topics.topic("/t").publish(b"old")
            old = [await anext(worker) for _ in range(5)]
            topics.close()
            await first.aclose()
            again = Topics(context)
            async with zcserver.serve(again.handle, port=first.port, context=context):
                await again.topic("/t").publish(b"new")
                assert bytes(await anext(worker)) == b"new"
                await old[-1].commit()
                assert worker.committed == 0
                client.connection.abort()
                await again.topic("/t").publish(b"newer")
                assert bytes(await anext(worker)) == b"newer"
                async with client.subscribe("/t", start="committed", name="w") as successor:
                    assert bytes(await anext(successor)) == b"new"
                again.close()


@pytest.fixture
def worker(make_context):
    """A blocking subscriber of a topic that retains five messages, with a client of its own."""

    @contextlib.asynccontextmanager
    async def begin(served):
        address = f"zc://127.0.0.1:{served.server.port}/"
        async with (
            zcserver.Client(address, context=make_context()) as client,
            client.subscribe("/t", start="earliest", policy="block", name="w") as subscription,
        ):
            yield client, subscription

    return begin


RETAINED = 5
SETTINGS = TopicSettings(retain_count=RETAINED, block=True)


async def test_what_was_not_committed_is_waited_for_over_lost_connections(make_context, worker):
    async with serving(make_context, SETTINGS) as served:
        topic = served.topics.topic("/t")
        async with worker(served) as (client, subscription), anyio.create_task_group() as tasks:
            for _ in range(3):
                await topic.publish(b"x")
            early = [await anext(subscription) for _ in range(3)]
            client.connection.abort()
            await topic.publish(b"x")
            assert (await anext(subscription)).sequence == 4

            async def publish_more():
                for _ in range(4):
                    await topic.publish(b"x")

            tasks.start_soon(publish_more)
            await until(lambda: topic._moved is not None and topic.next == 1 + RETAINED)
            assert topic.first == 1
            await early[1].commit()
            await until(lambda: topic.first == 3 and topic._moved is not None)
            assert topic.positions == {"w": 2}
            await early[2].commit()
            await until(lambda: topic.next == 9)


async def test_a_commit_of_what_came_by_an_earlier_connection_reaches_the_server(make_context, worker):
    async with serving(make_context, SETTINGS) as served:
        topic = served.topics.topic("/t")
        async with worker(served) as (client, subscription):
            for _ in range(3):
                await topic.publish(b"x")
            early = [await anext(subscription) for _ in range(3)]
            client.connection.abort()
            await topic.publish(b"x")
            last = await anext(subscription)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await early[0].commit()  # closing tells it at the latest
        assert topic.positions == {"w": 1}
        await last.commit()  # too late: it was closed
        async with worker(served) as (client, subscription):
            assert (await anext(subscription)).sequence == 1


async def test_closing_tells_what_was_committed_although_the_connection_is_lost(make_context, worker):
    async with serving(make_context, SETTINGS) as served:
        topic = served.topics.topic("/t")
        async with worker(served) as (client, subscription):
            for _ in range(3):
                await topic.publish(b"x")
            first, second = [await anext(subscription) for _ in range(2)]
            await first.commit()
            client.connection.abort()
            await second.commit()
        assert topic.positions == {"w": 2}


async def test_what_lies_before_the_beginning_counts_as_committed_on_the_next_connection(make_context):
    async with serving(make_context, SETTINGS) as served, Line(served, make_context) as line:
        topic = served.topics.topic("/t")
        for _ in range(3):
            await topic.publish(b"x")
        async with line.client.subscribe("/t", policy="block", name="w") as subscription:
            line.break_at_the_server()
            await until(lambda: line.client.connection.is_closed and not topic.subscriptions)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anext, subscription)
                await until(lambda: topic.subscriptions)
                assert [each.needed for each in topic.subscriptions] == [4]
                await topic.publish(b"x")


async def test_a_commit_while_the_connection_is_made_anew_is_told(make_context, worker):
    async with serving(make_context, SETTINGS) as served:
        topic = served.topics.topic("/t")
        async with worker(served) as (client, subscription):
            await topic.publish(b"x")
            message = await anext(subscription)
            client.connection.abort()
            lost = client.connection
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anext, subscription)
                await until(lambda: client.connection is not lost and client.connection.engine.codec.streams)
                await message.commit()  # the request is under way, without it
                await until(lambda: topic.positions == {"w": 1})
                await topic.publish(b"y")


async def test_a_position_needs_a_name_and_the_present_epoch_and_never_goes_back(make_context):
    async with serving(make_context) as served:
        topic = served.topics.topic("/t")
        connection = await served.connect()

        async def position(**arguments):
            stream = await connection.open(POSITION, "/t", **arguments)
            return await stream.response()

        for arguments in ({"name": "w", "epoch": "x"}, {"epoch": topic.epoch}, {"name": "w"}):
            with pytest.raises(zcserver.StreamResetError, match="needs a name"):
                await position(committed=1, **arguments)
        reader = await subscriber(connection, name="w")
        for _ in range(3):
            await topic.publish(b"x")
        await reader.take(3)
        (subscription,) = topic.subscriptions
        for committed in (3, 2, 2**63 - 1):
            assert await position(name="w", epoch=topic.epoch, committed=committed) == {}
            assert (topic.positions, subscription.committed) == ({"w": 3}, 3)
        await reader.stream.commit(1)
        await until(lambda: subscription.stream.committed == 1)
        assert (topic.positions, subscription.committed) == ({"w": 3}, 3)


@pytest.mark.parametrize("start", [0, 2**63, True, "first"])
async def test_a_start_that_is_none_is_refused(make_context, start):
    async with serving(make_context) as served:
        with pytest.raises(zcserver.StreamResetError, match="a number from 1 to 9223372036854775807, not"):
            await subscriber(await served.connect(), from_=start)


async def test_a_number_that_is_still_to_come_is_waited_for_and_not_held_to_be_committed(make_context):
    async with serving(make_context, SETTINGS) as served:
        topic = served.topics.topic("/t")
        connection = await served.connect()
        given = {"name": "w", "epoch": topic.epoch, "committed": 10**12 - 1}
        await subscriber(connection, from_=10**12, policy="block", **given)
        for _ in range(3 * RETAINED):
            await topic.publish(b"x")  # which it does not want
        successor = await subscriber(connection, from_="committed", name="w")
        assert successor.reply["start"] == 1
