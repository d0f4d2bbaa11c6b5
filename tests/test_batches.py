"""Several messages in one buffer: they arrive one by one, uncopied, and the memory comes home once."""

import anyio.lowlevel
import numpy as np
import pytest

import zcserver
from tests.raw_peer import MIB, at_rest, joined, serving, until
from zcserver.memory import BufferState
from zcserver_protocol.codec import Limits
from zcserver_protocol.events import Pong
from zcserver_protocol.frames import HEADER_SIZE

pytestmark = pytest.mark.anyio
KIB = 1024


def content(number: int, nbytes: int) -> bytes:
    return (number.to_bytes(4) * (nbytes // 4 + 1))[:nbytes]


async def batch_of(connection, sizes, capacity=None):
    """A batch with a message of each of the sizes, numbered."""
    batch = await connection.acquire_batch(capacity or sum(sizes) + len(sizes) * HEADER_SIZE)
    for number, size in enumerate(sizes):
        batch.add(size)[:] = content(number, size)
    return batch


def contents(sizes):
    return [content(number, size) for number, size in enumerate(sizes)]


SIZES = {
    "equal": [64 * KIB] * 31,
    "unlike": [0, 1, 4096, 100_000, 31, 0, 4064, 3 * KIB * KIB // 2, 17, 0],
    "small": [100] * 9000,
    "one": [700 * KIB],
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
async def test_its_messages_arrive_as_they_were_added(make_context, sizes):
    context = make_context(poison=True)
    async with joined(make_context(), context) as ends:
        ours, theirs = await ends.stream()
        for _ in range(3):
            completion = await ours.send(await batch_of(ours.connection, sizes))
            assert [bytes(await theirs.receive()) for _ in sizes] == contents(sizes)
            await completion.wait()
        statistics = ours.connection.statistics
        assert statistics.messages_sent == statistics.messages_acknowledged == 3 * len(sizes)
    assert context.pool.stats().in_flight == 0


async def test_nothing_of_it_is_copied_however_small_the_messages_are(make_context):
    context = make_context()
    sizes = [1000] * 2000
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        completion = await stream.send(await batch_of(stream.connection, sizes))
        await peer.read_until(lambda: len(peer.messages.get(theirs.id, ())) == len(sizes))
        await completion.wait()
        assert peer.messages[theirs.id] == contents(sizes)
        statistics = stream.connection.statistics
        carried = statistics.reference_bytes, statistics.copied_bytes
        assert carried == ((sum(sizes), 0) if context.by_reference else (0, sum(sizes)))


async def test_it_is_counted_to_the_byte_when_the_socket_takes_it_in_parts(make_context):
    context = make_context(poison=True)
    sizes = [5000] * 400
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        for _ in range(4):  # more than the socket takes
            last = await stream.send(await batch_of(stream.connection, sizes))
        await until(lambda: at_rest(stream))
        assert stream.connection.engine.sender.ahead
        statistics = stream.connection.statistics
        written = stream.connection.engine._lanes.written
        whole, rest = divmod(written, 5000 + HEADER_SIZE)
        payload = whole * 5000 + max(0, rest - HEADER_SIZE)
        assert statistics.reference_bytes + statistics.copied_bytes == payload
        while len(peer.messages.get(theirs.id, ())) < 4 * len(sizes):
            await peer.read()
            peer.read_now(most=1000)
            await peer.answer()
        await last.wait()
        assert peer.messages[theirs.id] == 4 * contents(sizes)
        assert statistics.reference_bytes + statistics.copied_bytes == 4 * sum(sizes)


@pytest.mark.parametrize("window", [16 * KIB, 64 * KIB])
async def test_messages_longer_than_a_frame_are_cut(make_context, window):
    sizes = [100, 70_000, 0, 30_000, 200, 200, 90_000]
    async with joined(make_context(window=window), make_context(window=window)) as ends:
        ours, theirs = await ends.stream()
        completion = await ours.send(await batch_of(ours.connection, sizes))
        assert [bytes(await theirs.receive()) for _ in sizes] == contents(sizes)
        await completion.wait()


@pytest.mark.parametrize(
    ("window", "max_frame", "longest"),
    [(MIB, 16 * KIB, 16 * KIB), (128 * KIB, MIB, 32 * KIB - HEADER_SIZE)],
    ids=["peer", "window"],
)
async def test_no_frame_of_it_is_too_long_for_the_peer_or_the_window(
    make_context, window, max_frame, longest
):
    sizes = [100, 40_000, 100, longest, 0, longest + 1, 100_000, 7]
    async with serving(make_context(window=window)) as served:
        stream, peer, theirs = await served.peer(limits=Limits(max_frame=max_frame))
        completion = await stream.send(await batch_of(stream.connection, sizes))
        await peer.read_until(lambda: len(peer.messages.get(theirs.id, ())) == len(sizes))
        await completion.wait()
        assert peer.messages[theirs.id] == contents(sizes)
        assert max(each[2] for each in peer.log if each[0] == "DATA") == longest


@pytest.mark.parametrize(("size", "count"), [(16 * KIB, 120), (100 * KIB, 20)])
async def test_another_stream_has_its_turns_between_the_messages(make_context, size, count):
    sizes = [size] * count
    async with serving(make_context()) as served:
        batched, peer, one = await served.peer(credit=0)
        single, other = await served.stream(peer, credit=0)
        await batched.send(await batch_of(batched.connection, sizes))
        for size in sizes:
            await single.send(b"x" * size)
        for stream in (one, other):
            peer.codec.credit(stream, 1 << 30)
        await peer.flush()
        await peer.read_until(lambda: len(peer.messages.get(one.id, ())) == len(sizes))
        turns = [each[1] for each in peer.log if each[0] == "DATA"]
        before_its_last = turns[: len(turns) - turns[::-1].index(one.id)]
        assert before_its_last.count(other.id) >= len(sizes) // 5


async def test_little_credit_cuts_a_message_in_two(make_context):
    sizes = [10_000] * 5
    async with serving(make_context()) as served:
        stream, peer, theirs = await served.peer(credit=2 * (10_000 + HEADER_SIZE) + 4000)
        completion = await stream.send(await batch_of(stream.connection, sizes))
        await peer.read_until(
            lambda: len(peer.log) and peer.log[-1] == ("DATA", theirs.id, 4000 - HEADER_SIZE)
        )
        assert peer.messages[theirs.id] == contents(sizes)[:2]
        peer.codec.credit(theirs, 1 << 30)
        await peer.flush()
        await peer.read_until(lambda: len(peer.messages[theirs.id]) == len(sizes))
        await completion.wait()
        assert peer.messages[theirs.id] == contents(sizes)


async def test_control_frames_pass_between_its_messages(make_context):
    context = make_context()
    size = 16 * KIB
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        engine = stream.connection.engine
        for _ in range(4):  # more than the socket takes
            last = await stream.send(await batch_of(stream.connection, [size] * 120))
        await until(lambda: at_rest(stream))
        assert engine.sender.ahead > 4 * size
        said = stream.connection.statistics.control_bytes
        peer.codec.ping(7)
        await peer.flush()
        await until(lambda: engine.codec.control_pending or stream.connection.statistics.control_bytes > said)
        written = engine._lanes.written
        await peer.read_until(lambda: any(isinstance(event, Pong) for event in peer.events))
        frames = peer.log[: peer.log.index("Pong")]
        before = sum(each[2] + HEADER_SIZE for each in frames if each[0] == "DATA")
        assert before < written + size + HEADER_SIZE
        await peer.read_until(lambda: len(peer.messages[theirs.id]) == 4 * 120)
        await last.wait()
        assert peer.messages[theirs.id] == 4 * contents([size] * 120)


async def test_its_last_message_can_be_the_streams_last(make_context):
    async with joined(make_context()) as ends:
        ours, theirs = await ends.stream()
        await ours.send(await batch_of(ours.connection, [10, 20]), end=True)
        assert [bytes(message) async for message in theirs] == contents([10, 20])
        with pytest.raises(zcserver.MisuseError, match="was ended"):
            await ours.send(b"more")


async def test_every_frame_of_it_has_its_checksum(make_context):
    sizes = [0, 5000, 200 * KIB, 1]
    async with serving(make_context(integrity=True)) as served:
        stream, peer, theirs = await served.peer(limits=Limits(features=("crc32c",)))
        await stream.send(await batch_of(stream.connection, sizes))
        await peer.read_until(lambda: len(peer.messages.get(theirs.id, ())) == len(sizes))
        assert peer.messages[theirs.id] == contents(sizes)
    async with joined(make_context(integrity=True), make_context(integrity=True)) as ends:
        ours, theirs = await ends.stream()
        await ours.send(await batch_of(ours.connection, sizes), end=True)
        assert [bytes(message) async for message in theirs] == contents(sizes)


async def test_it_takes_what_fits_and_says_what_can_never_fit(make_context):
    async with joined(make_context()) as ends:
        ours, _ = await ends.stream()
        batch = await ours.connection.acquire_batch(2 * (1000 + HEADER_SIZE))
        with pytest.raises(zcserver.MisuseError, match=r"2033 bytes .* do not fit .* 2064"):
            batch.add(2033)
        with pytest.raises(zcserver.MisuseError, match="no message"):
            await ours.send(batch)
        assert batch.add(1000) is not None
        assert batch.add(1001) is None
        with pytest.raises(zcserver.MisuseError, match="-1 bytes"):
            batch.add(-1)
        assert batch.add(1000) is not None
        assert batch.add(0) is None
        assert len(batch) == 2
        batch.release()
        assert batch.buffer.state == BufferState.RELEASED


async def test_its_views_end_when_it_is_sent(make_context):
    async with joined(make_context()) as ends:
        ours, theirs = await ends.stream()
        batch = await ours.connection.acquire_batch(64 * KIB)
        first, second = batch.add(100), batch.add(100)
        first[:] = second[:] = b"a" * 100
        array = np.frombuffer(second, np.uint8)
        with pytest.raises(zcserver.ViewsAliveError, match="drop them first"):
            await ours.send(batch)
        del array
        batch.buffer.view[batch.start(0)] = ord("b")
        await (await ours.send(batch)).wait()
        for view in (first, second):
            with pytest.raises(ValueError, match="released"):
                view[0] = 1
        for verb in (lambda: batch.add(64 * KIB), batch.release):
            with pytest.raises(zcserver.BufferStateError):
                verb()
        with pytest.raises(zcserver.BufferStateError, match="acquire a new one"):
            await ours.send(batch)
        assert [bytes(await theirs.receive()) for _ in range(2)] == [b"b" + b"a" * 99, b"a" * 100]


async def test_arrays_of_it_may_live_if_the_caller_says_so(make_context):
    async with joined(make_context()) as ends:
        ours, theirs = await ends.stream()
        batch = await ours.connection.acquire_batch(MIB)
        views = [batch.add(8) for _ in range(3)]
        arrays = [np.frombuffer(view, np.uint64) for view in views]
        for number, array in enumerate(arrays):
            array[:] = number
        completion = await ours.send(batch, allow_views=True)
        assert [bytes(await theirs.receive()) for _ in views] == [bytes(array) for array in arrays]
        await completion.wait()


async def test_sizes_may_be_of_numpy(make_context):
    async with joined(make_context()) as ends:
        ours, theirs = await ends.stream()
        batch = await ours.connection.acquire_batch(2 * MIB)
        for size in np.array([60_000] * 30, np.uint16):
            batch.add(size)[:] = b"n" * 60_000
        await ours.send(batch, end=True)
        assert [len(message) async for message in theirs] == [60_000] * 30


async def test_a_released_batch_is_home_though_its_views_are_kept(make_context):
    context = make_context()
    async with joined(make_context(), context) as ends:
        ours, _ = await ends.stream()
        batch = await ours.connection.acquire_batch(MIB)
        view = batch.add(100)
        batch.release()
        assert context.pool.stats().free == context.pool.size
        with pytest.raises(ValueError, match="released"):
            view[0] = 1
        for verb in (lambda: batch.add(MIB), batch.release):
            with pytest.raises(zcserver.BufferStateError):
                verb()


async def test_leaving_its_block_releases_it_unless_it_was_sent(make_context):
    context = make_context()
    async with joined(make_context(), context) as ends:
        ours, theirs = await ends.stream()
        with await ours.connection.acquire_batch(MIB) as batch:
            batch.add(100)
        assert batch.buffer.state == BufferState.RELEASED
        with await ours.connection.acquire_batch(MIB) as batch:
            batch.add(3)[:] = b"abc"
            completion = await ours.send(batch)
        assert bytes(await theirs.receive()) == b"abc"
        await completion.wait()
        assert context.pool.stats().filling == 0


async def test_a_stream_given_up_gives_its_memory_back(make_context):
    context = make_context()
    async with serving(context) as served:
        stream, peer, theirs = await served.peer(credit=100_000)
        begun = await stream.send(await batch_of(stream.connection, [30_000] * 8))
        waiting = await stream.send(await batch_of(stream.connection, [30_000] * 8))
        await until(lambda: at_rest(stream))
        peer.codec.reset(theirs, 8, "enough")
        await peer.flush()
        while not begun.done:
            peer.read_now()
            await peer.answer()
            await anyio.lowlevel.checkpoint()
        for completion in (begun, waiting):
            with pytest.raises(zcserver.StreamResetError, match="enough"):
                await completion.wait()
        stats = context.pool.stats()
        assert stats.in_flight <= 4096  # a page of headers


async def test_a_dead_connection_fails_it_and_leaves_its_pages_to_the_peer(make_context):
    context = make_context(poison=True)
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        sizes = [50 * KIB] * 40
        completion = await stream.send(await batch_of(stream.connection, sizes))
        await until(lambda: at_rest(stream))
        stream.connection.abort()
        with pytest.raises(zcserver.ConnectionLostError):
            await completion.wait()
        stats = context.pool.stats()
        assert stats.in_flight == 0
        assert bool(stats.cut or stats.quarantined) is context.by_reference
        peer.read_now()
        arrived = peer.messages.get(theirs.id, [])
        assert arrived == contents(sizes)[: len(arrived)]
