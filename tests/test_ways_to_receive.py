"""Whole messages, chunks and the caller's memory, one behind the other on the same stream."""

import anyio
import pytest

import zcserver
from tests.raw_peer import MIB, deadline, joined, until
from zcserver_protocol.errors import ErrorCode

pytestmark = pytest.mark.anyio

HEAD = b"header"
FIRST = {
    "receive": lambda stream: stream.receive(),
    "receive_into": lambda stream: stream.receive_into(bytearray(len(HEAD))),
    "receive_chunk": lambda stream: stream.receive_chunk(),
}


async def whole(stream, _):
    return len(await stream.receive())


async def iterated(stream, _):
    sizes = [len(message) async for message in stream]
    return sizes[0]


async def into(stream, size):
    return await stream.receive_into(bytearray(size))


async def chunks(stream, _):
    return sum([len(chunk) async for chunk in stream.chunks()])


@pytest.mark.parametrize("size", [MIB, 12 * MIB])  # within the window, and far above it
@pytest.mark.parametrize("second", [whole, iterated, into, chunks])
@pytest.mark.parametrize("first", FIRST)
async def test_a_large_message_is_received_in_any_way_behind_one_received_in_any_other(
    make_context, first, second, size
):
    with deadline():
        async with joined(make_context()) as ends:
            ours, theirs = await ends.stream()
            await theirs.send(HEAD)
            await theirs.send(bytes(size), end=True)
            await FIRST[first](ours)
            assert await second(ours, size) == size


async def test_whole_messages_are_wanted_again_in_the_midst_of_one_whose_beginning_was_taken(make_context):
    content = bytes(range(256)) * (12 * MIB // 256)
    with deadline():
        async with joined(make_context()) as ends:
            ours, theirs = await ends.stream()
            await theirs.send(content, end=True)
            head = bytearray(300 * 1024)
            assert await ours.receive_into(head) == len(head)
            assert bytes(head) + bytes(await ours.receive()) == content
            with pytest.raises(anyio.EndOfStream):
                await ours.receive()


async def test_a_message_that_fills_the_memory_exactly_is_told_from_a_longer_one(make_context):
    piece = bytearray(64 * 1024)
    lengths = [100 * 1024, 2 * len(piece), 5, len(piece), 7, 0, 3 * MIB]
    received = []
    with deadline():
        async with joined(make_context()) as ends:
            ours, theirs = await ends.stream()
            for length in lengths:
                await theirs.send(bytes(length))
            await theirs.end()
            for _ in lengths:
                length = await ours.receive_into(piece)
                while not ours.message_ended:
                    length += await ours.receive_into(piece)
                received.append(length)
            with pytest.raises(anyio.EndOfStream):
                await ours.receive_into(piece)
    assert received == lengths


async def test_no_memory_takes_nothing(make_context):
    with deadline():
        async with joined(make_context()) as ends:
            ours, theirs = await ends.stream()
            await theirs.send(HEAD)
            assert await ours.receive_into(bytearray(0)) == 0
            assert bytes(await ours.receive()) == HEAD


@pytest.mark.parametrize("take", [into, chunks])
@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_body_too_large_to_be_assembled_is_taken_otherwise_behind_its_header(
    make_context, take, cancelled
):
    context = make_context(max_message=6 * MIB)
    with deadline():
        async with joined(context) as ends:
            ours, theirs = await ends.stream()
            if cancelled:
                with anyio.move_on_after(0):
                    await ours.receive()
            await theirs.send(HEAD)
            assert bytes(await ours.receive()) == HEAD
            await theirs.send(bytes(12 * MIB), end=True)
            await until(lambda: ours._inbox.held >= 200 * 1024 or ours.failed)
            assert await take(ours, 12 * MIB) == 12 * MIB


async def test_a_body_too_large_to_be_assembled_is_refused_to_who_asks_for_all_of_it(make_context):
    context = make_context(max_message=6 * MIB)
    with deadline():
        async with joined(context) as ends:
            ours, theirs = await ends.stream()
            await theirs.send(HEAD)
            assert bytes(await ours.receive()) == HEAD
            await theirs.send(bytes(12 * MIB), end=True)
            await until(lambda: ours._inbox.held >= 200 * 1024 or ours.failed)
            with pytest.raises(zcserver.MessageTooLargeError, match=r"12582912 bytes .* \(6291456 bytes\)"):
                await ours.receive()
            with pytest.raises(zcserver.StreamResetError) as caught:
                await theirs.receive()
            assert caught.value.code == ErrorCode.TOO_LARGE
            assert context.receive_memory.used < 6 * MIB
