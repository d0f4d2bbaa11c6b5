"""Closing never loses data (rule 11), and never waits for ever."""

import contextlib
import os
import socket
import struct

import anyio
import pytest

import zcserver
from tests.raw_peer import MIB, RawPeer, at_rest, deadline, in_socket, joined, serving, until
from zcserver_protocol.frames import PING, pack

pytestmark = pytest.mark.anyio
KIB = 1024
BULK = 3 * MIB


async def take_leave(peer):
    """Read to the other end's FIN, acknowledging on the way, as a peer does that keeps to the protocol."""
    while not peer.fin:
        await peer.read()
        await peer.answer()


async def test_everything_sent_before_closing_arrives(make_context):
    context = make_context()
    async with serving(context) as served, anyio.create_task_group() as tasks:
        stream, peer, theirs = await served.peer()
        connection = stream.connection
        with await connection.acquire(MIB):
            for letter in b"ABC":
                buffer = await connection.acquire(MIB)
                buffer.view[:] = bytes([letter]) * MIB
                completion = await stream.send(buffer)
        await stream.end()
        tasks.start_soon(connection.aclose)
        stream._channel.handled = False  # its handler has returned
        while len(peer.messages.get(theirs.id, ())) < 3:
            await peer.read()
            # Acknowledgements in small portions: there is always one that the other end has not read yet.
            await peer.answer()
        assert peer.messages[theirs.id] == [bytes([letter]) * MIB for letter in b"ABC"]
        await completion.wait()
        await take_leave(peer)
        assert peer.codec.finished, "the connection ended without leave being taken"
        peer.sock.shutdown(socket.SHUT_WR)
        await connection.wait_closed()
        assert connection.engine.error is None
    assert context.pool.stats().in_flight == 0


async def test_a_stream_given_up_in_mid_frame_is_not_ended_as_well_when_its_connection_is_closed(
    make_context,
):
    async with serving(make_context()) as served, anyio.create_task_group() as tasks:
        stream, peer, theirs = await served.peer()
        stream._channel.handled = False
        stream.connection.engine._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        await stream.send(b"x" * 16 * MIB)
        await until(lambda: at_rest(stream))
        stream.reset(reason="enough")
        tasks.start_soon(stream.connection.aclose)
        await take_leave(peer)
        assert theirs.reset_reason == "enough"
        peer.sock.shutdown(socket.SHUT_WR)
        await stream.connection.wait_closed()
        assert stream.connection.engine.error is None


async def test_three_megabytes_sent_and_closed_at_once_arrive(make_context):
    received = []

    async def handler(stream):
        await stream.send(b"nobody reads this")
        received.extend([bytes(message) async for message in stream])

    server, client = make_context(), make_context()
    with deadline():
        async with zcserver.serve(handler, port=0, context=server) as serving_end:
            async with zcserver.connect(port=serving_end.port, context=client) as connection:
                stream = await connection.open("PUT", "/")
                for letter in b"ABC":
                    buffer = await connection.acquire(MIB)
                    buffer.view[:] = bytes([letter]) * MIB
                    completion = await stream.send(buffer)
            assert completion.done
            assert completion.error is None
    assert received == [bytes([letter]) * MIB for letter in b"ABC"]
    assert (client.pool.stats().in_flight, server.receive_memory.promised) == (0, 0)


async def test_a_server_that_closes_first_delivers_what_its_handlers_sent(make_context):
    async def handler(stream):
        for letter in b"ABC":
            await stream.send(bytes([letter]) * MIB)

    server, client = make_context(), make_context()
    with deadline():
        async with (
            zcserver.serve(handler, port=0, context=server) as serving_end,
            zcserver.connect(port=serving_end.port, context=client) as connection,
        ):
            stream = await connection.open("GET", "/")
            first = bytes(await stream.receive())
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serving_end.aclose)
                rest = [bytes(message) async for message in stream]
            assert [first, *rest] == [bytes([letter]) * MIB for letter in b"ABC"]


async def test_a_stream_cannot_be_opened_while_the_peer_takes_leave(make_context):
    release = anyio.Event()

    async def handler(stream):
        await release.wait()

    with deadline():
        async with (
            zcserver.serve(handler, port=0, context=make_context()) as serving_end,
            zcserver.connect(port=serving_end.port, context=make_context()) as connection,
            anyio.create_task_group() as tasks,
        ):
            stream = await connection.open("GET", "/")
            await stream.send(b"")
            tasks.start_soon(serving_end.aclose)
            await until(lambda: connection.engine.codec.goaway_received)
            with pytest.raises(zcserver.ConnectionLostError, match="new connection"):
                await connection.open("GET", "/")
            release.set()


