"""asyncio streams, the way the documentation shows them: `write`, `drain`, `readexactly`."""

from __future__ import annotations

import asyncio

from benchmarks.side import HOST, Inbox, Run, announce, dial, main, measured, ring, stamp, tune_sockets


def unavailable() -> str | None:
    return None


async def send(run: Run) -> None:
    reader, writer = await asyncio.open_connection(sock=dial(run))
    tune_sockets(run.congestion)
    messages = ring(run.size)
    with measured(run):
        for number in range(run.messages):
            message = messages[number % len(messages)]
            stamp(message, number)
            writer.write(message)
            await writer.drain()
        await reader.read()
    writer.close()


async def receive(run: Run) -> None:
    inbox = Inbox(run)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(run.messages):
            inbox.take(await reader.readexactly(run.size))
        writer.close()

    # With the default limit (64 KiB) a reader of large messages pauses and resumes all the time.
    server = await asyncio.start_server(handle, HOST, 0, limit=max(run.size, 64 << 10))
    tune_sockets(run.congestion)
    announce(server.sockets[0].getsockname()[1])
    async with server:
        await inbox.full


if __name__ == "__main__":
    main("asyncio", send, receive)
