"""Integrity mode: a CRC32C for every frame, right when nothing is wrong, and told to both ends when it is."""

import anyio
import pytest

import zcserver
from tests.raw_peer import joined, serving
from zcserver_protocol.codec import Limits
from zcserver_protocol.errors import ErrorCode
from zcserver_protocol.events import Goaway
from zcserver_protocol.frames import CRC, END_MESSAGE, HEADER_SIZE

pytestmark = pytest.mark.anyio
KIB = 1024


@pytest.mark.parametrize("size", [100, 5000, 16 * KIB, 40_000, 300 * KIB])
async def test_messages_in_numbers_pass(make_context, size):
    async with joined(make_context(integrity=True), make_context(integrity=True)) as ends:
        ours, theirs = await ends.stream()
        content = bytes(range(250)) * (size // 250 + 1)
        count = max(10, 1024 * KIB // size)
        async with anyio.create_task_group() as tasks:

            async def send():
                for number in range(count):
                    await ours.send(content[number % 250 :][:size])

            tasks.start_soon(send)
            for number in range(count):
                assert bytes((await theirs.receive()).data) == content[number % 250 :][:size]


async def test_a_wrong_sum_ends_the_connection_and_both_ends_learn_why(make_context):
    async with serving(make_context(integrity=True)) as served:
        stream, peer, theirs = await served.peer(limits=Limits(features=("crc32c",)))
        await peer.read_until(lambda: peer.codec.sendable(theirs) > 0)
        header = bytearray(HEADER_SIZE)
        peer.codec.data_header_into(header, 0, theirs, 1000, 0, END_MESSAGE | CRC, 12345)
        await peer.write(bytes(header) + b"x" * 1000)
        with pytest.raises(zcserver.ConnectionLostError, match="was written to while it was in flight"):
            await stream.receive()
        while not peer.fin:
            await peer.read()
        assert [event.code for event in peer.events if isinstance(event, Goaway)] == [ErrorCode.INTEGRITY]