async def test_both_ends_closing_at_the_same_time_lose_nothing(make_context):
    async with joined(make_context(), make_context()) as ends:
        ours, theirs = await ends.stream()
        theirs._channel.handled = False
        sent = []
        for stream in (ours, theirs):
            sent += [await stream.send(b"x" * 60 * KIB) for _ in range(4)]  # within the initial credit
            await stream.end()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ends.client.aclose)
            tasks.start_soon(ends.server.aclose)
        for completion in sent:
            await completion.wait()
        for stream in (ours, theirs):
            assert [len(await stream.receive()) for _ in range(4)] == [60 * KIB] * 4
        assert ends.client.engine.error is None
        assert ends.server.engine.error is None


async def test_a_peer_that_never_acknowledges_is_dropped_at_the_deadline_with_the_bytes_named(make_context):
    context = make_context()
    async with serving(context) as served:
        stream, _, _ = await served.peer()
        stream._channel.handled = False
        completion = await stream.send(b"x" * 100_000, end=True)
        await until(lambda: at_rest(stream))
        with pytest.raises(zcserver.PeerTimeoutError, match="100032 bytes"):
            await stream.connection.aclose(timeout=0.05)
        assert isinstance(completion.error, zcserver.PeerTimeoutError)
        assert stream.connection.is_closed


async def test_a_peer_that_owes_only_its_farewell_is_told_apart_from_one_that_owes_bytes(make_context):
    context = make_context()
    async with serving(context) as served:
        stream, _, _ = await served.peer()
        with pytest.raises(zcserver.PeerTimeoutError, match="had neither stopped sending nor taken leave by"):
            await stream.connection.aclose(timeout=0.05)


async def test_a_peer_that_stops_acknowledging_in_the_middle_is_given_up(make_context):
    context = make_context(ack_seconds=0.05)
    async with serving(context) as served:
        stream, _, _ = await served.peer()
        completion = await stream.send(b"x" * 100_000)
        with pytest.raises(zcserver.PeerTimeoutError, match="acknowledged nothing more"):
            await completion.wait()


async def test_a_peer_that_says_nothing_at_all_is_given_up(make_context):
    context = make_context(ping_seconds=0.02, silence_seconds=0.08)
    async with serving(context) as served:
        stream, peer, _ = await served.peer()
        await stream.connection.wait_closed()
        assert isinstance(stream.connection.engine.error, zcserver.PeerTimeoutError)
        with pytest.raises(zcserver.PeerTimeoutError, match="not a byte"):
            await stream.send(b"more")
        peer.close()


async def test_a_cancelled_body_drops_the_connection_at_once(make_context):
    async def handler(stream):
        await anyio.sleep_forever()

    context = make_context()
    with deadline():
        async with zcserver.serve(handler, port=0, context=context) as server:
            with anyio.CancelScope() as scope:
                async with zcserver.connect(port=server.port, context=context) as connection:
                    stream = await connection.open("PUT", "/")
                    completion = await stream.send(b"x" * MIB)
                    scope.cancel()
                    await anyio.sleep_forever()
            assert connection.is_closed
            assert completion.done
            with pytest.raises(zcserver.ConnectionLostError):
                await stream.send(b"more")
            await until(lambda: not server.connections)


async def test_an_error_in_the_body_comes_out_as_it_is(make_context):
    async def handler(stream):
        pass

    context = make_context()
    with deadline(), pytest.raises(ZeroDivisionError):
        async with (
            zcserver.serve(handler, port=0, context=context) as server,
            zcserver.connect(port=server.port, context=context),
        ):
            raise ZeroDivisionError


async def test_a_peer_that_closes_in_mid_message_is_an_error_on_this_side(make_context):
    context = make_context()
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        await peer.read_until(lambda: peer.codec.sendable(theirs) > 0)
        header = bytearray(32)
        peer.codec.data_header_into(header, 0, theirs, 1000, 0, 1, 0)
        await peer.write(bytes(header) + b"x" * 500)
        peer.close()
        with pytest.raises(zcserver.ConnectionLostError):
            await stream.receive()
        assert isinstance(peer, RawPeer)


