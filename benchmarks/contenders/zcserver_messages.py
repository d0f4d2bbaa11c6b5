"""zcserver: buffers of its pool, published as messages of one stream."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from benchmarks.side import HOST, Inbox, Run, announce, main, measured, stamp, tune_sockets

if TYPE_CHECKING:
    import zcserver


def unavailable() -> str | None:
    try:
        zcserver = importlib.import_module("zcserver")
    except ImportError as error:
        return f"zcserver cannot be imported: {error}"
    missing = [name for name in ("connect", "serve") if not hasattr(zcserver, name)]
    return f"zcserver has no {' and no '.join(missing)}" if missing else None


async def send(run: Run) -> None:
    import zcserver

    async with zcserver.connect(HOST, run.port) as connection:
        tune_sockets(run.congestion)
        stream = await connection.open("PUBLISH", "/bench")
        with measured(run):
            for number in range(run.messages):
                buffer = await connection.acquire(run.size)
                stamp(buffer.view, number)
                completion = await stream.send(buffer)
            await completion.wait()


async def receive(run: Run) -> None:
    import zcserver

    inbox = Inbox(run)

    async def handle(stream: zcserver.Stream) -> None:
        async for message in stream:
            inbox.take(message.data)

    async with zcserver.serve(handle, HOST, 0) as server:
        tune_sockets(run.congestion)
        announce(server.port)
        await inbox.full


if __name__ == "__main__":
    main("zcserver", send, receive)
