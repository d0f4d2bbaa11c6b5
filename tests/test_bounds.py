"""What one peer can make the other end hold is bounded, and others get theirs."""

import anyio
import pytest

import zcserver
from tests.raw_peer import RawPeer, deadline, until
from zcserver_protocol.errors import ErrorCode

pytestmark = pytest.mark.anyio
KIB = 1024
MIB = 1 << 20


async def pong(peer):
    """Everything that was sent before has been understood."""
    peer.codec.ping(7)
    await peer.flush()
    await peer.read_until(lambda: "Pong" in peer.log)
    peer.log.clear()
    await anyio.wait_all_tasks_blocked()


async def test_streams_that_are_given_up_at_once_leave_no_more_handlers_than_twice_the_limit(make_context):
    running = 0
    release = anyio.Event()

    async def handler(stream):
        nonlocal running
        running += 1
        try:
            await release.wait()
        finally:
            running -= 1

    context = make_context()
    most = context.limits.max_streams
    async with zcserver.serve(handler, port=0, context=context) as server:
        with deadline(), await RawPeer.connect(server.port) as peer:
            for _ in range(5):
                for _ in range(most):
                    stream = peer.codec.open("GET", "/", {}, 0)
                    peer.codec.reset(stream, ErrorCode.CANCELLED, "")
                await pong(peer)
            assert running == 2 * most
            release.set()
            await until(lambda: not running)
            release = anyio.Event()
            await peer.open()
            await until(lambda: running == 1)
            release.set()


async def test_streams_that_only_wait_leave_receive_memory_to_others(make_context):
    async def echo(stream):
        async for message in stream:
            await stream.send(bytes(message))

    context = make_context(receive_memory=8 * MIB)
    async with zcserver.serve(echo, port=0, context=context) as server:
        with deadline(), await RawPeer.connect(server.port) as peer:
            for _ in range(64):
                await peer.open()
            await pong(peer)
            async with zcserver.connect(port=server.port, context=make_context()) as connection:
                stream = await connection.open("ECHO", "/")
                await stream.send(b"x" * 1000)
                assert bytes(await stream.receive()) == b"x" * 1000


async def test_who_waited_for_memory_that_came_back_may_wait_for_the_peer_as_long_as_it_takes(make_context):
    context = make_context(receive_memory=4 * MIB, memory_seconds=0.3)
    received = []

    async def handler(stream):
        received.append(bytes(await stream.receive()))

    async with zcserver.serve(handler, port=0, context=context) as server:
        memory = context.receive_memory
        with deadline(), await RawPeer.connect(server.port) as peer:
            kept = memory.take(memory.limit - memory.used)
            stream = await peer.open()
            await pong(peer)
            del kept
            await anyio.sleep(2 * context.memory_seconds)
            await peer.send(stream, b"late")
            await until(lambda: received == [b"late"])