async def test_what_was_received_is_acknowledged_although_the_connection_is_dropped_at_once(make_context):
    async with serving(make_context()) as served:
        stream, peer, theirs = await served.peer()
        await peer.read_until(lambda: peer.codec.sendable(theirs) >= 100)
        await peer.send(theirs, b"the last")
        assert bytes(await stream.receive()) == b"the last"
        stream.connection.abort()
        await peer.read_until(lambda: peer.codec.peer_acknowledged == peer.codec.written, acknowledge=False)


async def test_a_peer_that_only_talks_is_not_heard_out_for_ever(make_context):
    context = make_context()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    class Talking(type(context.kernel)):
        words = 1000

        def recv_into(self, sock, buffer):
            if sock is ours and self.words < 1000:
                with contextlib.suppress(OSError):
                    theirs.send(pack(128))  # of no meaning
                    self.words += 1
            return super().recv_into(sock, buffer)

    context.kernel = kernel = Talking()
    with deadline(), theirs:
        async with anyio.create_task_group() as tasks:
            connection = zcserver.Connection(ours, "server", context, tasks, None, False)
            peer = RawPeer(theirs)
            await peer.shake_hands()
            theirs.shutdown(socket.SHUT_RD)
            kernel.words = 0
            theirs.send(pack(PING))
            await connection.wait_closed()
            tasks.cancel_scope.cancel()
    assert kernel.words < 1000


async def test_what_the_peer_said_before_it_went_is_heard_although_writing_fails(make_context):
    async with serving(make_context()) as served:
        stream, peer, _ = await served.peer()
        completion = await stream.send(b"x" * KIB)
        await until(lambda: in_socket(stream))
        # From here to the failing write the loop does not run: the acknowledgement is not read before.
        peer.read_now()
        peer.codec.acknowledge()
        peer.sock.send(peer.codec.take_control())
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()  # with RST
        lost = await stream.send(b"y" * 2 * MIB)  # so much is written at once
        assert isinstance(lost.error, zcserver.ConnectionLostError)
        with pytest.raises(zcserver.ConnectionLostError):
            stream.connection.engine.check_alive()
        await completion.wait()


async def test_leaving_raises_nothing_when_the_peer_went_after_everything_was_done(make_context):
    async def echo(stream):
        async for message in stream:
            await stream.send(bytes(message))

    context = make_context()
    with deadline():
        async with (
            zcserver.serve(echo, port=0, context=context) as server,
            zcserver.connect(port=server.port, context=context) as connection,
        ):
            done = await connection.open("ECHO", "/")
            await done.send(b"everything", end=True)
            assert [bytes(message) async for message in done] == [b"everything"]
            given_up = await connection.open("ECHO", "/")
            given_up.reset()
            (accepted,) = server.connections
            accepted.abort()
            await connection.wait_closed()
            assert connection.engine.error is not None


@pytest.mark.parametrize("lost", ["bytes", "end"])
async def test_leaving_raises_when_the_peer_went_before_it_had_everything(make_context, lost):
    async def leave(server):
        async with zcserver.connect(port=server.port, context=make_context()) as connection:
            stream = await connection.open("PUT", "/")
            await (await stream.send(b"some")).wait()
            if lost == "bytes":
                await stream.send(b"x" * 2 * MIB, end=True)
            (accepted,) = server.connections
            accepted.abort()
            await connection.wait_closed()

    async with serving(make_context()) as served:
        with pytest.raises(zcserver.ConnectionLostError, match=r"closed the connection before|was lost"):
            await leave(served.server)


def in_a_forked_child(work):
    """The exit code: 0 when ``work`` raised nothing."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:  # noqa: BLE001 – it must not come back into the test runner
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # it may have threads by now
async def test_what_a_forked_child_does_with_its_parents_connection_never_reaches_the_peer(make_context):
    async with joined(make_context()) as ends:
        ours, theirs = await ends.stream()

        def interfere():
            theirs.reset()
            theirs.finish()
            ends.client.abort()
            ends.server.abort()
            with pytest.raises(zcserver.ConnectionLostError, match="open one after the fork"):
                ends.client.engine.check_alive()

        assert in_a_forked_child(interfere) == 0
        await ours.send(b"still here")
        assert bytes(await theirs.receive()) == b"still here"
        await theirs.send(b"and back")
        assert bytes(await ours.receive()) == b"and back"
