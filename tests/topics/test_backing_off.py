"""How clients of topics try again: later and later, until it works."""

import types

import anyio
import pytest

import zcserver
from tests.raw_peer import until
from tests.topics.line import Line
from tests.topics.wire import serving, subscriber
from zcserver.topics import TopicSettings

pytestmark = pytest.mark.anyio
MANY = 1030  # two hours of tries; two to their number is no float any more


@pytest.fixture
def at_once(monkeypatch):
    """Back-off without the waiting; what would have been waited is in the list, and is the time."""
    from zcserver.client import retrying

    waited = []
    monkeypatch.setattr(retrying, "time", types.SimpleNamespace(monotonic=lambda: sum(waited)))

    async def sleep(seconds):
        waited.append(seconds)
        await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(retrying.anyio, "sleep", sleep)
    return waited


@pytest.fixture
def enough():
    """To be told of tries: raises when there were so many in all."""

    class EnoughError(Exception):
        pass

    def make(retries, most):
        def told(retry):
            retries.append(retry)
            if len(retries) == most:
                raise EnoughError

        return told

    make.error = EnoughError
    return make


async def test_tries_are_told_grow_apart_and_end(make_context, at_once):
    retries = []
    async with serving(make_context) as served, Line(served, make_context) as line:
        subscription = line.client.subscribe("/t", retry_seconds=1e9, on_retry=retries.append)
        await subscription.open()
        for _ in range(3):
            await served.topics.topic("/t").publish(b"x")
        served.topics.close()
        await served.server.aclose()

        class EnoughError(Exception):
            pass

        def enough(retry):
            retries.append(retry)
            if retry.attempt == MANY:
                raise EnoughError

        subscription._retrying._on_retry = enough
        assert [(await anext(subscription)).sequence for _ in range(3)] == [1, 2, 3]
        with pytest.raises(EnoughError):
            await anext(subscription)
        assert [retry.attempt for retry in retries] == list(range(1, MANY + 1))
        assert 0.05 <= retries[0].delay <= 0.1
        late = [retry.delay for retry in retries[10:]]
        assert all(5 <= delay <= 10 for delay in late)
        assert len(set(late)) > 1, "all clients of a server that was restarted come at once"
        assert "trying again in" in str(retries[0])
        impatient = line.client.subscribe("/t", retry_seconds=0)
        with pytest.raises(zcserver.ConnectionLostError):
            await anext(impatient)


@pytest.mark.parametrize("seconds", [0.01, 30, 95.5])
async def test_tries_end_when_the_time_for_them_is_over(make_context, at_once, seconds):
    async with serving(make_context) as served, Line(served, make_context) as line:
        await served.server.aclose()
        with pytest.raises(zcserver.ConnectionLostError):
            await anext(line.client.subscribe("/t", retry_seconds=seconds))
    assert sum(at_once) == pytest.approx(seconds)


async def test_a_stream_that_the_server_cancels_is_opened_again_on_the_same_connection(make_context, at_once):
    async with serving(make_context) as served, Line(served, make_context) as line:
        connection = line.client.connection
        async with line.client.subscribe("/t", on_retry=line.retries.append) as subscription:
            topic = served.topics.topic("/t")
            (serving_it,) = topic.subscriptions
            serving_it.stream.reset(reason="for once")
            await topic.publish(b"1")
            assert (await anext(subscription)).sequence == 1
            assert (len(line.retries), subscription.reconnections) == (1, 1)
            assert line.client.connection is connection


async def test_a_publisher_that_is_sent_away_comes_back_less_and_less_often(make_context, at_once, enough):
    size, times = 60_000, 5
    settings = TopicSettings(retain_bytes=100_000, block=True)
    async with serving(make_context, settings) as served:
        reader = await subscriber(await served.connect(), policy="block", name="r")
        topic, retries = served.topics.topic("/t"), []
        async with Line(served, make_context) as line:
            first = line.client.publisher("/t")
            for _ in range(2):  # one is retained, one waits
                await first.publish(bytes(size))
            await until(lambda: topic.waiting_bytes)
            second = line.client.publisher("/t", on_retry=enough(retries, times))
            with pytest.raises(enough.error):
                await (await second.publish(bytes(size))).wait()
            assert [retry.attempt for retry in retries] == list(range(1, times + 1))
            for _ in range(2):
                await reader.take(1)
                await reader.stream.commit(reader.messages)
            await second.flush()
            assert second.reconnections == times
            line.break_at_the_server()
            await until(lambda: line.client.connection.is_closed)
            await second.flush()
            await second.publish(b"x")
            assert [retry.attempt for retry in retries[times:]] == [1]


async def test_a_subscription_without_messages_that_held_for_long_is_made_again_soon(make_context, at_once):
    async with (
        serving(make_context) as served,
        Line(served, make_context) as line,
        line.client.subscribe("/t", on_retry=line.retries.append) as subscription,
    ):
        for attempt in (1, 2, 3, 1):
            if attempt < len(line.retries):
                subscription._retrying._replied -= 11.0
            line.break_at_the_server()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anext, subscription)
                before = subscription.reconnections
                await until(lambda before=before: subscription.reconnections > before)
                tasks.cancel_scope.cancel()
            assert line.retries[-1].attempt == attempt
