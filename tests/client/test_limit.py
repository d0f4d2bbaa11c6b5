"""The client's limit of bytes per second, with the clock in the test's hand."""

import pytest

from tests.client.connected import MIB, client_for, filled
from tests.server import test_pace

pytestmark = pytest.mark.anyio
clock = test_pace.clock


@pytest.mark.parametrize("nbytes", [16_000, 100_000, 3 * MIB])
async def test_the_last_bytes_of_every_file_count_too(clock, served, local, make_context, nbytes):
    files = 3 * MIB // nbytes
    (local / "tree").mkdir()
    for number in range(files):
        filled(local / "tree" / str(number), nbytes)
    async with client_for(served, make_context, limit_rate=MIB) as client:
        await client.put_tree(local / "tree", "/there", jobs=1)
        assert clock.now - 1000 == pytest.approx(files * nbytes / MIB - 0.1)
        await client.fetch_tree("/there", local / "back", jobs=1)
        assert clock.now - 1000 == pytest.approx(2 * files * nbytes / MIB - 0.1)


async def test_what_is_read_into_memory_counts_and_comes_evenly(clock, served, make_context):
    content = filled(served / "file", 2 * MIB)
    memory = bytearray(2 * MIB)
    async with client_for(served, make_context, limit_rate=MIB) as client:
        assert await client.read("/file") == content
        assert clock.now - 1000 == pytest.approx(2 - 0.1)
        assert await client.read_into("/file", memory) == 2 * MIB
        assert clock.now - 1000 == pytest.approx(4 - 0.1)
        async with client.open("/file") as file:
            assert b"".join([chunk async for chunk in file]) == memory == content
        assert clock.now - 1000 == pytest.approx(6 - 0.1)
    assert max(clock.slept) <= 0.2
