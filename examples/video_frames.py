"""Frames of a fixed size at a fixed rate, as a camera makes them, to a viewer.

    python examples/video_frames.py --seconds 1 --rate 30

A frame that is not acknowledged in time delays nobody: the camera looks how many are on their way, and
drops the new one when there are too many, as a live picture should.
"""

import argparse
import asyncio
import time

import zcserver

WIDTH, HEIGHT = 1280, 720
FRAME = WIDTH * HEIGHT * 3
IN_FLIGHT = 4


async def view(stream: zcserver.Stream) -> None:
    shown = 0
    async for message in stream:
        assert len(message) == FRAME
        shown += 1
    await stream.send(str(shown).encode(), end=True)


async def film(connection: zcserver.Connection, seconds: float, rate: float) -> tuple[int, int, int]:
    stream = await connection.open("VIDEO", "/camera")
    on_their_way: set[zcserver.Completion] = set()
    sent = dropped = 0
    begin = time.monotonic()
    for index in range(int(seconds * rate)):
        await asyncio.sleep(max(0.0, begin + index / rate - time.monotonic()))
        if len(on_their_way) >= IN_FLIGHT:
            dropped += 1
            continue
        buffer = await connection.acquire(FRAME)
        buffer.view[:4] = index.to_bytes(4, "big")  # a camera would write all of it here
        completion = await stream.send(buffer)
        on_their_way.add(completion)
        completion.add_done_callback(on_their_way.discard)
        sent += 1
    await stream.end()
    return sent, dropped, int(bytes(await stream.receive()))


async def main() -> None:
    parser = argparse.ArgumentParser(description="Frames at a fixed rate.")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rate", type=float, default=30.0, help="frames per second")
    options = parser.parse_args()
    async with zcserver.serve(view, port=0) as server, zcserver.connect(port=server.port) as connection:
        sent, dropped, shown = await film(connection, options.seconds, options.rate)
        assert sent == shown
        print(f"{shown} frames shown, {dropped} dropped, {FRAME * shown >> 20} MiB")


asyncio.run(main())
