"""asyncio at its best: `StreamWriter` to a `BufferedProtocol`, which receives in place."""

from __future__ import annotations

import asyncio

from benchmarks.contenders.asyncio_streams import send
from benchmarks.side import HOST, Inbox, Run, announce, main, tune_sockets


def unavailable() -> str | None:
    return None


class Receiver(asyncio.BufferedProtocol):
    """Receives message after message into one buffer."""

    def __init__(self, run: Run, inbox: Inbox) -> None:
        self._message = memoryview(bytearray(run.size))
        self._inbox = inbox
        self._have = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._message[self._have :]

    def buffer_updated(self, nbytes: int) -> None:
        self._have += nbytes
        if self._have == len(self._message):
            self._have = 0
            self._inbox.take(self._message)
            if self._inbox.full.done():
                self._transport.close()


async def receive(run: Run) -> None:
    inbox = Inbox(run)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Receiver(run, inbox), HOST, 0)
    tune_sockets(run.congestion)
    announce(server.sockets[0].getsockname()[1])
    async with server:
        await inbox.full


if __name__ == "__main__":
    main("asyncio-buffered", send, receive)
