"""What subscribers commit: the server notes it, by name, in bounded memory, and across lost connections."""

import pytest

from tests.raw_peer import until
from tests.topics.wire import serving, subscriber

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
