"""Streaming through a ring far smaller than the stream keeps memory and descriptors flat.

A few thousand messages by default; ``ZCSERVER_SOAK=60`` streams for a minute.
"""

import os
import time
from contextlib import nullcontext

import pytest

import zcserver
from tests.raw_peer import MIB, deadline

pytestmark = pytest.mark.anyio
SIZE = 256 * 1024
WARM = 200  # messages after which everything that is allocated once has been


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def descriptors():
    return len(os.listdir("/proc/self/fd"))


async def test_a_ring_of_16_mib_carries_any_amount(make_context):
    seconds = float(os.environ.get("ZCSERVER_SOAK", "0"))
    received = 0

    async def handler(stream):
        nonlocal received
        async for message in stream:
            assert int.from_bytes(message.data[:8]) == received
            received += 1

    sending = make_context(pool_size=16 * MIB)
    receiving = make_context(receive_memory=16 * MIB)
    with deadline() if not seconds else nullcontext():
        async with (
            zcserver.serve(handler, port=0, context=receiving) as server,
            zcserver.connect(port=server.port, context=sending, trust_peer=True) as connection,
        ):
            stream = await connection.open("PUT", "/")
            end = time.monotonic() + seconds
            number = 0
            while number < 2000 or time.monotonic() < end:
                buffer = await connection.acquire(SIZE)
                buffer.view[:8] = number.to_bytes(8)
                completion = await stream.send(buffer)
                number += 1
                if number == WARM:
                    before = resident(), descriptors()
            await completion.wait()
            after = resident(), descriptors()
            if sending.by_reference:
                assert connection.statistics.copied_bytes == 0
    assert received == number
    # Both rings are at most touched to the end after the warm-up; what leaked by message would be far more.
    assert after[0] - before[0] < 32 * MIB
    assert after[1] == before[1]
    stats = sending.pool.stats()
    assert (stats.free, stats.in_flight, stats.waiters) == (stats.size, 0, 0)
    assert stats.recycled >= number
