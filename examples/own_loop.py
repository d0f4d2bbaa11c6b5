"""The codec with a loop of one's own: no event loop, no threads, one blocking socket.

    python examples/own_loop.py

``zcserver_protocol`` does no I/O: it says how many bytes it wants next, what they mean, and what to write.
Here it reads one message of a server; whoever speaks ZCP/1 in another program, or language, does the same.
"""

import asyncio
import socket
import threading
from concurrent.futures import Future

import zcserver
from zcserver_protocol.codec import Codec, Limits
from zcserver_protocol.errors import ErrorCode
from zcserver_protocol.events import Data
from zcserver_protocol.frames import END_STREAM


def exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise ConnectionError("the server closed the connection")
        data += piece
    return bytes(data)


def fetch(port: int) -> bytes:
    content = bytearray()
    with socket.create_connection(("127.0.0.1", port)) as sock:
        codec = Codec("client", Limits(), 0.0)  # it takes the time as an argument, and never asks for it
        sock.sendall(codec.take_control())  # preface and HELLO
        while codec.peer is None:
            codec.feed(exactly(sock, codec.needs))
        codec.open("GET", "/", {}, 1 << 30)  # and credit for a GiB
        ended = False
        while not ended:
            sock.sendall(codec.take_control())
            event = codec.feed(exactly(sock, codec.needs))
            if isinstance(event, Data):
                ended = bool(event.flags & END_STREAM)
                payload = exactly(sock, event.length)
                content += payload
                if payload:
                    codec.payload_received(len(payload))  # it is in our own memory now,
                codec.acknowledge()  # so the server may have its pages back
        codec.goaway(ErrorCode.NO_ERROR, "")  # taking leave, so that the server knows that nothing is missing
        while not codec.finished:
            sock.sendall(codec.take_control())
            codec.feed(exactly(sock, codec.needs))
        sock.sendall(codec.take_control())
    return bytes(content)


async def answer(stream: zcserver.Stream) -> None:
    buffer = await stream.connection.acquire(1 << 20)
    buffer.view[:] = b"z" * (1 << 20)
    completion = await stream.send(buffer, end=True)
    await completion.wait()


async def serve(port: "Future[int]", over: "Future[None]") -> None:
    async with zcserver.serve(answer, port=0) as server:
        port.set_result(server.port)
        await asyncio.wrap_future(over)


port: "Future[int]" = Future()
over: "Future[None]" = Future()
thread = threading.Thread(target=lambda: asyncio.run(serve(port, over)))
thread.start()
try:
    content = fetch(port.result(timeout=10))
    assert content == b"z" * (1 << 20)
    print(f"{len(content)} bytes through the codec alone")
finally:
    over.set_result(None)
    thread.join()
