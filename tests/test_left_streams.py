"""A stream that is left, for whatever reason, costs its connection nothing any more."""

import contextlib
import gc
import threading

import anyio
import pytest

import zcserver
from tests.raw_peer import MIB, deadline, joined, until
from zcserver_protocol.errors import ErrorCode

pytestmark = pytest.mark.anyio


async def left(connection):
    """Wait until both ends have forgotten their streams."""
    await until(lambda: not connection.engine.codec.streams)


async def test_a_call_whose_deadline_strikes_leaves_no_stream_and_no_memory_behind(make_context):
    async def handler(stream):
        async for message in stream:
            await stream.send(bytes(message))

    context = make_context()
    with deadline():
        async with (
            zcserver.serve(handler, port=0, context=context) as server,
            zcserver.connect(port=server.port, context=context) as connection,
        ):
            for size in (1, MIB):
                for _ in range(300):  # more than may be open at once
                    with anyio.move_on_after(0):
                        async with await connection.open("ECHO", "/") as stream:
                            await stream.send(bytes(size))
                            await stream.receive()
                await left(connection)
                await until(lambda: not context.receive_memory.used)


async def test_the_peer_learns_that_a_stream_was_left(make_context):
    async with joined(make_context()) as ends:
        ours, theirs = await ends.stream()
        await theirs.send(bytes(MIB))
        with contextlib.suppress(ZeroDivisionError):
            async with ours:
                await ours.send(b"x")
                raise ZeroDivisionError
        await until(lambda: theirs.failed)
        with pytest.raises(zcserver.StreamResetError, match="left before its end") as caught:
            await theirs.send(b"more")
        assert caught.value.code == ErrorCode.CANCELLED
        with pytest.raises(zcserver.StreamResetError):
            await ours.receive()


async def test_what_was_sent_up_to_the_end_arrives_although_the_answer_is_not_waited_for(make_context):
    async with joined(make_context()) as ends:
        ours, theirs = await ends.stream()
        async with ours:
            completion = await ours.send(bytes(12 * MIB), end=True)
            assert not completion.done
        del ours
        gc.collect()
        assert len(await theirs.receive()) == 12 * MIB
        await completion
        await until(lambda: theirs.failed)
        with pytest.raises(anyio.EndOfStream):
            await theirs.receive()
        with pytest.raises(zcserver.StreamResetError, match="left before its end"):
            await theirs.send(b"an answer")
        await left(ends.client)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_stream_both_sides_of_which_have_ended_is_left_as_it_is(make_context, fails):
    async with joined(make_context()) as ends:
        ours, theirs = await ends.stream()
        await theirs.send(b"all", end=True)
        with contextlib.suppress(ZeroDivisionError):
            async with ours:
                assert bytes(await ours.receive()) == b"all"
                await until(lambda: ours.is_over)
                completion = await ours.send(bytes(12 * MIB), end=True)
                if fails:
                    raise ZeroDivisionError
        assert len(await theirs.receive()) == 12 * MIB
        await completion
        assert theirs.failed is None
        await left(ends.client)


def in_thread(streams):
    thread = threading.Thread(target=streams.clear)
    thread.start()
    thread.join()


def in_collector(streams):
    streams[0].args["itself"] = streams[0]
    streams.clear()
    gc.collect()


@pytest.mark.parametrize("drop", [list.clear, in_thread, in_collector])
async def test_a_stream_that_is_dropped_is_given_up(make_context, drop):
    async with joined(make_context()) as ends:
        *streams, theirs = await ends.stream()
        await theirs.send(bytes(MIB))
        await until(lambda: streams[0]._inbox.held)
        with pytest.warns(ResourceWarning, match="was dropped before its end"):
            drop(streams)
        await until(lambda: theirs.failed)
        with pytest.raises(zcserver.StreamResetError, match="left before its end"):
            await theirs.send(b"more")
        await left(ends.client)


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.filterwarnings("ignore:.*was dropped:ResourceWarning")
async def test_what_was_sent_on_a_stream_that_is_dropped_arrives(make_context, end):
    async with joined(make_context()) as ends:
        ours, theirs = await ends.stream()
        completion = await ours.send(bytes(12 * MIB), end=end)
        del ours
        gc.collect()
        assert len(await theirs.receive()) == 12 * MIB
        await completion
        await until(lambda: theirs.failed)
        await left(ends.client)


async def test_streams_that_are_over_may_be_dropped(make_context):
    async with joined(make_context()) as ends:
        for _ in range(3):
            ours, theirs = await ends.stream()
            await theirs.send(b"all", end=True)
            await ours.end()
            assert [bytes(message) async for message in ours] == [b"all"]
            other, _ = await ends.stream()
            other.reset()
            del ours, other
            gc.collect()
