"""numpy arrays to a consumer, without copying them on the way out.

    python examples/numpy_arrays.py

The producer fills pool memory in place; the consumer gets each array in one piece and keeps what it wants
to keep: memory that is dropped goes back by itself.
"""

import asyncio

import numpy as np

import zcserver

SHAPE = (256, 1024)  # float64: 2 MiB
COUNT = 50


async def consume(stream: zcserver.Stream) -> None:
    total = 0.0
    async for message in stream:
        array = np.frombuffer(message.data, np.float64).reshape(SHAPE)  # no copy
        total += float(array[0, 0])
    await stream.send(np.array([total]), end=True)


async def produce(connection: zcserver.Connection) -> float:
    stream = await connection.open("ARRAYS", "/squares")
    for index in range(COUNT):
        buffer = await connection.acquire(SHAPE[0] * SHAPE[1] * 8)  # waits when everything is in flight
        array = np.frombuffer(buffer.view, np.float64).reshape(SHAPE)
        array[:] = index**2
        del array  # nobody may write to it any more
        await stream.send(buffer)
    await stream.end()
    answer = await stream.receive()
    return float(np.frombuffer(answer.data, np.float64)[0])


async def main() -> None:
    async with zcserver.serve(consume, port=0) as server, zcserver.connect(port=server.port) as connection:
        total = await produce(connection)
        assert total == sum(index**2 for index in range(COUNT))
        sent = connection.statistics
        print(
            f"{COUNT} arrays, {sent.reference_bytes >> 20} MiB by reference, {sent.copied_bytes >> 20} copied"
        )


asyncio.run(main())
