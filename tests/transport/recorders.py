"""Protocols that note what is called, and two transports joined with them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import zcserver
from tests.raw_peer import DEADLINE, until

__all__ = ["until"]
MIB = 1 << 20
KIB = 1 << 10


class Recorder(asyncio.Protocol):
    """``calls`` are the names of the callbacks in order, ``data`` all bytes, ``error`` of connection_lost."""

    def __init__(self, keep_open: bool = False) -> None:
        self.calls: list[str] = []
        self.data = bytearray()
        self.pieces: list[int] = []
        self.keep_open = keep_open
        self.error: Any = "connection_lost was not called"
        self.transport: Any = None
        self.lost = asyncio.get_running_loop().create_future()
        self.inside_write = False

    def note(self, name: str) -> None:
        self.calls.append(name)

    def connection_made(self, transport: Any) -> None:
        self.note("connection_made")
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.note("data_received")
        assert type(data) is bytes, "asyncio's protocols are given bytes"
        self.pieces.append(len(data))
        self.data += data

    def eof_received(self) -> bool:
        self.note("eof_received")
        return self.keep_open

    def pause_writing(self) -> None:
        self.note("pause_writing")

    def resume_writing(self) -> None:
        self.note("resume_writing")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.note("connection_lost")
        self.error = exc
        self.lost.set_result(None)  # raises when it is called twice


class BufferedRecorder(Recorder, asyncio.BufferedProtocol):  # type: ignore[misc]
    """The same with a buffer of its own of ``size`` bytes, whatever the hint says."""

    def __init__(self, size: int, keep_open: bool = False) -> None:
        super().__init__(keep_open)
        self.buffer = bytearray(size)

    def get_buffer(self, sizehint: int) -> memoryview:
        self.note("get_buffer")
        return memoryview(self.buffer)

    def buffer_updated(self, nbytes: int) -> None:
        self.note("buffer_updated")
        self.data += self.buffer[:nbytes]


@asynccontextmanager
async def serving(starting: Any) -> AsyncIterator[Any]:
    """A server, under the deadline; what a test that failed has left open does not keep it from ending."""
    async with asyncio.timeout(DEADLINE):
        server = await starting
        try:
            yield server
        except BaseException:
            server.abort_clients()
            raise
        finally:
            server.close()
            await server.wait_closed()


class Pair:
    """``client`` and ``server`` are the protocols, ``left`` and ``right`` their transports."""

    def __init__(self, client: Any, server: Any, listening: Any) -> None:
        self.client = client
        self.server = server
        self.left = client.transport
        self.right = server.transport
        self.listening = listening

    async def over(self) -> None:
        """Until both ends have lost the connection."""
        await asyncio.wait_for(asyncio.gather(self.client.lost, self.server.lost), DEADLINE)


@asynccontextmanager
async def paired(
    client_context: Any,
    server_context: Any,
    client: Callable[[], Any] = Recorder,
    server: Callable[[], Any] = Recorder,
    **settings: Any,
) -> AsyncIterator[Pair]:
    accepted: list[Any] = []

    def accept() -> Any:
        accepted.append(server())
        return accepted[-1]

    async with asyncio.timeout(DEADLINE):
        listening = await zcserver.create_server(accept, "127.0.0.1", 0, context=server_context, **settings)
        port = listening.sockets[0].getsockname()[1]
        _, protocol = await zcserver.create_connection(
            client, "127.0.0.1", port, context=client_context, **settings
        )
        await until(lambda: accepted and accepted[0].transport is not None)
        both = Pair(protocol, accepted[0], listening)
        try:
            yield both
        finally:
            for end in (both.client, both.server):
                end.transport.abort()
                await end.lost
            listening.close()
            await listening.wait_closed()
