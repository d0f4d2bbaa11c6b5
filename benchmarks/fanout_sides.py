"""One process of `fanout.py`: the publisher, or some of the subscribers.

    python -m benchmarks.fanout_sides publish KIND SUBSCRIBERS FRAMES SIZE CONGESTION
    python -m benchmarks.fanout_sides subscribe KIND SUBSCRIBERS FRAMES SIZE CONGESTION PORT

The publisher fills every frame (a number in every page) and gives it to all subscribers; nobody may miss
one. It prints its port, then what the frames cost it, then waits for a line on its input, upon which it
publishes `HELD` more, while the subscribers are stopped, waits for another line and ends. A subscriber
checks every page.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from benchmarks.side import HOST, PAGE, congestion_in_force, ring, stamp, tune_sockets

HELD = 8
_RETAINED = 16
_SLOTS = 32
"""Frames that a copying publisher cycles through."""


class Job(NamedTuple):
    """`frames` of `size` bytes to `subscribers` (of this process, for the subscribing side)."""

    subscribers: int
    frames: int
    size: int
    congestion: str
    port: int = 0


class CorruptionError(Exception):
    """A frame came with other content than was published, or another one was due."""


def check(frame: memoryview, number: int, size: int) -> None:
    """Raise CorruptionError unless every page bears `number`."""
    stamps = frame.cast("Q")[:: PAGE // 8].tolist()
    if len(frame) != size or stamps != [number] * (size // PAGE):
        raise CorruptionError(f"frame {number} came as {sorted(set(stamps))[:4]}…, {len(frame)} bytes")


def say(**words: Any) -> None:
    print(json.dumps(words), flush=True)


async def next_line() -> None:
    """What the harness says when it has looked."""
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


async def until(condition: Callable[[], bool]) -> None:
    """Look now and then: nothing tells."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.002)


