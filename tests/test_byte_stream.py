"""anyio byte streams on all three loops, and trio's own checks of a stream."""

import contextlib
import socket
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import anyio.abc
import pytest
import trio
import trio.testing
from anyio.abc import SocketAttribute

import zcserver
from tests.raw_peer import MIB, deadline, until

pytestmark = pytest.mark.anyio
KIB = 1024


class Maker:
    """Makes connected byte streams, one at each end of a connection of its own."""

    def __init__(self, listener, tasks, stack, make_context):
        self.listener = listener
        self.accepted = []
        self.stack = stack
        self.make_context = make_context
        tasks.start_soon(self.accept_all)

    async def accept_all(self):
        async def keep(stream):
            self.accepted.append(stream)
            await anyio.sleep_forever()

        with contextlib.suppress(anyio.ClosedResourceError):
            await self.listener.serve(keep)

    async def pair(self):
        known = len(self.accepted)
        client = await self.stack.enter_async_context(
            zcserver.connect_byte_stream(port=self.listener.port, context=self.make_context())
        )
        await until(lambda: len(self.accepted) > known)
        return client, self.accepted[known]


@asynccontextmanager
async def making(make_context, **settings):
    context = make_context(**settings)
    with deadline():
        async with anyio.create_task_group() as tasks:
            async with AsyncExitStack() as stack:
                listener = await zcserver.listen_byte_streams(port=0, context=context)
                maker = Maker(listener, tasks, stack, lambda: make_context(**settings))
                yield maker
                for stream in maker.accepted:
                    await anyio.aclose_forcefully(stream)
            tasks.cancel_scope.cancel()
            await listener.aclose()


async def test_bytes_arrive_in_both_directions_and_end(make_context):
    async with making(make_context) as maker:
        left, right = await maker.pair()
        data = bytes(range(256)) * 20 * KIB

        async def feed(stream):
            for start in range(0, len(data), 100_000):
                await stream.send(data[start : start + 100_000])
            await stream.send_eof()
            await stream.send_eof()
            with pytest.raises(anyio.ClosedResourceError):
                await stream.send(b"more")

        async with anyio.create_task_group() as tasks:
            for stream in (left, right):
                tasks.start_soon(feed, stream)
            for stream in (left, right):
                assert b"".join([piece async for piece in stream]) == data


async def test_send_copies_so_that_the_memory_may_be_reused_at_once(make_context):
    async with making(make_context, stream_window=64 * KIB) as maker:
        left, right = await maker.pair()
        memory = bytearray(b"a" * MIB)
        await left.send(memory)
        memory[:] = b"b" * MIB
        received = b""
        while len(received) < MIB:
            received += await right.receive()
        assert received == b"a" * MIB


async def test_the_stream_below_sends_without_copying(make_context):
    async with making(make_context) as maker:
        left, right = await maker.pair()
        buffer = await left.stream.connection.acquire(2 * MIB)
        buffer.view[:] = b"z" * 2 * MIB
        completion = await left.stream.send(buffer)
        received = b""
        while len(received) < 2 * MIB:
            received += await right.receive(MIB)
        await completion.wait()
        assert received == b"z" * 2 * MIB


async def test_a_chunk_larger_than_asked_for_is_kept(make_context):
    async with making(make_context) as maker:
        left, right = await maker.pair()
        await left.send(b"abcdef")
        assert [await right.receive(4), await right.receive(1), await right.receive()] == [
            b"abcd",
            b"e",
            b"f",
        ]
        for wrong, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError)):
            with pytest.raises(error):
                await right.receive(wrong)


async def test_closing_delivers_what_was_sent_and_is_the_end_for_the_peer(make_context):
    async with making(make_context) as maker:
        left, right = await maker.pair()
        await left.send(b"x" * 3 * MIB)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(left.aclose)
            assert sum([len(piece) async for piece in right]) == 3 * MIB
        with pytest.raises(anyio.ClosedResourceError):
            await left.receive()
        with pytest.raises(anyio.EndOfStream):
            await right.receive()
        await until(lambda: right.stream._channel.error is not None)
        with pytest.raises(anyio.BrokenResourceError) as broken:
            await right.send(b"nobody reads this")
        assert isinstance(broken.value.__cause__, zcserver.TransferError)


