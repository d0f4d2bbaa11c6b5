"""The ways in which a protocol with acknowledgements and credit hangs, and the rules that forbid each.

Every test here hangs, and is cut by the deadline, when its rule is removed: ``mutants.py`` removes them.
"""

import socket

import anyio
import pytest

import zcserver
from tests.raw_peer import MIB, at_rest, deadline, joined, serving, until
from zcserver_protocol.frames import END_MESSAGE, HEADER_SIZE

pytestmark = pytest.mark.anyio
KIB = 1024


def narrow(*connections):
    """Sockets that take little, so that writing blocks early."""
    for connection in connections:
        sock = connection.engine._sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * KIB)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * KIB)


# -- 1. Both pools are full, and acknowledgements sit behind unread data -----------------------------------


async def test_an_end_that_cannot_write_goes_on_reading(make_context):
    async with joined(make_context()) as ends:
        narrow(ends.client, ends.server)
        streams = [stream for _ in range(16) for stream in await ends.stream()]
        completions = [await stream.send(b"x" * 64 * KIB) for stream in streams for _ in range(3)]
        for completion in completions:  # 3 MiB each way, and no application has received anything yet
            await completion.wait()
        for stream in streams:
            assert [len(await stream.receive()) for _ in range(3)] == [64 * KIB] * 3


async def test_a_full_send_pool_never_stops_receiving(make_context):
    full = make_context(pool_size=4 * MIB)
    held = []
    while (buffer := full.pool.try_acquire(64 * KIB, full.trusted, "the application")) is not None:
        held.append(buffer)
    async with joined(make_context(), full) as ends:
        ours, theirs = await ends.stream()
        content = bytes(range(256)) * 4096
        completion = await theirs.send(content)
        assert bytes(await ours.receive()) == content
        await completion.wait()
    for buffer in held:
        buffer.release()


async def test_received_messages_that_are_kept_never_stop_sending(make_context):
    context = make_context(receive_memory=4 * MIB, stream_window=MIB, memory_seconds=0.05)
    async with joined(make_context(), context) as ends:
        ours, theirs = await ends.stream()
        kept = []

        async def keep():
            while True:
                await theirs.send(b"x" * 256 * KIB)
                kept.append(await ours.receive())  # noqa: F821

        with pytest.raises(zcserver.PoolTimeoutError, match="drop received messages") as caught:
            await keep()
        completion = await ours.send(b"y" * 64 * KIB)
        await completion.wait()
        del kept, caught
        await theirs.send(b"the end")
        while len(message := await ours.receive()) == 256 * KIB:
            del message
        assert bytes(message) == b"the end"


# -- 2. A handler on stream A waits for credit on stream B --------------------------------------------------


async def test_an_acknowledgement_does_not_wait_for_the_application(make_context):
    async with joined(make_context()) as ends:
        a, theirs_a = await ends.stream()
        b, theirs_b = await ends.stream()
        completion = await a.send(b"a" * 128 * KIB)
        await completion.wait()  # nobody has taken it
        await b.send(b"b")
        assert bytes(await theirs_b.receive()) == b"b"
        assert bytes(await theirs_a.receive()) == b"a" * 128 * KIB


async def test_credit_overtakes_queued_data(make_context):
    async with joined(make_context()) as ends:
        a, theirs_a = await ends.stream()
        b, theirs_b = await ends.stream()
        for _ in range(8):
            await theirs_a.send(b"a" * 512 * KIB)  # most of it has no credit: nobody receives from a
        await b.send(b"b" * MIB)
        assert len(await theirs_b.receive()) == MIB
        for _ in range(8):
            assert len(await a.receive()) == 512 * KIB


async def test_a_stream_that_nobody_receives_from_does_not_stop_the_others(make_context):
    async with joined(make_context()) as ends:
        a, _ = await ends.stream()
        b, theirs_b = await ends.stream()
        blocked = [await a.send(b"a" * MIB) for _ in range(4)]
        for _ in range(20):
            completion = await b.send(b"b" * MIB)
            assert len(await theirs_b.receive()) == MIB
            await completion.wait()
        assert not any(completion.done for completion in blocked)