class Meter:
    """Processor and wall seconds of the publisher, from the first frame to the last acknowledgement."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._used = resource.getrusage(resource.RUSAGE_SELF)

    def report(self, job: Job, **more: Any) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        say(
            delivered=job.subscribers * job.frames * job.size,
            seconds=time.perf_counter() - self._wall,
            cpu=used.ru_utime + used.ru_stime - self._used.ru_utime - self._used.ru_stime,
            congestion=congestion_in_force(),
            **more,
        )


# -- zcserver ----------------------------------------------------------------------------------------


async def publish_zcserver(job: Job, lanes: tuple[str, ...] | None) -> None:
    import zcserver
    from zcserver.topics import Topics, TopicSettings

    retained = _RETAINED * job.size
    settings = TopicSettings(retain_bytes=retained, retain_count=_RETAINED, block=True)
    with zcserver.Context(pool_size=4 * retained, lanes=lanes) as context:
        topics = Topics(context, settings)
        async with zcserver.serve(topics.handle, HOST, 0, context=context) as server:
            tune_sockets(job.congestion)
            topic = topics.topic("/frames")
            say(port=server.port)
            await until(lambda: len(topic.subscriptions) == job.subscribers)

            async def publish(number: int) -> None:
                buffer = await topic.acquire(job.size)
                stamp(buffer.view, number)
                await topic.publish(buffer)

            meter = Meter()
            for number in range(job.frames):
                await publish(number)
            await until(lambda: not topic.holders)
            totals = [connection.statistics for connection in server.connections]
            meter.report(
                job,
                referenced=sum(each.reference_bytes for each in totals),
                copied=sum(each.copied_bytes for each in totals),
                pool_peak=context.pool.stats().peak,
            )
            await next_line()
            for number in range(HELD):
                await publish(job.frames + number)
            await next_line()
            topics.close()


async def subscribe_zcserver(job: Job) -> None:
    import zcserver

    async with zcserver.Client(f"zc://{HOST}:{job.port}/") as client:
        async for message in client.subscribe("/frames", policy="block", retry_seconds=0):
            check(message.data, message.sequence - 1, job.size)
            if message.sequence == job.frames + HELD:
                break


# -- asyncio streams ---------------------------------------------------------------------------------


async def publish_asyncio(job: Job) -> None:
    writers: list[asyncio.StreamWriter] = []

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(high=0)  # `drain` returns when the memory is free
        writers.append(writer)

    server = await asyncio.start_server(accept, HOST, 0)
    tune_sockets(job.congestion)
    say(port=server.sockets[0].getsockname()[1])
    await until(lambda: len(writers) == job.subscribers)
    frames = ring(job.size, _SLOTS * job.size)

    def publish(number: int) -> None:
        frame = frames[number % len(frames)]
        stamp(frame, number)
        for writer in writers:
            writer.write(frame)

    meter = Meter()
    for number in range(job.frames):
        publish(number)
        await asyncio.gather(*(writer.drain() for writer in writers))
    meter.report(job)
    await next_line()
    for number in range(HELD):
        publish(job.frames + number)
    await next_line()
    await asyncio.gather(*(writer.drain() for writer in writers))
    for writer in writers:
        writer.close()
    server.close()


async def subscribe_asyncio(job: Job) -> None:
    import socket

    loop = asyncio.get_running_loop()
    sock = socket.create_connection((HOST, job.port))
    sock.setblocking(False)
    frame = memoryview(bytearray(job.size))
    for number in range(job.frames + HELD):
        filled = 0
        while filled < job.size:
            filled += await loop.sock_recv_into(sock, frame[filled:])
        check(frame, number, job.size)
    sock.close()


# -- pyzmq -------------------------------------------------------------------------------------------


async def publish_pyzmq(job: Job) -> None:
    """Synchronous calls, which are its fastest; its own threads do the sending."""
    import zmq

    context = zmq.Context()
    sock = context.socket(zmq.XPUB)
    sock.setsockopt(zmq.XPUB_NODROP, 1)
    sock.setsockopt(zmq.XPUB_VERBOSE, 1)  # or the second subscription would not be told
    sock.setsockopt(zmq.SNDHWM, _RETAINED)
    port = sock.bind_to_random_port(f"tcp://{HOST}")
    tune_sockets(job.congestion)
    say(port=port)
    for _ in range(job.subscribers):
        sock.recv()  # a subscription
    frames = ring(job.size, _SLOTS * job.size)
    trackers: list[Any] = [None] * len(frames)

    def publish(number: int) -> None:
        slot = number % len(frames)
        if trackers[slot] is not None:
            trackers[slot].wait()  # until nobody sends from it any more
        stamp(frames[slot], number)
        trackers[slot] = sock.send(frames[slot], copy=False, track=True)

    meter = Meter()
    for number in range(job.frames):
        publish(number)
    for tracker in trackers:
        if tracker is not None:
            tracker.wait()
    meter.report(job)
    await next_line()
    for number in range(HELD):
        publish(job.frames + number)
    await next_line()
    sock.close()
    context.term()


async def subscribe_pyzmq(job: Job) -> None:
    import zmq.asyncio

    context = zmq.asyncio.Context.instance()
    sock = context.socket(zmq.SUB)
    sock.setsockopt(zmq.RCVHWM, 2)
    sock.connect(f"tcp://{HOST}:{job.port}")
    sock.subscribe(b"")
    for number in range(job.frames + HELD):
        frame = await sock.recv(copy=False)
        check(memoryview(frame.buffer), number, job.size)
    sock.close()


PUBLISHERS: dict[str, Callable[[Job], Awaitable[None]]] = {
    "zcserver": lambda job: publish_zcserver(job, None),
    "zcserver-copy": lambda job: publish_zcserver(job, ("copy",)),
    "asyncio": publish_asyncio,
    "uvloop": publish_asyncio,
    "pyzmq": publish_pyzmq,
}
SUBSCRIBERS: dict[str, Callable[[Job], Awaitable[None]]] = {
    "zcserver": subscribe_zcserver,
    "zcserver-copy": subscribe_zcserver,
    "asyncio": subscribe_asyncio,
    "uvloop": subscribe_asyncio,
    "pyzmq": subscribe_pyzmq,
}


async def subscribe(kind: str, job: Job) -> None:
    """All subscribers of this process; say so when every one of them has got everything right."""
    await asyncio.gather(*(SUBSCRIBERS[kind](job) for _ in range(job.subscribers)))
    say(right=job.subscribers * (job.frames + HELD))


def main() -> None:
    side, kind, subscribers, frames, size, congestion, *port = sys.argv[1:]
    job = Job(int(subscribers), int(frames), int(size), congestion, *map(int, port))
    work = PUBLISHERS[kind](job) if side == "publish" else subscribe(kind, job)

    async def run() -> None:
        await work

    if kind in ("asyncio", "pyzmq") or side == "subscribe":
        asyncio.run(run())
    else:
        import uvloop

        uvloop.run(run())


if __name__ == "__main__":
    main()
