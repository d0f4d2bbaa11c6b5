"""Nobody reads what was not sent: pages come home after the peer's own word, or after they were cut loose."""

import errno
import hashlib
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest

import zcserver
from tests.namespaces import veth
from tests.raw_peer import LOOPBACK, MIB, RawPeer, at_rest, deadline, in_socket, serving, until
from zcserver.memory import REGION, BufferState
from zcserver.sending.foreign import ForeignMemory, ForeignQuarantine
from zcserver_protocol.frames import ACK, HEADER_SIZE, pack

pytestmark = pytest.mark.anyio
KIB = 1024
DIGEST = 32
NOISE = hashlib.shake_128(b"noise").digest(80 * KIB)


class Clock:
    """Time stands still unless the test moves it."""

    now = 1000.0

    def __call__(self):
        return self.now


class Verifier(RawPeer):
    """Every message begins with the digest of its rest; ``verified`` counts those that are unchanged."""

    verified = 0

    def message(self, stream):
        message = self._partial.pop(stream)
        told, found = bytes(message[:DIGEST]), digest(memoryview(message)[DIGEST:])
        assert told == found, f"message {self.verified} was changed while it was in flight"
        self.verified += 1


def digest(data):
    return hashlib.blake2b(data, digest_size=DIGEST).digest()


def size_of(number):
    return DIGEST + 1 + number * 7919 % (64 * KIB)


def fill(view, number):
    start = number % (8 * KIB)
    view[DIGEST:] = NOISE[start : start + len(view) - DIGEST]
    view[:DIGEST] = digest(view[DIGEST:])


@pytest.fixture(scope="module")
def veth_link():
    with veth() as link:
        yield link


@pytest.fixture(params=["loopback", pytest.param("veth", marks=pytest.mark.root)])
def link(request):
    return LOOPBACK if request.param == "loopback" else request.getfixturevalue("veth_link")


@pytest.fixture
def many(anyio_backend, kernel):
    """10,000 once; the other loops and kernels do the same with fewer."""
    everything = anyio_backend == ("asyncio", {}) and type(kernel).__name__ == "Kernel"
    return 10_000 if everything else 500


async def test_a_peer_that_reads_late_finds_every_digest_right_although_pages_are_poisoned(
    make_context, link, many
):
    context = make_context(pool_size=8 * MIB, poison=True)
    async with serving(context, link) as served:
        stream, peer, _ = await served.peer(kind=Verifier)
        connection = stream.connection
        engine = connection.engine
        with await connection.acquire(MIB):  # who holds a megabyte sends by reference
            for number in range(many):
                while (buffer := take(stream, size_of(number))) is None:
                    await let_it_read(stream, peer)
                fill(buffer.view, number)
                await stream.send(buffer)
            while peer.verified < many:
                await let_it_read(stream, peer)
            await until(lambda: not engine.sender.ledger)
        assert peer.verified == many
        if context.by_reference:
            assert connection.statistics.reference_bytes > connection.statistics.copied_bytes
    stats = context.pool.stats()
    assert (stats.in_flight, stats.filling) == (0, 0)


def take(stream, size):
    """A buffer, unless that or sending it would have to wait."""
    connection = stream.connection
    context = connection.context
    if stream._channel.queued >= MIB:
        return None
    return context.pool.try_acquire(size, connection.principal, connection.name, context.by_reference)


async def let_it_read(stream, peer):
    """The gate: nothing more can be sent. Only now the peer reads what is there, and acknowledges."""
    engine = stream.connection.engine
    await until(lambda: at_rest(stream))
    peer.read_now()
    await peer.answer()
    await until(lambda: engine.codec.peer_acknowledged == peer.codec.acknowledged)


async def send_letters(stream, letters, size=64 * KIB):
    completions = []
    for letter in letters:
        buffer = await stream.connection.acquire(size)
        buffer.view[:] = letter.encode() * size
        completions.append(await stream.send(buffer))
    return completions


