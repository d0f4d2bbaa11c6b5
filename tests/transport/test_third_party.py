"""Protocols that were not written for this, unchanged, over our transport: big bodies both ways."""

import asyncio
import hashlib
import io
from typing import Any

import h11
import pytest
import uvloop
import websockets.asyncio.client
import websockets.asyncio.server
from aiohttp import ClientSession, web

import zcserver
from tests.transport.gateway import OverZCP
from tests.transport.recorders import KIB, MIB

BODY = bytes(range(256)) * 32 * KIB + b"the end"


def digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


class AsyncioLoop(OverZCP, asyncio.SelectorEventLoop):
    """What a library connects and serves through its loop goes over our transport."""


class UvloopLoop(OverZCP, uvloop.Loop):
    """The same."""


@pytest.fixture(params=[AsyncioLoop, UvloopLoop])
def runner(request: Any) -> Any:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner


async def answer(request: web.Request) -> web.StreamResponse:
    """Reads a body piece by piece; answers with its digest and as many bytes, in pieces without a length."""
    seen = hashlib.sha256()
    size = 0
    async for piece in request.content.iter_any():
        seen.update(piece)
        size += len(piece)
    response = web.StreamResponse(headers={"X-Digest": seen.hexdigest()})
    await response.prepare(request)
    for start in range(0, size, 300_000):
        await response.write(BODY[start : start + 300_000])
    await response.write_eof()
    return response


async def http_server() -> web.AppRunner:
    application = web.Application(client_max_size=1 << 30)
    application.router.add_post("/", answer)
    site = web.AppRunner(application)
    await site.setup()
    return site


async def ask_with_h11(address: tuple[str, int], context: Any) -> tuple[str, bytes]:
    """h11 over our streams: one request and its answer."""
    reader, writer = await zcserver.open_connection(*address, context=context)
    client = h11.Connection(h11.CLIENT)
    headers = [("Host", "localhost"), ("Content-Length", str(len(BODY)))]
    writer.write(client.send(h11.Request(method="POST", target="/", headers=headers)) or b"")
    for start in range(0, len(BODY), 100_000):
        writer.write(client.send(h11.Data(data=BODY[start : start + 100_000])) or b"")
        await writer.drain()
    client.send(h11.EndOfMessage())
    body, seen = bytearray(), ""
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(await reader.read(1 << 18))
        elif isinstance(event, h11.Response):
            assert event.status_code == 200
            seen = dict(event.headers)[b"x-digest"].decode()
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            break
    writer.close()
    await writer.wait_closed()
    return seen, bytes(body)


@pytest.mark.asyncio
async def test_an_aiohttp_server_and_an_h11_client(make_context: Any) -> None:
    site = await http_server()
    server = await zcserver.create_server(site.server, "127.0.0.1", 0, context=make_context())
    seen, body = await ask_with_h11(server.sockets[0].getsockname(), make_context())
    assert (seen, digest(body)) == (digest(BODY), digest(BODY))
    server.close()
    await site.cleanup()
    await server.wait_closed()


def test_an_aiohttp_server_and_an_aiohttp_client_that_keeps_its_connections(runner: Any) -> None:
    async def main() -> None:
        site = await http_server()
        tcp = web.TCPSite(site, "127.0.0.1", 0)
        await tcp.start()
        async with ClientSession() as session:
            for _ in range(3):
                url = f"http://127.0.0.1:{site.addresses[0][1]}/"
                async with session.post(url, data=io.BytesIO(BODY)) as response:
                    assert isinstance(response.connection.transport, zcserver.ZeroCopyTransport)
                    assert digest(await response.read()) == response.headers["X-Digest"] == digest(BODY)
        await site.cleanup()

    runner.run(main())


def test_websockets_at_both_ends(runner: Any) -> None:
    async def echo(connection: Any) -> None:
        async for message in connection:
            await connection.send(digest(message.encode() if isinstance(message, str) else message))
            await connection.send(message)

    async def main() -> None:
        serve = websockets.asyncio.server.serve(echo, "127.0.0.1", 0, max_size=None, compression=None)
        async with serve as server:
            (sock,) = server.sockets
            uri = f"ws://127.0.0.1:{sock.getsockname()[1]}/"
            connect = websockets.asyncio.client.connect(uri, max_size=None, compression=None)
            async with connect as connection:
                assert isinstance(connection.transport, zcserver.ZeroCopyTransport)
                for message in (b"", b"small", BODY, "text" * MIB):
                    await connection.send(message)
                    assert await connection.recv() == digest(
                        message.encode() if isinstance(message, str) else message
                    )
                    assert await connection.recv() == message
                await (await connection.ping())

    runner.run(main())