# -- 3. Acknowledgements wait behind a huge or half-sent frame ----------------------------------------------


async def test_acknowledgements_pass_between_the_frames_of_a_long_message(make_context):
    async with joined(make_context(window=MIB), make_context(window=MIB)) as ends:
        ours, theirs = await ends.stream()
        sent = await ours.send(b"o" * 8 * MIB), await theirs.send(b"t" * 8 * MIB)
        assert len(await ours.receive()) == len(await theirs.receive()) == 8 * MIB
        for completion in sent:
            await completion.wait()


async def test_no_frame_exceeds_a_quarter_of_the_window(make_context):
    context = make_context(window=MIB)
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        await stream.send(b"x" * 5 * MIB)
        await peer.read_until(lambda: theirs.id in peer.messages)
        frames = [length for event, _, length in (each for each in peer.log if each[0] == "DATA")]
        assert sum(frames) == 5 * MIB
        assert max(frames) + HEADER_SIZE <= MIB // 4


async def test_acknowledgements_do_not_pile_up_while_nothing_can_be_written(make_context):
    context = make_context()
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        await stream.send(b"x" * 8 * MIB)
        await until(lambda: at_rest(stream))
        assert stream.connection.engine._writer_armed
        peer.read_now(1)  # (the grant of initial credit came before all that)
        while peer.codec.sendable(theirs) < 100:
            peer.read_now(1000)
        before = peer.log.count("Acked")
        for _ in range(500):
            await peer.send(theirs, b"y" * 100)
        await until(lambda: stream._inbox.messages == 500)
        await peer.read_until(lambda: peer.codec.peer_acknowledged == peer.codec.written)
        # (One may have been under way already when the socket turned out to be full.)
        assert peer.log.count("Acked") <= before + 2


# -- 4. A cancellation or RESET in mid-frame breaks framing and counts --------------------------------------


async def test_a_frame_that_was_begun_is_finished_before_its_stream_is_reset(make_context):
    context = make_context()
    async with serving(context) as served:
        doomed, peer, theirs = await served.peer()
        other, others = await served.stream(peer)
        engine = doomed.connection.engine
        with await doomed.connection.acquire(MIB):
            buffer = await doomed.connection.acquire(8 * MIB)
            buffer.view[:] = b"D" * 8 * MIB
            completion = await doomed.send(buffer)
            await until(lambda: at_rest(doomed))
            assert engine._lanes.train[0].sent, "it was meant to be blocked in mid-frame"
            doomed.reset(reason="enough")
            await other.send(b"O" * 64 * KIB)
            await peer.read_until(lambda: others.id in peer.messages)
            with pytest.raises(zcserver.StreamResetError):
                await completion.wait()
            await until(lambda: not engine.sender.ledger and not engine._flush_scheduled)
        assert peer.messages == {others.id: [b"O" * 64 * KIB]}
        assert peer.partial(theirs.id) == b"D" * len(peer.partial(theirs.id))
        assert theirs.reset_reason == "enough"
        assert context.pool.stats().in_flight == 0
        last_frame = max(index for index, each in enumerate(peer.log) if each[:2] == ("DATA", theirs.id))
        assert peer.log.index("Reset") > last_frame


@pytest.mark.parametrize("first", [100, 50 * KIB])
async def test_a_stream_given_up_while_a_frame_arrives_does_not_end_the_connection(make_context, first):
    context = make_context()
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        await peer.read_until(lambda: peer.codec.sendable(theirs) >= 100 * KIB)
        other, others = await served.stream(peer)
        header = bytearray(HEADER_SIZE)
        peer.codec.data_header_into(header, 0, theirs, 100 * KIB, 0, END_MESSAGE, 0)
        engine = stream.connection.engine
        peer.codec.data_written(HEADER_SIZE + 100 * KIB)
        await peer.write(bytes(header) + b"x" * first)
        await until(lambda: engine.codec.payload_left == 100 * KIB - first)
        stream.reset(reason="enough")
        await peer.write(b"x" * (100 * KIB - first))
        await peer.send(others, b"and on it goes")
        assert bytes(await other.receive()) == b"and on it goes"