def overwrite(context):
    """Everything the pool can give to somebody else is full of somebody else's bytes."""
    somebody = context.trusted
    taken = []
    for size in (MIB, 64 * KIB, 4 * KIB):
        while (buffer := context.pool.try_acquire(size, somebody, "somebody else")) is not None:
            buffer.view[:] = b"Z" * size
            taken.append(buffer)
    assert taken
    for buffer in taken:
        buffer.release()


async def test_a_message_is_complete_only_with_its_last_byte(make_context):
    context = make_context()
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        engine = stream.connection.engine
        with await stream.connection.acquire(MIB):
            buffer = await stream.connection.acquire(64 * KIB)
            buffer.view[:] = b"A" * 64 * KIB
            completion = await stream.send(buffer)
            await peer.read_until(lambda: theirs.id in peer.messages, acknowledge=False)
            total = HEADER_SIZE + 64 * KIB
            await peer.write(pack(ACK, offset=total - 1))
            await until(lambda: engine.codec.peer_acknowledged == total - 1)
            assert not completion.done, "the last byte was not acknowledged"
            assert buffer.state == (BufferState.SENT if context.by_reference else BufferState.HOME)
            await peer.write(pack(ACK, offset=total))
            await completion.wait()
            assert buffer.state == BufferState.HOME


@pytest.mark.parametrize("lie", ["beyond", "backwards"])
async def test_an_impossible_acknowledgement_ends_the_connection_and_frees_nothing(make_context, lie):
    context = make_context(pool_size=8 * MIB, poison=True)
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        connection = stream.connection
        engine = connection.engine
        with await connection.acquire(MIB):
            completions = await send_letters(stream, "ABCDEFGHIJKL")
            await until(lambda: at_rest(stream))
            peer.read_now(most=HEADER_SIZE + 64 * KIB + 1000)
            await peer.answer()
            await completions[0].wait()
            home = context.pool.stats().recycled
            told = peer.codec.acknowledged
            await peer.write(pack(ACK, offset=told - 1 if lie == "backwards" else 1 << 30))
            await until(lambda: connection.engine.error)
            assert context.pool.stats().recycled == home, "the impossible acknowledgement freed something"
            peer.sock.shutdown(1)
            await connection.wait_closed()
        assert isinstance(engine.error, zcserver.ConnectionLostError)
        assert "acknowledged" in str(engine.error)
        assert [completion.error for completion in completions[1:]] == [engine.error] * 11
        with pytest.raises(zcserver.ConnectionLostError):
            await stream.send(b"more")
        overwrite(context)
        while not peer.fin:
            try:
                await peer.read()
            except ConnectionResetError:
                break
        received = [*peer.messages[theirs.id], peer.partial(theirs.id)]
        for message, letter in zip(received, "ABCDEFGHIJKL", strict=False):
            assert message == letter.encode() * len(message), "the dead peer reads what came after"


async def test_what_a_dead_connection_left_in_the_socket_stays_as_it_was(make_context):
    context = make_context(pool_size=8 * MIB, poison=True)
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        with await stream.connection.acquire(MIB):
            completions = await send_letters(stream, "ABCDEFGH")
            await until(lambda: at_rest(stream))
            stream.connection.abort()
        assert all(isinstance(each.error, zcserver.ConnectionLostError) for each in completions)
        assert context.pool.stats().in_flight == 0
        if context.by_reference:
            assert context.pool.stats().quarantined
        overwrite(context)
        while not peer.fin:
            await peer.read()
        received = [*peer.messages.get(theirs.id, ()), peer.partial(theirs.id)]
        assert sum(map(len, received)) > 0
        for message, letter in zip(received, "ABCDEFGH", strict=False):
            assert message == letter.encode() * len(message)


