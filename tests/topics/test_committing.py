"""What subscribers commit: the server notes it, by name, in bounded memory, and across lost connections."""

import pytest

import zcserver
from tests.raw_peer import deadline, until
from tests.topics.wire import serving, subscriber
from zcserver.topics import Topics

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("name", "most"), [("", 0), ("w", 4096)])
async def test_a_subscriber_that_never_commits_costs_bounded_memory(make_context, name, most):
    count = 10_000
    async with serving(make_context) as served:
        topic = served.topics.topic("/t")
        reader = await subscriber(await served.connect(), **({"name": name} if name else {}))
        for number in range(1, count + 1):
            await topic.publish(b"x")
            if number % 1000 == 0:
                await reader.take(1000)
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
