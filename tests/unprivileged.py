"""Seventy connections for a user without privileges, whose pipes are limited; run by test_scale.py.

    python -m tests.unprivileged LOOP KERNEL

Prints, as JSON, what the senders' context and statistics say. Everything is imported before the privileges
are dropped: afterwards the interpreter's own files may not be readable.
"""

import json
import os
import sys
from functools import partial
from typing import Any

import anyio
import trio  # noqa: F401 – imported before privileges are dropped
import uvloop

import zcserver
from tests.conftest import KERNELS
from zcserver import Context
from zcserver.kernel.pipe import Pipe

CONNECTIONS = 70
NOBODY = 65534
MIB = 1 << 20
_IMPORTED = uvloop


def drop_privileges() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


async def talk(kernel: str) -> dict[str, Any]:
    """Each connection sends 2 MiB, the last ones while all the others are still open."""
    server_context = Context(kernel=KERNELS[kernel](), pool_size=512 * MIB)
    client_context = Context(kernel=KERNELS[kernel]())
    received = 0

    async def handler(stream: zcserver.Stream) -> None:
        async for _ in stream:
            with await stream.connection.acquire(MIB) as buffer:
                buffer.view[:] = b"x" * MIB
                await stream.send(buffer)

    async def converse(port: int, task_status: Any = anyio.TASK_STATUS_IGNORED) -> None:
        nonlocal received
        async with zcserver.connect(port=port, context=client_context) as connection:
            stream = await connection.open("TEST", "/")
            await stream.send(b"a megabyte, please")
            message = await stream.receive()
            received += len(message)
            task_status.started()
            await all_open.wait()
            await stream.send(b"and another")
            message = await stream.receive()
            received += len(message)

    all_open = anyio.Event()
    with server_context, client_context, anyio.fail_after(60):
        async with zcserver.serve(handler, port=0, context=server_context) as server:
            async with anyio.create_task_group() as tasks:
                for _ in range(CONNECTIONS):
                    await tasks.start(converse, server.port)
                statistics = [connection.statistics for connection in server.connections]
                all_open.set()
            pipes = server_context.pipes.memory_pipes
        return {
            "user": os.geteuid(),
            "received": received,
            "memory_pipes": pipes,
            "pipe_size": server_context.capabilities.pipe_size,
            "reference": sum(each.reference_bytes for each in statistics),
            "copied": sum(each.copied_bytes for each in statistics),
        }


def pipes_until_refused() -> int:
    """How many full-size pipes this user gets; with one per connection, the last ones would get none."""
    pipes = []
    while len(pipes) < CONNECTIONS:
        pipes.append(Pipe())
        if not pipes[-1].worthwhile:
            break
    for pipe in pipes:
        pipe.close()
    return len(pipes)


def main(loop: str, kernel: str) -> None:
    drop_privileges()
    backend, options = ("asyncio", {"use_uvloop": True}) if loop == "uvloop" else (loop, {})
    outcome = anyio.run(partial(talk, kernel), backend=backend, backend_options=options)
    print(json.dumps({**outcome, "pipes_until_refused": pipes_until_refused()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