@pytest.mark.interpreted
@pytest.mark.parametrize("trusted", [True, False])
async def test_an_interrupt_right_behind_a_splice_frees_nothing_that_was_spliced(
    make_context, monkeypatch, trusted
):
    context = make_context()
    if not context.by_reference:
        pytest.skip("nothing goes by reference")
    async with serving(context, trust_peer=trusted) as served:
        stream, peer, theirs = await served.peer()
        engine = stream.connection.engine
        await peer.read_until(lambda: peer.codec.sendable(theirs) > 0)
        nbytes = 900_000  # less than is written at once
        with await stream.connection.acquire(MIB):  # or a stranger's would be copied
            memory = bytearray(nbytes) if trusted else await stream.connection.acquire(nbytes)
        await stream.send(memory)

        def interrupted(nbytes):
            raise KeyboardInterrupt

        monkeypatch.setattr(engine._lanes, "_codec", SimpleNamespace(data_written=interrupted))
        with pytest.raises(KeyboardInterrupt):
            engine.flush()
        kept = context.foreign.quarantined if trusted else context.pool.stats().quarantined
        assert kept >= nbytes


async def test_what_an_error_cut_short_may_be_in_the_socket(make_context, kernel):
    class Breaking(type(kernel)):
        broken = False

        def splice(self, *args):
            count = super().splice(*args)
            if self.broken:
                raise OSError(errno.EIO, "as injected")
            return count

    breaking = Breaking()
    context = make_context(kernel=breaking)
    if not context.by_reference:
        pytest.skip("nothing goes by reference here")
    async with serving(context) as served:
        stream, _, _ = await served.peer()
        buffer = await stream.connection.acquire(REGION)
        breaking.broken = True
        completion = await stream.send(buffer)
        with pytest.raises(zcserver.ConnectionLostError):
            await completion.wait()
        assert context.pool.stats().pinned == 2 * REGION  # and the one with the page of headers


async def test_a_blocked_connection_leaves_nothing_in_the_shared_pipe(make_context):
    context = make_context()
    async with serving(context) as served:
        slow, slow_peer, slow_theirs = await served.peer()
        with await slow.connection.acquire(MIB):
            letters = "ABCDEFG"
            await send_letters(slow, letters, MIB)
            await until(lambda: at_rest(slow))
            assert slow.connection.engine._writer_armed
            quick, quick_peer, quick_theirs = await served.peer()
            with await quick.connection.acquire(MIB):
                await send_letters(quick, "Q")
                await quick_peer.read_until(lambda: quick_theirs.id in quick_peer.messages)
        assert quick_peer.messages[quick_theirs.id] == [b"Q" * 64 * KIB]
        await slow_peer.read_until(lambda: len(slow_peer.messages.get(slow_theirs.id, ())) == len(letters))
        assert slow_peer.messages[slow_theirs.id] == [letter.encode() * MIB for letter in letters]


async def test_a_buffer_of_another_principal_goes_by_the_copy_lane(make_context):
    context = make_context()
    async with serving(context) as served:
        mine, _, _ = await served.peer()
        other, peer, theirs = await served.peer()
        buffer = await mine.connection.acquire(MIB)
        buffer.view[:] = b"A" * MIB
        completion = await other.send(buffer)
        await peer.read_until(lambda: theirs.id in peer.messages)
        await completion.wait()
        assert peer.messages[theirs.id] == [b"A" * MIB]
        assert other.connection.statistics.copied_bytes == MIB
        assert other.connection.statistics.reference_bytes == 0
        assert buffer.state == BufferState.HOME