async def test_late_data_of_a_reset_stream_is_drained_and_acknowledged(make_context):
    context = make_context()
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        await peer.read_until(lambda: peer.codec.sendable(theirs) >= 200 * KIB)
        stream.reset(reason="not wanted")
        await peer.send(theirs, b"late" * 50_000)  # the peer has not read the RESET
        await peer.read_until(lambda: peer.codec.peer_acknowledged == peer.codec.written)
        assert theirs.reset_reason == "not wanted"
        other, others = await served.stream(peer)
        await peer.send(others, b"and on it goes")
        assert bytes(await other.receive()) == b"and on it goes"


async def test_a_cancelled_send_leaves_the_stream_whole(make_context):
    context = make_context(window=MIB)
    async with joined(context) as ends:
        ours, theirs = await ends.stream()
        sent = [await ours.send(bytes([number]) * 500 * KIB) for number in range(3)]
        buffer = await ends.client.acquire(500 * KIB)
        buffer.view[:] = b"C" * 500 * KIB
        with anyio.CancelScope() as scope:
            scope.cancel()
            await ours.send(buffer)
        assert scope.cancelled_caught
        buffer.view[:] = b"D" * 500 * KIB  # it is still ours
        for number in range(3):
            assert bytes(await theirs.receive()) == bytes([number]) * 500 * KIB
        sent.append(await ours.send(buffer))
        assert bytes(await theirs.receive()) == b"D" * 500 * KIB
        for completion in sent:
            await completion.wait()


# -- 5. Handlers hold received or first buffers while they acquire more --------------------------------------


async def test_two_that_need_several_buffers_never_hold_half_of_them_each(make_context):
    context = make_context(pool_size=4 * MIB)

    async def send_three(stream):
        buffers = await stream.connection.acquire_many([MIB] * 3)
        for buffer in buffers:
            buffer.view[:] = b"x" * MIB
        for buffer in buffers:
            await stream.send(buffer)

    async def drain(stream, count):
        for _ in range(count):
            await stream.receive()

    async with joined(context, trust_peer=True) as ends:
        ours, theirs = await ends.stream()
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(send_three, ours)
                tasks.start_soon(send_three, theirs)
            tasks.start_soon(drain, ours, 12)
            tasks.start_soon(drain, theirs, 12)
    assert context.pool.stats().peak <= 4 * MIB


async def test_a_wait_for_memory_ends_with_an_error_that_names_who_holds_it(make_context):
    context = make_context(pool_size=2 * MIB, memory_seconds=0.05)
    async with joined(context) as ends:
        with await ends.client.acquire(2 * MIB), pytest.raises(zcserver.PoolTimeoutError) as caught:
            await ends.server.acquire(4096)
        assert f"Held by {ends.client.name}: 2.0 MiB filling" in str(caught.value)


# -- and the plainest of all -------------------------------------------------------------------------------


async def test_a_full_socket_is_written_on_as_soon_as_it_takes_more(make_context):
    context = make_context()
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        with await stream.connection.acquire(MIB):
            for _ in range(7):
                buffer = await stream.connection.acquire(MIB)
                buffer.view[:] = b"x" * MIB
                await stream.send(buffer)
            await until(lambda: at_rest(stream))
            assert stream.connection.engine._writer_armed
            # No acknowledgement comes in meanwhile: only the socket itself can tell that it takes more.
            await peer.read_until(lambda: len(peer.messages.get(theirs.id, ())) == 7, acknowledge=False)


async def test_the_deadline_cuts_what_hangs():
    with pytest.raises(TimeoutError), anyio.fail_after(0), deadline():
        await anyio.sleep_forever()
