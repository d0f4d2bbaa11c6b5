"""An echo server and its client on asyncio's own StreamReader and StreamWriter.

    python examples/echo_streams.py

Only the two functions that connect and serve are ours; a pool buffer goes by reference through
``writer.write``.
"""

import asyncio

import zcserver

MIB = 1 << 20


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(MIB):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def main() -> None:
    async with await zcserver.start_server(echo, "127.0.0.1", 0) as server:
        reader, writer = await zcserver.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\n")
        print((await reader.readline()).decode().strip())
        buffer = await writer.transport.acquire(4 * MIB)
        buffer.view[:] = b"x" * 4 * MIB
        writer.write(buffer)
        writer.write_eof()
        received = await reader.read()
        assert received == b"x" * 4 * MIB
        stats = writer.get_extra_info("stats")
        left = stats.reference_bytes >> 20
        print(f"{len(received) >> 20} MiB came back, {left} MiB of them left by reference")
        writer.close()
        await writer.wait_closed()


asyncio.run(main())
