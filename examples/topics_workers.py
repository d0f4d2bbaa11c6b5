"""numpy tensors to workers that commit what they have done; one of them dies, and nothing is left out.

    python examples/topics_workers.py

Each worker has a name and takes its share of the batches. It commits a batch when its result is stored; the
one that takes its place gets again what was not committed. So a batch may be done twice, and is never left
out: results are stored under its number.
"""

import anyio
import numpy as np

import zcserver
from zcserver.topics import Topics, TopicSettings

WORKERS = 4
BATCHES = 40
SHAPE = (128, 512)  # float32: 256 KiB


async def produce(url: str) -> None:
    async with zcserver.Client(url) as client, client.publisher("/batches") as publisher:
        for number in range(1, BATCHES + 1):
            buffer = await publisher.acquire(SHAPE[0] * SHAPE[1] * 4)
            batch = np.frombuffer(buffer.view, np.float32).reshape(SHAPE)
            batch[:] = number
            del batch
            await publisher.publish(buffer, content_type="application/x-float32")


class DiedError(Exception):
    """What happens to workers."""


async def work(url: str, share: int, results: dict[int, float], dies_at: int = 0) -> int:
    """Do every fourth batch; return how many that were."""
    done = 0
    async with (
        zcserver.Client(url) as client,
        # The publisher waits for the slowest, so that none is missed as long as its worker is there.
        client.subscribe(
            "/batches", start="committed", name=f"worker {share}", policy="block"
        ) as subscription,
    ):
        async for message in subscription:
            assert not message.missed
            if message.sequence % WORKERS == share:
                batch = np.frombuffer(message.data, np.float32).reshape(SHAPE)  # no copy
                result = float(batch.mean())
                if message.sequence == dies_at:
                    raise DiedError
                results[message.sequence] = result
                done += 1
            await message.commit()
            if message.sequence == BATCHES:
                break
    return done


async def stay_at_work(url: str, share: int, results: dict[int, float], done: list[int]) -> None:
    try:
        done.append(await work(url, share, results, dies_at=17))
    except DiedError:
        print(f"worker {share} died with batch 17 in its hands; another takes its place")
        done.append(await work(url, share, results))


async def main() -> None:
    results: dict[int, float] = {}
    done: list[int] = []
    with zcserver.Context() as context:
        # All batches are retained until the end, so that the new worker finds what the dead one left.
        topics = Topics(context, TopicSettings(retain_count=BATCHES, block=True))
        async with zcserver.serve(topics.handle, port=0, context=context) as server:
            url = f"zc://127.0.0.1:{server.port}/"
            async with anyio.create_task_group() as tasks:
                for share in range(WORKERS):
                    tasks.start_soon(stay_at_work, url, share, results, done)
                tasks.start_soon(produce, url)
            topics.close()
    assert results == {number: float(number) for number in range(1, BATCHES + 1)}
    print(f"{len(results)} batches done by {len(done)} workers, each once stored")


if __name__ == "__main__":
    anyio.run(main)
