"""Short messages that are queued together go out as a run of frames, and are still messages of their own."""

import errno
import socket
from functools import partial

import anyio.lowlevel
import pytest

import zcserver
from tests.raw_peer import MIB, at_rest, joined, serving, until
from zcserver.memory import BufferState, Principal, PrincipalKind
from zcserver_protocol.codec import Limits
from zcserver_protocol.frames import ACK, HEADER_SIZE, pack

pytestmark = pytest.mark.anyio
KIB = 1024
SIZE = 10_000
FRAME = HEADER_SIZE + SIZE


def content(number, nbytes=SIZE):
    return (number.to_bytes(4) * (nbytes // 4 + 1))[:nbytes]


async def send_all(stream, sizes, *, end=False):
    """Queue a pool buffer of each of the sizes, numbered; return the buffers and their completions."""
    connection = stream.connection
    with await connection.acquire(MIB):  # who has so much leases a region: what follows goes by reference
        buffers = [await connection.acquire(size) for size in sizes]
    for number, buffer in enumerate(buffers):
        buffer.view[:] = content(number, len(buffer))
    return buffers, [await stream.send(buffer, end=end and buffer is buffers[-1]) for buffer in buffers]


def frames_queued(stream):
    """How many messages each entry of the ledger is made of."""
    return [len(frame.messages) for frame in stream.connection.engine.sender.ledger]


def _has_heard(stream, acknowledged):
    return stream.connection.engine.codec.peer_acknowledged == acknowledged


async def test_each_comes_home_when_it_was_acknowledged_and_not_with_the_run(make_context):
    async with serving(make_context(poison=True)) as served:
        stream, peer, theirs = await served.peer()
        buffers, completions = await send_all(stream, [SIZE] * 20)
        await peer.read_until(lambda: len(peer.messages.get(theirs.id, ())) == 20, acknowledge=False)
        assert len(frames_queued(stream)) < 20
        statistics = stream.connection.statistics
        for acknowledged in (7 * FRAME - 1, 7 * FRAME, 12 * FRAME + 5):
            await peer.write(pack(ACK, offset=acknowledged))
            await until(partial(_has_heard, stream, acknowledged))
            whole = acknowledged // FRAME
            assert [completion.done for completion in completions] == [True] * whole + [False] * (20 - whole)
            assert statistics.messages_acknowledged == whole
            if stream.connection.context.by_reference:
                home = [buffer.state == BufferState.HOME for buffer in buffers]
                assert home == [True] * whole + [False] * (20 - whole)
        await peer.write(pack(ACK, offset=20 * FRAME))
        await completions[-1].wait()
        assert statistics.messages_sent == statistics.messages_acknowledged == 20
        assert peer.messages[theirs.id] == [content(number) for number in range(20)]


@pytest.mark.parametrize(
    "sizes",
    [[SIZE] * 500, [1, 60_000, 4096, 17, 30_000] * 30, [1] * 1000, [300 * KIB, 5, 5, 300 * KIB] * 5],
    ids=["equal", "unlike", "tiny", "between long ones"],
)
async def test_they_arrive_in_order_whatever_the_socket_takes_at_a_time(make_context, sizes):
    context = make_context(poison=True)
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        _, completions = await send_all(stream, sizes)
        while len(peer.messages.get(theirs.id, ())) < len(sizes):
            await peer.read()
            peer.read_now(most=1000)
            await peer.answer()
        await completions[-1].wait()
        assert peer.messages[theirs.id] == [content(number, size) for number, size in enumerate(sizes)]
        statistics = stream.connection.statistics
        assert statistics.reference_bytes + statistics.copied_bytes == sum(sizes)
        await until(lambda: context.pool.stats().in_flight <= 4096)  # a page of headers


async def test_control_frames_pass_between_them(make_context):
    async with serving(make_context()) as served:
        stream, peer, theirs = await served.peer()
        engine = stream.connection.engine
        engine._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
        await send_all(stream, [SIZE] * 400)
        await until(lambda: at_rest(stream))
        written, state = engine._lanes.written, stream._channel.state
        assert engine._lanes.train[0].nbytes - engine._lanes.train[0].sent > 4 * FRAME
        engine.codec.credit(state, state.recv_credit + 1)
        await peer.read_until(lambda: theirs.send_credit == state.recv_credit)
        before = peer.log[: -peer.log[::-1].index("Credited") - 1]
        assert sum(HEADER_SIZE + each[2] for each in before if each[0] == "DATA") < written + FRAME
        await peer.read_until(lambda: len(peer.messages[theirs.id]) == 400)
        assert peer.messages[theirs.id] == [content(number) for number in range(400)]


async def test_the_streams_last_message_and_other_streams_have_frames_of_their_own(make_context):
    async with serving(make_context()) as served:
        first, peer, one = await served.peer()
        second, other = await served.stream(peer)
        await send_all(first, [SIZE] * 40, end=True)
        await send_all(second, [SIZE] * 40, end=True)
        await peer.read_until(lambda: one.recv_ended and other.recv_ended)
        for stream in (one, other):
            assert peer.messages[stream.id] == [content(number) for number in range(40)]
        turns = [each[1] for each in peer.log if each[0] == "DATA"]
        assert other.id in turns[: turns.index(one.id) + 20], "the other stream waited for all of the first"


async def test_every_one_of_them_has_its_checksum(make_context):
    async with joined(make_context(integrity=True), make_context(integrity=True)) as ends:
        ours, theirs = await ends.stream()
        await send_all(ours, [SIZE] * 40, end=True)
        assert [bytes(message) async for message in theirs] == [content(number) for number in range(40)]
    async with serving(make_context(integrity=True)) as served:
        stream, peer, theirs = await served.peer(limits=Limits(features=("crc32c",)))
        _, completions = await send_all(stream, [SIZE] * 40)
        await peer.read_until(lambda: len(peer.messages.get(theirs.id, ())) == 40)
        await completions[-1].wait()


async def test_what_may_go_by_reference_does_between_what_may_not(make_context):
    context = make_context()
    group = Principal("group", PrincipalKind.TRUSTED)
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        with await stream.connection.acquire(MIB):
            for number in range(60):
                if number % 3 == 0:
                    last = await stream.send(content(number))
                    continue
                if number % 3 == 1:
                    buffer = await stream.connection.acquire(SIZE)
                else:
                    buffer = await context.pool.acquire(SIZE, group, "group")
                buffer.view[:] = content(number)
                if number % 3 == 1:
                    await stream.send(buffer)
                else:
                    buffer.seal()
                    await stream.send_shared(buffer)
                    buffer.home()
        engine = stream.connection.engine
        engine.flush()
        for frame in engine.sender.ledger:
            assert len({message.shared for message in frame.messages}) == 1, "one page of headers for two"
            assert len({message.address == 0 for message in frame.messages}) == 1
            assert frame.slab is None or frame.slab.shared is frame.messages[0].shared
        await peer.read_until(lambda: len(peer.messages.get(theirs.id, ())) == 60)
        await last.wait()
        assert peer.messages[theirs.id] == [content(number) for number in range(60)]


async def test_a_run_ends_where_the_window_does(make_context):
    window = 128 * KIB
    async with serving(make_context(window=window)) as served:
        stream, peer, theirs = await served.peer()
        ledger = stream.connection.engine.sender.ledger
        for _ in range(2):
            for number in range(12):
                last = await stream.send(content(number))
            await until(lambda: at_rest(stream))
            peer.read_now()
        assert window - FRAME < ledger.framed <= window
        await peer.answer()
        await peer.read_until(lambda: len(peer.messages[theirs.id]) == 24)
        await last.wait()


async def test_a_frame_waits_if_only_its_header_does_not_fit_into_the_window(make_context):
    window = 128 * KIB
    sizes = [32 * KIB - HEADER_SIZE] * 3 + [1, 32 * KIB - HEADER_SIZE - 6]
    async with serving(make_context(window=window)) as served:
        stream, peer, theirs = await served.peer()
        for size in sizes:
            last = await stream.send(bytes(size))
        await until(lambda: at_rest(stream))
        assert stream.connection.engine.sender.ledger.framed == 3 * 32 * KIB + HEADER_SIZE + 1
        await peer.read_until(lambda: len(peer.messages.get(theirs.id, ())) == len(sizes))
        await last.wait()


async def test_what_a_dead_peer_may_still_read_of_a_run_is_cut_loose(make_context):
    context = make_context(pool_size=8 * MIB)
    async with serving(context) as served:
        stream, peer, _ = await served.peer()
        buffers, completions = await send_all(stream, [SIZE] * 20)
        await until(lambda: at_rest(stream))
        peer.read_now(most=5 * FRAME + 100)
        await peer.answer()
        await completions[4].wait()
        stream.connection.abort()
        for completion in completions[5:]:
            with pytest.raises(zcserver.ConnectionLostError):
                await completion.wait()
        assert {buffer.state for buffer in buffers} == {BufferState.HOME}
        await stream.connection.wait_closed()
        stats = context.pool.stats()
        assert stats.in_flight == 0
        if context.by_reference:
            assert stats.quarantined, "the dead peer may still read what was sent by reference"


@pytest.mark.parametrize("credit", [0, 1 << 40], ids=["no credit", "full socket"])
async def test_what_cannot_go_out_now_is_only_queued(make_context, monkeypatch, credit):
    async with serving(make_context(window=32 * MIB)) as served:
        stream, peer, theirs = await served.peer(credit=credit)
        sender = stream.connection.engine.sender
        before = 1 if credit == 0 else 12
        await send_all(stream, [MIB] * before)
        await until(lambda: at_rest(stream))
        pump, pumped = sender.pump, []
        monkeypatch.setattr(type(sender), "pump", lambda self: pumped.append(1) or pump())
        _, rest = await send_all(stream, [MIB] * 4)
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        assert not pumped, "the sender was set going for nothing"
        monkeypatch.undo()
        peer.codec.credit(theirs, 1 << 41)
        await peer.flush()
        await peer.read_until(lambda: len(peer.messages.get(theirs.id, ())) == before + 4)
        await rest[-1].wait()


async def test_what_went_by_reference_is_in_flight_although_the_rest_of_its_run_is_copied(
    make_context, monkeypatch
):
    context = make_context()
    if not context.by_reference:
        pytest.skip("nothing goes by reference here")
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        engine = stream.connection.engine
        engine._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
        buffers, completions = await send_all(stream, [SIZE] * 200)
        await until(lambda: at_rest(stream))
        whole, begun = divmod(engine._lanes.written, FRAME)
        assert 0 < whole < 100
        assert begun, "the socket was meant to be full in the middle of a message"

        def take():
            raise OSError(errno.EMFILE, "too many open files")

        monkeypatch.setattr(engine._lanes._pipes, "take", take)
        await peer.read_until(lambda: len(peer.messages.get(theirs.id, ())) == 200, acknowledge=False)
        assert stream.connection.statistics.copied_bytes
        assert {buffer.state for buffer in buffers[: whole + 1]} == {BufferState.SENT}
        await peer.answer()
        await completions[-1].wait()
        assert {buffer.state for buffer in buffers} == {BufferState.HOME}


async def test_a_file_among_short_messages_has_a_frame_of_its_own(make_context, tmp_path):
    (tmp_path / "file").write_bytes(b"f" * 5000)
    async with joined(make_context()) as ends:
        ours, theirs = await ends.stream()
        with (tmp_path / "file").open("rb") as file:
            for _ in range(3):
                await ours.send(b"x" * 100)
                await ours.send_file(file)
        last = await ours.send(b"x" * 100, end=True)
        assert [bytes(message) async for message in theirs] == [b"x" * 100, b"f" * 5000] * 3 + [b"x" * 100]
        await last.wait()


async def test_only_what_was_begun_may_still_be_read_by_a_dead_peer(make_context):
    context = make_context()
    async with serving(context, trust_peer=True) as served:
        stream, _, _ = await served.peer()
        engine = stream.connection.engine
        engine._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
        completions = [await stream.send(bytes(40_000)) for _ in range(20)]
        await until(lambda: at_rest(stream))
        assert max(frames_queued(stream)) > 15
        begun = -(-engine._lanes.written // (40_000 + HEADER_SIZE)) if context.by_reference else 0
        stream.connection.abort()
        errors = [str(completion.error) for completion in completions]
        assert ["may still read" in error for error in errors] == [True] * begun + [False] * (20 - begun)
        assert context.foreign.quarantined == begun * 40_000


async def test_headers_in_flight_are_not_written_over_when_their_page_starts_over(make_context):
    async with serving(make_context()) as served:
        stream, peer, theirs = await served.peer()
        engine = stream.connection.engine
        for count in (60, 40):
            await send_all(stream, [1000] * count)
            engine.flush()
        await peer.read_until(lambda: len(peer.messages.get(theirs.id, ())) == 100, acknowledge=False)
        await peer.write(pack(ACK, offset=60 * 1032))
        await until(partial(_has_heard, stream, 60 * 1032))
        for count in (28, 128):
            await send_all(stream, [1000] * count)
            engine.flush()
        frames = [frame for frame in engine.sender.ledger if frame.slab is not None]
        places = [
            (frame.slab.address, frame.header_start + HEADER_SIZE * index)
            for frame in frames
            for index in range(len(frame.ends))
        ]
        assert len(places) == len(set(places))
        await peer.read_until(lambda: len(peer.messages[theirs.id]) == 256)
        assert peer.messages[theirs.id] == [
            content(number, 1000) for count in (60, 40, 28, 128) for number in range(count)
        ]


async def test_a_reply_goes_out_although_no_data_can(make_context):
    async with serving(make_context()) as served:
        stream, peer, _ = await served.peer(credit=0)
        await until(lambda: at_rest(stream))
        await stream.send(b"x")
        assert stream.connection.engine._flush_scheduled, "it waits for a timer"
        await peer.read_until(lambda: "Replied" in peer.log)


async def test_no_frame_of_a_run_is_too_long_for_the_peer_and_no_run_for_the_window(make_context):
    window = 128 * KIB
    sizes = [1000, 20_000, 1000, 16 * KIB, 16 * KIB + 1, 1000] * 2
    async with serving(make_context(window=window)) as served:
        stream, peer, theirs = await served.peer(limits=Limits(max_frame=16 * KIB))
        ledger = stream.connection.engine.sender.ledger
        for _ in range(2):
            for number, size in enumerate(sizes):
                last = await stream.send(content(number, size))
            await until(lambda: at_rest(stream))
            peer.read_now()
        assert window - 17 * KIB < ledger.framed <= window
        await peer.answer()
        await peer.read_until(lambda: len(peer.messages[theirs.id]) == 2 * len(sizes))
        await last.wait()
        assert peer.messages[theirs.id] == 2 * [content(number, size) for number, size in enumerate(sizes)]
        assert max(each[2] for each in peer.log if each[0] == "DATA") == 16 * KIB
        assert stream._channel.queued == 0
