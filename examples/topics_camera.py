"""A camera and many viewers: each frame is in memory once, however many look at it.

    python examples/topics_camera.py --viewers 16 --frames 90

One viewer is slow; it asks for the newest frame whenever it is ready for one, and delays nobody. Server,
camera and viewers share one process here; in earnest each has its own, and only the URL is shared.
"""

import argparse

import anyio
import numpy as np

import zcserver
from zcserver.topics import Topics

SHAPE = (720, 1280, 3)
NBYTES = 720 * 1280 * 3


async def film(url: str, frames: int, rate: float) -> None:
    async with zcserver.Client(url) as client, client.publisher("/camera") as publisher:
        for number in range(frames):
            await anyio.sleep(1 / rate)
            buffer = await publisher.acquire(NBYTES)
            picture = np.frombuffer(buffer.view, np.uint8).reshape(SHAPE)
            picture[:] = number % 256  # a camera would write its picture here
            del picture  # nobody may write to it any more
            await publisher.publish(buffer, content_type="video/raw")


async def view(url: str, frames: int, slow: bool, results: list[tuple[bool, int, int]]) -> None:
    seen = 0
    async with zcserver.Client(url) as client:
        subscription = client.subscribe("/camera", policy="latest" if slow else "drop-oldest", start=1)
        async for message in subscription:
            picture = np.frombuffer(message.data, np.uint8).reshape(SHAPE)  # no copy
            assert picture[0, 0, 0] == picture[-1, -1, -1] == (message.sequence - 1) % 256
            seen += 1
            if slow:
                await anyio.sleep(0.2)
            if message.sequence >= frames:
                break
        results.append((slow, seen, subscription.missed))


async def main() -> None:
    parser = argparse.ArgumentParser(description="One camera, many viewers.")
    parser.add_argument("--viewers", type=int, default=8)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--rate", type=float, default=30.0, help="frames per second")
    options = parser.parse_args()
    results: list[tuple[bool, int, int]] = []
    with zcserver.Context() as context:
        topics = Topics(context)
        async with zcserver.serve(topics.handle, port=0, context=context) as server:
            url = f"zc://127.0.0.1:{server.port}/"
            async with anyio.create_task_group() as tasks:
                for number in range(options.viewers):
                    tasks.start_soon(view, url, options.frames, number == 0, results)
                tasks.start_soon(film, url, options.frames, options.rate)
            peak = context.pool.stats().peak
            topics.close()
    for slow, seen, missed in sorted(results, reverse=True)[:2]:
        print(f"a {'slow' if slow else 'quick'} viewer saw {seen} frames and missed {missed}")
        assert seen + missed == options.frames
    frames = sum(seen for _, seen, _ in results)
    print(f"{frames * NBYTES >> 20} MiB were shown; the server never held more than {peak >> 20} MiB")


if __name__ == "__main__":
    anyio.run(main)
