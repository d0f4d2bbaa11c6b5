"""Integrity mode: a CRC32C for every frame, right when nothing is wrong, and told to both ends when it is."""

import anyio
import pytest

import zcserver
from tests.raw_peer import RawPeer, deadline, dial, joined, serving, until
from zcserver_protocol.codec import Limits
from zcserver_protocol.errors import ErrorCode
from zcserver_protocol.events import Goaway
from zcserver_protocol.frames import CRC, END_MESSAGE, FEATURE_CRC32C, HEADER_SIZE

pytestmark = pytest.mark.anyio
KIB = 1024
SUMS = Limits(features=(FEATURE_CRC32C,))


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


async def test_every_frame_that_carries_anything_has_its_sum(make_context, tmp_path):
    """The peer looks at each."""
    contents = [b"x" * size for size in (300 * KIB, 0, 1, 5000)]
    (tmp_path / "file").write_bytes(b"f" * 40_000)
    async with serving(make_context(integrity=True)) as served:
        stream, peer, theirs = await served.peer(limits=SUMS)
        for content in contents:
            await stream.send(content)
        with (tmp_path / "file").open("rb") as file:
            await stream.send_file(file)
        await peer.read_until(lambda: len(peer.messages.get(theirs.id, ())) == 5)
        assert peer.messages[theirs.id] == [*contents, b"f" * 40_000]


@pytest.mark.parametrize("size", [1000, 200 * KIB])
async def test_a_wrong_sum_ends_the_connection_and_both_ends_learn_why(make_context, size):
    context = make_context(integrity=True)
    async with serving(context) as served:
        stream, peer, theirs = await served.peer(limits=SUMS)
        await peer.read_until(lambda: peer.codec.sendable(theirs) >= size)
        header = bytearray(HEADER_SIZE)
        peer.codec.data_header_into(header, 0, theirs, size, 0, END_MESSAGE | CRC, 12345)
        peer.codec.data_written(HEADER_SIZE + size)
        await peer.write(bytes(header) + b"x" * size)
        with pytest.raises(zcserver.ConnectionLostError, match="was written to while it was in flight"):
            await stream.receive()
        while not peer.fin:
            await peer.read()
        assert goodbyes(peer) == [ErrorCode.INTEGRITY]
        assert context.receive_memory.promised == 0


def goodbyes(peer):
    """The codes with which the other end has ended the connection."""
    return [event.code for event in peer.events if isinstance(event, Goaway)]


async def test_a_peer_that_has_no_sums_is_refused(make_context):
    with deadline():
        async with zcserver.serve(
            lambda stream: None, port=0, context=make_context(integrity=True)
        ) as server:
            with RawPeer(dial(server.port)) as peer:
                await peer.flush()
                while not peer.events:
                    await peer.read()
                assert goodbyes(peer) == [ErrorCode.INTEGRITY]


async def test_what_came_of_a_stream_that_was_given_up_is_in_nobodys_sum(make_context):
    async with serving(make_context(integrity=True)) as served:
        doomed, peer, theirs = await served.peer(limits=SUMS)
        other, others = await served.stream(peer)
        await peer.read_until(lambda: peer.log.count("Credited") == 2)
        frame = peer.framed(theirs, b"a" * 100 * KIB)
        await peer.write(frame[: 50 * KIB])
        engine = doomed.connection.engine
        await until(lambda: engine.codec.payload_left == len(frame) - 50 * KIB)
        doomed.reset()
        await peer.write(frame[50 * KIB :])
        await peer.send(others, b"b" * 50 * KIB)
        assert bytes(await other.receive()) == b"b" * 50 * KIB
