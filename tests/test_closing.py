"""Closing never loses data (rule 11), and never waits for ever."""

import anyio
import pytest

import zcserver
from tests.raw_peer import MIB, deadline, serving

pytestmark = pytest.mark.anyio


async def test_what_was_sent_just_before_closing_arrives(make_context):
    received = []

    async def handler(stream):
        await stream.send(b"unread by the client")  # unread input makes a careless close() a reset
        received.extend([len(message) async for message in stream])

    context = make_context()
    with deadline():
        async with zcserver.serve(handler, port=0, context=context) as server:
            async with zcserver.connect(port=server.port, context=context) as connection:
                stream = await connection.open("PUT", "/")
                for _ in range(6):
                    await stream.send(bytes(MIB // 2))
    assert received == [MIB // 2] * 6


async def test_both_ends_may_close_at_the_same_time(make_context):
    received = []

    async def handler(stream):
        received.extend([len(message) async for message in stream])

    context = make_context()
    with deadline():
        async with (
            zcserver.serve(handler, port=0, context=context) as server,
            zcserver.connect(port=server.port, context=context) as connection,
        ):
            stream = await connection.open("PUT", "/")
            await stream.send(bytes(MIB), end=True)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(server.aclose)
                tasks.start_soon(connection.aclose)
    assert received == [MIB]


async def test_a_peer_that_acknowledges_nothing_is_dropped_at_the_closing_deadline(make_context):
    context = make_context()
    async with serving(context) as served:
        stream, _, _ = await served.peer()
        completion = await stream.send(b"x" * 1000)
        with pytest.raises(zcserver.PeerTimeoutError, match="had not acknowledged 1032 bytes"):
            await stream.connection.aclose(timeout=0.05)
        with pytest.raises(zcserver.PeerTimeoutError):
            await completion.wait()


async def test_a_peer_that_stops_acknowledging_is_given_up(make_context):
    context = make_context(ack_seconds=0.05)
    async with serving(context) as served:
        stream, _, _ = await served.peer()
        completion = await stream.send(b"x" * 1000)
        with pytest.raises(zcserver.PeerTimeoutError, match="acknowledged nothing more for 0.05 seconds"):
            await completion.wait()


async def test_an_exception_in_the_body_comes_out_as_it_is_and_aborts(make_context):
    async def handler(stream):
        async for _ in stream:
            pass

    context = make_context()
    with deadline():
        async with zcserver.serve(handler, port=0, context=context) as server:
            with pytest.raises(ZeroDivisionError):
                async with zcserver.connect(port=server.port, context=context) as connection:
                    stream = await connection.open("PUT", "/")
                    completion = await stream.send(bytes(100))
                    raise ZeroDivisionError
            assert completion.done
            assert connection.is_closed
