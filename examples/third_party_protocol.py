"""aiohttp's web server, unchanged, on our transport, and an HTTP client made of h11.

    python examples/third_party_protocol.py

Needs aiohttp and h11. ``runner.server`` is aiohttp's protocol factory: what ``loop.create_server`` would get.
"""

import asyncio

import h11
from aiohttp import web

import zcserver

BODY = bytes(range(256)) * 16384


async def download(request: web.Request) -> web.Response:
    return web.Response(body=BODY)


async def fetch(host: str, port: int) -> bytes:
    reader, writer = await zcserver.open_connection(host, port)
    client = h11.Connection(h11.CLIENT)
    request = h11.Request(method="GET", target="/", headers=[("Host", "localhost"), ("Connection", "close")])
    writer.write(client.send(request) or b"")
    client.send(h11.EndOfMessage())
    body = bytearray()
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            client.receive_data(await reader.read(1 << 20))
        elif isinstance(event, h11.Data):
            body += event.data
    writer.close()
    await writer.wait_closed()
    return bytes(body)


async def main() -> None:
    application = web.Application()
    application.router.add_get("/", download)
    runner = web.AppRunner(application)
    await runner.setup()
    async with await zcserver.create_server(runner.server, "127.0.0.1", 0, trust_peer=True) as server:
        body = await fetch(*server.sockets[0].getsockname())
        assert body == BODY
        print(f"{len(body) >> 20} MiB by HTTP over ZCP/1")
    await runner.cleanup()


asyncio.run(main())
