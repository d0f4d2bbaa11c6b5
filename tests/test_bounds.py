"""What one peer can make the other end hold is bounded, and others get theirs."""

import logging
from functools import partial

import anyio
import pytest

import zcserver
from tests.raw_peer import RawPeer, at_rest, deadline, serving, until
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


async def test_a_trusted_peer_that_goes_takes_no_memory_from_the_others(make_context):
    context = make_context(pool_size=4 * MIB)
    async with zcserver.serve(lambda stream: None, port=0, context=make_context()) as server:
        connect = partial(zcserver.connect, port=server.port, context=context, trust_peer=True)
        held = []
        async with connect() as stays:
            for _ in range(4):
                held.append(await stays.acquire(4 * KIB, timeout=1))
                async with connect():
                    pass
            if context.by_reference:
                assert context.pool.stats().regions_by_principal["trusted peers"] == 1
            for buffer in held:
                buffer.release()


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


@pytest.mark.parametrize("read", [True, False], ids=["read", "unread"])
async def test_streams_that_only_wait_leave_receive_memory_to_others(make_context, read):
    async def handler(stream):
        if stream.path == "/idle" and not read:
            await anyio.sleep_forever()
        async for message in stream:
            await stream.send(bytes(message))

    context = make_context(receive_memory=8 * MIB)
    async with zcserver.serve(handler, port=0, context=context) as server:
        with deadline(), await RawPeer.connect(server.port) as peer:
            for _ in range(64):
                await peer.open(path="/idle")
            await pong(peer)
            async with zcserver.connect(port=server.port, context=make_context()) as connection:
                stream = await connection.open("ECHO", "/")
                for _ in range(10):  # what comes back of these is not promised to the others
                    await stream.send(b"x" * 1000)
                    assert bytes(await stream.receive()) == b"x" * 1000
            if not read:
                assert context.receive_memory.used <= context.receive_memory.limit * 3 // 4


async def test_a_stream_that_nobody_reads_can_be_ended_although_memory_is_scarce(make_context):
    release = anyio.Event()

    async def handler(stream):
        await release.wait()

    context = make_context(receive_memory=4 * MIB)
    async with (
        zcserver.serve(handler, port=0, context=context) as server,
        zcserver.connect(port=server.port, context=make_context()) as connection,
    ):
        kept = [context.receive_memory.take(MIB) for _ in range(3)]
        with deadline():
            stream = await connection.open("GET", "/")
            await (await stream.end()).wait()
        release.set()
        del kept


async def test_who_waits_for_memory_that_stays_away_is_told_whatever_else_goes_on(make_context):
    context = make_context(receive_memory=4 * MIB, memory_seconds=0.3)
    failed = anyio.Event()

    async def handler(stream):
        if stream.path == "/":
            async for message in stream:
                await stream.send(bytes(message))
            return
        with pytest.raises(zcserver.PoolTimeoutError, match="drop received messages"):
            await stream.receive()
        failed.set()

    async with (
        zcserver.serve(handler, port=0, context=context) as server,
        zcserver.connect(port=server.port, context=make_context()) as connection,
    ):
        with deadline():
            busy = await connection.open("ECHO", "/")
            await busy.send(b"ping")
            await busy.receive()
            memory = context.receive_memory
            kept = memory.take(memory.limit - memory.used)
            waiting = await connection.open("GET", "/waiting")
            while not failed.is_set():
                await busy.send(b"ping")
                await busy.receive()
            del kept
            waiting.reset()


@pytest.mark.parametrize("used", [3, 4])
async def test_who_has_memory_may_wait_for_the_peer_as_long_as_it_takes(make_context, used):
    context = make_context(receive_memory=4 * MIB, memory_seconds=0.3)
    received = []

    async def handler(stream):
        received.append(bytes(await stream.receive()))

    async with zcserver.serve(handler, port=0, context=context) as server:
        memory = context.receive_memory
        with deadline(), await RawPeer.connect(server.port) as peer:
            kept = [memory.take(MIB) for _ in range(used)]  # more than half of it, or all
            stream = await peer.open()
            await pong(peer)
            if used == 4:
                del kept
            await anyio.sleep(2 * context.memory_seconds)
            await peer.send(stream, b"late")
            await until(lambda: received == [b"late"])


async def test_streams_reset_while_the_socket_is_full_leave_nothing_behind(make_context, caplog):
    large, handled = [], 0

    async def handler(stream):
        nonlocal handled
        handled += 1
        if stream.path == "/large":
            large.append(stream)
            await stream.send(b"x" * 16 * MIB, end=True)

    context = make_context(window=32 * MIB, pool_size=64 * MIB)
    async with zcserver.serve(handler, port=0, context=context) as server:
        with deadline(), await RawPeer.connect(server.port) as peer:
            theirs = await peer.open(path="/large")
            await until(lambda: large and at_rest(large[0]))
            for _ in range(30):
                before = handled
                for _ in range(100):  # in all more than Python may nest calls
                    stream = peer.codec.open("GET", "/", {}, 0)
                    peer.codec.reset(stream, ErrorCode.CANCELLED, "")
                await peer.flush()
                await until(lambda before=before: handled == before + 100)
            await peer.read_until(lambda: theirs.recv_ended)
            assert peer.messages[theirs.id] == [b"x" * 16 * MIB]
            (accepted,) = server.connections
            await until(lambda: not accepted.engine.codec.streams)
    assert all(record.levelno < logging.ERROR for record in caplog.records)


@pytest.mark.parametrize("order", [1, -1])
async def test_a_reset_follows_the_frames_of_its_stream_and_waits_for_no_others(make_context, order):
    class Strict(RawPeer):
        def landed(self, stream, payload):
            assert stream, "DATA of a stream that was reset"
            super().landed(stream, payload)

    async with serving(make_context(window=32 * MIB, pool_size=64 * MIB)) as served:
        ours, peer, theirs = await served.peer(kind=Strict)
        both = [(ours, theirs), *[await served.stream(peer) for _ in range(3)]]
        for _ in range(8):
            for ours, _ in both:
                await ours.send(b"x" * MIB)
        await until(lambda: at_rest(ours))
        for ours, _ in both[::order]:
            ours.reset(ErrorCode.CANCELLED, "")
        engine = ours.connection.engine
        begun = [each._channel for each, _ in both if each._channel.framed_end > engine._lanes.written]
        assert list(engine.codec.streams) == [channel.state.id for channel in begun]
        await peer.read_until(lambda: all(theirs.reset_code is not None for _, theirs in both))
        await pong(peer)
