"""trio's stream interface over our anyio byte stream, for trio's own checks."""

import contextlib

import anyio
import trio

from zcserver.byte_stream import ByteStream


@contextlib.contextmanager
def _in_trios_words():
    try:
        yield
    except anyio.ClosedResourceError as error:
        raise trio.ClosedResourceError from error
    except anyio.BrokenResourceError as error:
        raise trio.BrokenResourceError from error
    except anyio.BusyResourceError as error:
        raise trio.BusyResourceError from error


class TrioStream(trio.abc.HalfCloseableStream):
    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with _in_trios_words():
            await self.stream.send(data)

    async def wait_send_all_might_not_block(self) -> None:
        with _in_trios_words():
            await self.stream.wait_for_room()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        with _in_trios_words():
            try:
                return await self.stream.receive(65536 if max_bytes is None else max_bytes)
            except anyio.EndOfStream:
                return b""

    async def send_eof(self) -> None:
        with _in_trios_words():
            await self.stream.send_eof()

    async def aclose(self) -> None:
        await self.stream.aclose()