@pytest.mark.parametrize("trusted", [False, True])
async def test_foreign_memory_goes_by_reference_only_to_trusted_peers(make_context, trusted):
    context = make_context()
    memory = bytearray(b"A" * 64 * KIB)
    async with serving(context, trust_peer=trusted) as served:
        stream, peer, theirs = await served.peer()
        completion = await stream.send(memory)
        await until(lambda: in_socket(stream))
        by_reference = trusted and context.by_reference
        statistics = stream.connection.statistics
        assert statistics.reference_bytes == (len(memory) if by_reference else 0)
        assert statistics.copied_bytes == (0 if by_reference else len(memory))
        if by_reference:
            with pytest.raises(BufferError):  # the export is held: it can neither move nor go away
                memory.append(0)
            memory[:] = b"B" * len(memory)
        await peer.read_until(lambda: theirs.id in peer.messages)
        await completion.wait()
        assert peer.messages[theirs.id] == [bytes(memory)]
        assert context.foreign.in_flight == 0
        memory.append(0)


@pytest.mark.parametrize("trusted", [False, True])
async def test_what_was_begun_of_a_message_is_read_before_it_fails(make_context, trusted):
    memory = bytearray(b"A" * 8 * MIB)

    def reuse(_):
        memory[:] = b"B" * len(memory)

    async with serving(make_context(), trust_peer=trusted) as served:
        stream, peer, theirs = await served.peer()
        completion = await stream.send(memory)
        await until(lambda: at_rest(stream))
        assert stream.connection.engine._lanes.train, "the socket was meant to be full"
        stream.reset(reason="enough")
        completion.add_done_callback(reuse)
        assert isinstance(completion.error, zcserver.StreamResetError)
        await peer.read_until(lambda: theirs.reset_reason == "enough")
        with pytest.raises(zcserver.StreamResetError, match="enough"):
            await completion.wait()
        received = peer.partial(theirs.id)
        assert received == b"A" * len(received)
        memory.append(0)


@pytest.mark.parametrize("trusted", [False, True])
async def test_a_message_given_up_fails_at_once_if_what_was_begun_is_copied(make_context, trusted):
    context = make_context()
    async with serving(context, trust_peer=trusted) as served:
        stream, peer, theirs = await served.peer(credit=100 * KIB)
        completion = await stream.send(bytes(300 * KIB))
        await until(lambda: at_rest(stream))
        stream.reset(reason="enough")
        assert completion.done is not (trusted and context.by_reference)
        await peer.read_until(lambda: theirs.reset_reason == "enough")
        with pytest.raises(zcserver.StreamResetError, match="enough"):
            await completion.wait()


@pytest.mark.parametrize("trusted", [False, True])
async def test_a_message_given_up_fails_with_its_connection(make_context, trusted):
    async with serving(make_context(), trust_peer=trusted) as served:
        stream, _, _ = await served.peer()
        completion = await stream.send(bytes(8 * MIB))
        await until(lambda: at_rest(stream))
        stream.reset()
        assert not completion.done
        stream.connection.abort()
        with pytest.raises(zcserver.ConnectionLostError):
            await completion.wait()


async def test_foreign_memory_of_a_dead_connection_is_held_and_counted_for_a_while(make_context):
    clock = Clock()
    context = make_context(clock=clock, quarantine_seconds=30)
    memory = bytearray(b"A" * 64 * KIB)
    async with serving(context, trust_peer=True) as served:
        stream, _, _ = await served.peer()
        completion = await stream.send(memory)
        await until(lambda: in_socket(stream))
        stream.connection.abort()
        with pytest.raises(zcserver.ConnectionLostError) as caught:
            await completion.wait()
        if not context.by_reference:
            return
        assert "may still read" in str(caught.value)
        assert (context.foreign.in_flight, context.foreign.quarantined) == (0, len(memory))
        assert context.pool.stats().pinned, "the dead peer may still read the page of its headers"
        with pytest.raises(BufferError):
            memory.append(0)
        clock.now += 31
        context.foreign.sweep()
        assert context.foreign.quarantined == 0
        memory.append(0)


