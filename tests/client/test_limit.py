"""The client's limit of bytes per second, with the clock in the test's hand."""

import contextlib
import os

import anyio
import pytest

import zcserver
from tests.client.connected import MIB, client_for, filled
from tests.server import test_pace
from zcserver import Client
from zcserver.client import client_context
from zcserver.client.download import pour
from zcserver.server import FileServer, Root

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


async def test_what_a_descriptor_gives_counts_and_goes_evenly(clock, served, local, make_context):
    content = filled(local / "file", 2 * MIB)
    fd = os.open(local / "file", os.O_RDONLY)
    async with client_for(served, make_context, limit_rate=MIB) as client:
        await client.put(fd, "/file")
    os.close(fd)
    assert (served / "file").read_bytes() == content
    assert clock.now - 1000 == pytest.approx(2 - 0.1)
    assert max(clock.slept) <= 0.2


async def test_the_pace_is_asked_before_bytes_are_taken():
    log = []

    class Source:
        path = "/file"

        async def chunks(self):
            for nbytes in (60, 60, 250, 30):
                log.append(("taken", nbytes))
                yield memoryview(bytes(nbytes))

    class Asked:
        piece = 100

        async def spend(self, nbytes):
            log.append(("paid", nbytes))

    async def write(batch):
        pass

    await pour(Source(), 400, write, Asked(), lambda nbytes: None)
    first, second, third = ("paid", 100), ("paid", 120), ("paid", 180)
    assert log == [
        *(first, ("taken", 60), ("taken", 60)),
        *(second, ("taken", 250)),
        *(third, ("taken", 30)),
    ]


@pytest.mark.parametrize(
    ("rate", "window"), [(0, 8 * MIB), (1 << 30, 8 * MIB), (10 * MIB, 2 * MIB), (1000, 32 << 10)]
)
async def test_little_of_a_file_is_sent_ahead_of_a_limit(served, make_context, rate, window):
    with client_context(limit_rate=rate) as context:
        assert context.stream_window == window
    with Root(served) as root, contextlib.closing(FileServer(root)) as files, anyio.fail_after(60):
        async with (
            zcserver.serve(files.handle, port=0, context=make_context()) as server,
            Client(f"zc://127.0.0.1:{server.port}", limit_rate=rate) as client,
        ):
            assert client.connection.context.stream_window == window
