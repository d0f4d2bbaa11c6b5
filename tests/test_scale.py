"""Many connections, few pipes."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

import zcserver
from tests.conftest import KERNELS
from tests.raw_peer import MIB, deadline, until
from tests.unprivileged import CONNECTIONS

ROOT = Path(__file__).parent.parent


def test_seventy_connections_of_an_unprivileged_user_send_by_reference(anyio_backend, kernel):
    name, options = anyio_backend
    (kind,) = [name for name, each in KERNELS.items() if each is type(kernel)]
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.unprivileged", "uvloop" if options else name, kind],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["user"] != 0
    total = 2 * CONNECTIONS * MIB
    assert found["received"] == found["reference"] + found["copied"] == total
    if kind == "reference":
        assert found["memory_pipes"] == 1
        assert found["pipes_until_refused"] <= CONNECTIONS
        assert found["reference"] == total, "the pipe ran out of slots, or out of pages"


def open_pipes():
    """Ends of pipes that this process has open. (The descriptor that lists the folder is gone by then.)"""
    links = [Path("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
    return sum(link.is_symlink() and os.readlink(link).startswith("pipe:") for link in links)


@pytest.fixture
def many(kernel):
    """A thousand on the real kernel; the others, which use no pipe for memory, show the same with fewer."""
    count = 1000 if type(kernel).__name__ == "Kernel" else 100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * count + 200
    if hard < needed:
        pytest.skip(f"{needed} descriptors are needed, {hard} may be had")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield count
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.anyio
async def test_pipes_do_not_grow_with_connections(make_context, many):
    # Every idle stream keeps its promise of credit: so many need an account to match.
    server_context = make_context(receive_memory=1024 * MIB)
    client_context = make_context(receive_memory=2048 * MIB)
    counts = {}

    async def handler(stream):
        async for _ in stream:
            buffer = await stream.connection.acquire(MIB)
            buffer.view[:8] = b"a packet"
            await stream.send(buffer)

    async with zcserver.serve(handler, port=0, context=server_context) as server:
        async with anyio.create_task_group() as tasks:
            over = anyio.Event()

            async def converse(*, task_status):
                async with zcserver.connect(port=server.port, context=client_context) as connection:
                    stream = await connection.open("TEST", "/")
                    await stream.send(b"a megabyte, please")
                    assert len(await stream.receive()) == MIB
                    task_status.started()
                    await over.wait()

            with deadline():
                for number in range(1, many + 1):
                    await tasks.start(converse)
                    if number in (1, 10, 100, 1000):
                        counts[number] = open_pipes()
                assert len(server.connections) == many
                assert server_context.pipes.memory_pipes == server_context.by_reference
                over.set()
        await until(lambda: not server.connections)
    assert len(set(counts.values())) == 1, counts
    stats = server_context.pool.stats()
    assert (stats.in_flight, stats.filling) == (0, 0)