async def test_foreign_memory_is_let_go_in_time_though_nothing_happens(make_context, monkeypatch):
    timers = []

    class Timer:
        def __init__(self, seconds, function):
            self.seconds, self.function, self.daemon = seconds, function, False

        def start(self):
            assert self.daemon, "the process could not end before"
            timers.append(self)

    monkeypatch.setattr("threading.Timer", Timer)
    clock = Clock()
    context = make_context(clock=clock, quarantine_seconds=30)
    first, second = bytearray(b"A" * 64 * KIB), bytearray(b"B" * 64 * KIB)
    for memory in (first, second):
        async with serving(context, trust_peer=True) as served:
            stream, _, _ = await served.peer()
            await stream.send(memory)
            await until(lambda stream=stream: in_socket(stream))
            stream.connection.abort()
        clock.now += 10
    context.close()  # which changes nothing
    if not context.by_reference:
        assert not timers
        return
    assert [timer.seconds for timer in timers] == [30]  # one for all
    clock.now += 10
    timers[0].function()
    first.append(0)
    with pytest.raises(BufferError):
        second.append(0)
    assert [timer.seconds for timer in timers] == [30, 10]
    clock.now += 10
    timers[1].function()
    second.append(0)
    assert len(timers) == 2
    assert context.foreign.quarantined == 0


def test_foreign_memory_in_flight_and_that_of_the_dead_share_one_limit():
    clock = Clock()
    quarantine = ForeignQuarantine(MIB, 30, clock)
    memory = ForeignMemory(memoryview(bytearray(600 * KIB)), quarantine)
    room = MIB - 600 * KIB
    assert (quarantine.admits(room), quarantine.admits(room + 1)) == (True, False)
    memory.abandon()
    assert (quarantine.admits(room), quarantine.admits(room + 1)) == (True, False)
    clock.now += 30
    assert quarantine.admits(MIB)


def test_foreign_memory_is_let_go_by_a_thread():
    gone = threading.Event()

    class Memory(bytearray):
        def __del__(self):
            gone.set()

    quarantine = ForeignQuarantine(MIB, 0.01, time.monotonic)
    ForeignMemory(memoryview(Memory(b"A" * KIB)), quarantine).abandon()
    assert gone.wait(10)


def silent_peer(port):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.silent_peer", str(port)],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


async def test_ten_peers_killed_in_mid_stream_leave_nothing_pinned_after_their_quarantine(make_context):
    clock = Clock()
    context = make_context(pool_size=128 * MIB, clock=clock, quarantine_seconds=30)
    async with serving(context) as served:
        processes = [silent_peer(served.server.port) for _ in range(10)]
        try:
            await until(lambda: len(served.streams) == len(processes))
            connections = [stream.connection for stream in served.streams]
            completions = []
            for stream in served.streams:
                with await stream.connection.acquire(MIB):
                    completions += await send_letters(stream, "ABCDEFGH" * 12)  # more than sockets take
            for process in processes:
                assert process.stdout is not None
                await anyio.wait_readable(process.stdout)
            await until(lambda: all(map(at_rest, served.streams)))
            if context.by_reference:
                assert context.pool.stats().in_flight > 0
        finally:
            for process in processes:
                process.kill()
                process.communicate()
        for connection in connections:
            await connection.wait_closed()
        assert all(isinstance(completion.error, zcserver.ConnectionLostError) for completion in completions)
        stats = context.pool.stats()
        assert (stats.in_flight, stats.filling, stats.waiters) == (0, 0, 0)
        assert bool(stats.quarantined) is context.by_reference
        assert stats.free + stats.quarantined == stats.size
        clock.now += 31
        stats = context.pool.stats()
        assert (stats.quarantined, stats.pinned, stats.free) == (0, 0, stats.size)
        assert set(stats.regions_by_principal) <= {"common"}
        assert not served.server.connections


async def test_the_clock_of_a_quarantine_is_the_contexts(make_context):
    """Otherwise the two tests above would not show what they say."""
    clock = Clock()
    with deadline():
        assert make_context(clock=clock).pool._clock is clock
