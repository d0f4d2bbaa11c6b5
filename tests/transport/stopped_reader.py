"""Try to write 10 GiB to a reader that has stopped, and print what that cost: a process of its own.

python -m tests.transport.stopped_reader BYTES [uvloop]
"""

import asyncio
import json
import os
import sys
from typing import Any

import uvloop

import zcserver
from tests.raw_peer import until

PIECE = 1 << 20


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def available() -> int:
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))


class Stopped(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        transport.pause_reading()


async def main(nbytes: int) -> None:
    server = await zcserver.create_server(Stopped, "127.0.0.1", 0)
    _, writer = await zcserver.open_connection(*server.sockets[0].getsockname())
    before = resident(), available()
    written = 0

    async def write_all() -> None:
        nonlocal written
        while written < nbytes:
            writer.write(os.urandom(PIECE))  # fresh memory each time: what is kept is seen
            written += PIECE
            await writer.drain()

    writing = asyncio.ensure_future(write_all())
    transport: Any = writer.transport
    engine, channel = transport._link.engine, transport._channel

    def stopped() -> bool:
        """The writer waits in ``drain``, and all that there was credit for is acknowledged."""
        return transport._writing_paused and engine.unacknowledged(channel) == channel.queued

    await until(lambda: writing.done() or stopped())
    result = {
        "written": written,
        "high": transport.get_write_buffer_limits()[1],
        "received": server._context.stream_window,
        "resident": resident() - before[0],
        "available": before[1] - available(),
    }
    print(json.dumps(result))
    transport.abort()
    writing.cancel()
    server.close()
    server.abort_clients()
    await asyncio.gather(writing, return_exceptions=True)
    await server.wait_closed()


if __name__ == "__main__":
    factory = uvloop.new_event_loop if "uvloop" in sys.argv else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main(int(sys.argv[1])))