async def test_closing_that_cannot_deliver_says_so(make_context):
    async with making(make_context, stream_window=64 * KIB, close_seconds=0.05) as maker:
        left, _ = await maker.pair()
        await left.send(b"x" * MIB)
        with pytest.raises(anyio.BrokenResourceError):
            await left.aclose()


async def test_typed_attributes_tell_the_addresses(make_context):
    async with making(make_context) as maker:
        left, right = await maker.pair()
        assert left.extra(SocketAttribute.remote_address) == right.extra(SocketAttribute.local_address)
        assert left.extra(SocketAttribute.local_port) == right.extra(SocketAttribute.remote_port)
        assert left.extra(SocketAttribute.family) == socket.AF_INET
        assert left.extra(SocketAttribute.raw_socket).type == socket.SOCK_STREAM
        assert maker.listener.extra(SocketAttribute.local_port) == maker.listener.port
        assert isinstance(left, anyio.abc.ByteStream)


async def test_a_listener_starts_handlers_in_the_callers_task_group(make_context):
    async def echo(stream):
        async with stream:
            async for piece in stream:
                await stream.send(piece)

    with deadline():
        async with anyio.create_task_group() as tasks, anyio.create_task_group() as handlers:
            listener = await zcserver.listen_byte_streams(port=0, context=make_context())
            assert isinstance(listener, anyio.abc.Listener)
            tasks.start_soon(listener.serve, echo, handlers)
            async with zcserver.connect_byte_stream(port=listener.port, context=make_context()) as stream:
                await stream.send(b"echo")
                assert await stream.receive() == b"echo"
            tasks.cancel_scope.cancel()
        await listener.aclose()


async def test_a_peer_that_vanishes_is_no_failure_of_the_handler(make_context, caplog):
    context = make_context()
    returned = anyio.Event()

    async def handler(stream):
        await stream.send(bytes(MIB))
        await stream.stream.connection.wait_closed()
        returned.set()

    with deadline():
        listener = await zcserver.listen_byte_streams(port=0, context=context)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, handler)
            async with zcserver.connect_byte_stream(port=listener.port, context=make_context()) as client:
                await client.receive()
                client.stream.connection.abort()
            await returned.wait()
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        await listener.aclose()
    assert not caplog.records


async def test_serving_ends_when_the_listener_is_closed(make_context, tmp_path):
    with deadline():
        listener = await zcserver.listen_byte_streams(path=str(tmp_path / "s"), context=make_context())
        async with anyio.create_task_group() as tasks:

            async def serving():
                with pytest.raises(anyio.ClosedResourceError):
                    await listener.serve(lambda stream: None)

            tasks.start_soon(serving)
            await anyio.lowlevel.checkpoint()
            await listener.aclose()


async def test_where_no_byte_streams_are_carried_connecting_says_so(make_context):
    async def handler(stream):
        stream.reset(zcserver.ErrorCode.NOT_FOUND, "no such method")

    context = make_context()
    with deadline():
        async with zcserver.serve(handler, port=0, context=context) as server:
            with pytest.raises(zcserver.HandshakeError, match=r"takes no byte stream.*no such method"):
                async with zcserver.connect_byte_stream(port=server.port, context=context):
                    pass


async def test_a_listener_of_byte_streams_refuses_other_streams(make_context):
    async with (
        making(make_context) as maker,
        zcserver.connect(port=maker.listener.port, context=make_context()) as connection,
    ):
        with pytest.raises(zcserver.StreamResetError, match="takes byte streams"):
            await (await connection.open("GET", "/")).response()


# -- trio's checks -----------------------------------------------------------------------------------------


def makers(maker):
    from tests.transport.trio_adapter import TrioStream

    async def plain():
        return tuple(map(TrioStream, await maker.pair()))

    async def clogged():
        left, right = await plain()
        for stream in (left, right):
            inner = stream.stream.stream
            while inner._channel.queued < inner._high_water:
                await stream.send_all(b"x" * 16 * KIB)
                await trio.testing.wait_all_tasks_blocked()  # what there is credit for leaves the queue
        return left, right

    return plain, clogged


@pytest.mark.parametrize("anyio_backend", [pytest.param(("trio", {}), id="trio")])
@pytest.mark.parametrize("check", ["check_two_way_stream", "check_half_closeable_stream"])
async def test_trios_own_checks(make_context, check):
    async with making(make_context, window=1 * MIB, stream_window=64 * KIB) as maker:
        await getattr(trio.testing, check)(*makers(maker))
