"""A trio client of an asyncio server.

    python examples/trio_client.py

Needs trio. The server runs in a thread, on an event loop of its own; both speak the same bytes.
"""

import asyncio
import threading
from concurrent.futures import Future

import trio

import zcserver


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line.upper())
    writer.close()


async def serve(port: "Future[int]", over: "Future[None]") -> None:
    async with await zcserver.start_server(shout, "127.0.0.1", 0) as server:
        port.set_result(server.sockets[0].getsockname()[1])
        await asyncio.wrap_future(over)


async def main(port: int) -> None:
    async with zcserver.connect_byte_stream(port=port) as stream:
        for word in (b"hello", b"from", b"trio"):
            await stream.send(word + b"\n")
        await stream.send_eof()
        answer = b"".join([piece async for piece in stream])
        print(answer.decode().replace("\n", " ").strip())


port: "Future[int]" = Future()
over: "Future[None]" = Future()
thread = threading.Thread(target=lambda: asyncio.run(serve(port, over)))
thread.start()
try:
    trio.run(main, port.result(timeout=10))
finally:
    over.set_result(None)
    thread.join()
