"""Each cell of the ownership table in docs/embedding.md."""

import array
import asyncio
import mmap
import socket
import tempfile

import numpy
import pytest

import zcserver
from tests.raw_peer import RawPeer, deadline, dial
from tests.transport.recorders import KIB, MIB, Recorder, paired, until
from zcserver.sending.message import Outgoing
from zcserver.transport.link import BYTE_STREAM

pytestmark = pytest.mark.asyncio


def stats(transport):
    return transport.get_extra_info("stats")


def by_reference(transport) -> bool:
    return transport.get_extra_info("lane") == "vmsplice"


class Gate:
    """A transport whose peer reads only when the test says so: what is in the socket stays there."""

    def __init__(self, make_context, **settings):
        self.context = make_context()
        self.settings = settings

    async def __aenter__(self):
        accepted = []

        def factory():
            accepted.append(Recorder(keep_open=True))
            return accepted[-1]

        self.listening = await zcserver.create_server(
            factory, "127.0.0.1", 0, context=self.context, **self.settings
        )
        self.peer = RawPeer(dial(self.listening.sockets[0].getsockname()[1]))
        with deadline():
            await self.peer.shake_hands()
            self.stream = self.peer.codec.open(BYTE_STREAM, "/", {}, 1 << 40)
            await self.peer.flush()
            await until(lambda: accepted and accepted[0].transport is not None)
        self.protocol = accepted[0]
        self.transport = self.protocol.transport
        return self

    async def arrived(self, nbytes):
        """The first ``nbytes`` bytes, read and acknowledged now."""
        received = self.peer.messages
        with deadline():
            await self.peer.read_until(lambda: sum(map(len, received.get(self.stream.id, ()))) >= nbytes)
        return b"".join(received[self.stream.id])

    async def __aexit__(self, *_):
        self.transport.abort()
        with deadline():
            await self.protocol.lost
            self.peer.close()
            self.listening.close()
            await self.listening.wait_closed()


MUTABLE = {
    "bytearray": lambda data: bytearray(data),
    "memoryview": lambda data: memoryview(bytearray(data)),
    "readonly memoryview of a bytearray": lambda data: memoryview(bytearray(data)).toreadonly(),
    "array": lambda data: array.array("I", data),
    "numpy": lambda data: numpy.frombuffer(bytearray(data), numpy.uint32).reshape(-1, 8),
}


def scribble(memory):
    """Write over all of it."""
    base = memory
    while not isinstance(base, (bytearray, array.array, numpy.ndarray)):
        base = base.obj
    view = memoryview(base).cast("B")
    view[:] = b"\xee" * len(view)


@pytest.mark.parametrize("trusted", [False, True], ids=["stranger", "trusted"])
@pytest.mark.parametrize("nbytes", [1 * KIB, 64 * KIB, 8 * MIB])
@pytest.mark.parametrize("kind", MUTABLE)
async def test_write_lets_the_caller_change_mutable_memory_at_once(make_context, kind, nbytes, trusted):
    async with Gate(make_context, trust_peer=trusted) as gate:
        content = bytes(range(256)) * (nbytes // 256)
        memory = MUTABLE[kind](content)
        gate.transport.write(memory)
        scribble(memory)
        assert await gate.arrived(nbytes) == content
        assert stats(gate.transport).reference_bytes == 0


async def test_what_the_socket_took_of_many_pieces_is_not_copied(make_context, monkeypatch):
    copied = []
    keep_rest = Outgoing.keep_rest

    def watched(self):
        copied.append(0 if self.view is None else len(self.view))
        keep_rest(self)

    monkeypatch.setattr(Outgoing, "keep_rest", watched)
    async with Gate(make_context) as gate:
        engine = gate.transport._link.engine
        engine._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 400_000)
        gate.transport.write(b"h" * 1000)
        gate.transport.write(bytearray(900 * KIB))
        engine.flush()
        assert 0 < sum(copied) < 901 * KIB - engine._lanes.written + 256 * KIB


async def test_only_the_rest_that_the_socket_did_not_take_is_copied(make_context):
    async with Gate(make_context) as gate:
        memory = bytearray(128 * KIB)
        gate.transport.write(memory)
        (outgoing,) = {frame.messages[0] for frame in gate.transport._link.engine.sender.ledger}
        assert outgoing.view is None, "the socket took all of it, and a copy was made all the same"
        gate.transport.write(bytearray(16 * MIB))  # no socket takes that
        assert gate.transport._channel.outgoing
        for outgoing in gate.transport._channel.outgoing:
            assert type(outgoing.view.obj) is bytes


async def test_bytes_for_a_stranger_are_copied_by_the_socket_and_only_there(make_context):
    async with Gate(make_context) as gate:
        content = bytes(range(256)) * 64 * KIB  # no socket takes 16 MiB at once
        gate.transport.write(content)
        assert gate.transport._channel.outgoing[0].view.obj is content
        assert await gate.arrived(len(content)) == content
        assert stats(gate.transport).reference_bytes == 0
        assert stats(gate.transport).copied_bytes == len(content)


async def test_bytes_for_a_trusted_peer_go_by_reference_and_are_held_until_acknowledged(make_context):
    async with Gate(make_context, trust_peer=True) as gate:
        content = bytes(range(256)) * KIB
        gate.transport.write(content)
        gate.transport._link.engine.flush()
        if not by_reference(gate.transport):
            assert stats(gate.transport).reference_bytes == 0
            return
        assert stats(gate.transport).reference_bytes == len(content)
        assert gate.context.foreign.in_flight == len(content)
        assert await gate.arrived(len(content)) == content
        await until(lambda: gate.context.foreign.in_flight == 0)


async def test_bytes_in_flight_to_a_trusted_peer_that_dies_are_quarantined(make_context):
    async with Gate(make_context, trust_peer=True) as gate:
        completion = gate.transport.send(b"x" * 256 * KIB)
        gate.transport._link.engine.flush()
        gate.transport.abort()
        await gate.protocol.lost
        assert isinstance(completion.error, zcserver.ConnectionLostError)
        if by_reference(gate.transport):
            assert gate.context.foreign.quarantined == 256 * KIB
            assert "may still read the memory" in str(completion.error)


@pytest.mark.parametrize("way", ["write", "send"])
async def test_a_pool_buffer_goes_by_reference_and_is_gone_for_the_caller(make_context, way):
    async with Gate(make_context) as gate:
        with await gate.transport.acquire(2 * MIB):  # strangers lease pages from 1 MiB on
            buffer = await gate.transport.acquire(256 * KIB)
            buffer.view[:] = b"p" * 256 * KIB
            completion = getattr(gate.transport, way)(buffer)
            with pytest.raises(ValueError, match="released"):
                buffer.view[0] = 0
            with pytest.raises(zcserver.BufferStateError):
                gate.transport.send(buffer)
            gate.transport._link.engine.flush()
            assert (stats(gate.transport).reference_bytes > 0) is by_reference(gate.transport)
            assert gate.context.pool.stats().in_flight >= 256 * KIB * by_reference(gate.transport)
            assert await gate.arrived(256 * KIB) == b"p" * 256 * KIB
            if completion is not None:
                await completion.wait()
            await until(lambda: buffer.state == 2)  # home


async def test_a_pool_buffer_with_living_views_is_refused_and_stays_the_callers(pair):
    buffer = await pair.left.acquire(64 * KIB)
    part = buffer.view[:10]
    for way in (pair.left.write, pair.left.send):
        with pytest.raises(zcserver.ViewsAliveError):
            way(buffer)
    part.release()
    buffer.view[:] = b"v" * 64 * KIB
    await pair.left.send(buffer)
    assert pair.server.data == b"v" * 64 * KIB


async def test_a_buffer_of_somebody_else_goes_by_the_copy_lane(make_context):
    context = make_context()
    async with paired(context, make_context()) as pair, paired(context, make_context()) as other:
        buffer = await other.left.acquire(2 * MIB)
        buffer.view[:] = b"o" * 2 * MIB
        await pair.left.send(buffer)
        assert stats(pair.left).reference_bytes == 0
        assert pair.server.data == b"o" * 2 * MIB


@pytest.mark.parametrize("trusted", [False, True], ids=["stranger", "trusted"])
@pytest.mark.parametrize("nbytes", [1 * KIB, 256 * KIB])
async def test_send_resolves_when_the_peer_has_the_bytes_whatever_the_lane(make_context, nbytes, trusted):
    async with Gate(make_context, trust_peer=trusted) as gate:
        memory = numpy.arange(nbytes // 8)
        completion = gate.transport.send(memory)
        gate.transport._link.engine.flush()
        assert not completion.done
        assert await gate.arrived(nbytes) == memory.tobytes()
        await completion.wait()
        referenced = trusted and by_reference(gate.transport) and nbytes > 32 * KIB
        assert stats(gate.transport).reference_bytes == nbytes * referenced


@pytest.mark.parametrize("way", ["write", "send"])
async def test_memory_with_gaps_is_refused_with_the_way_out(pair, way):
    with pytest.raises(zcserver.MisuseError, match="ascontiguousarray"):
        getattr(pair.left, way)(numpy.zeros((100, 100))[:, ::2])
    getattr(pair.left, way)(numpy.ascontiguousarray(numpy.ones((100, 100), numpy.uint8)[:, ::2]))
    await until(lambda: pair.server.data == b"\1" * 5000)


@pytest.mark.parametrize("way", ["write", "send"])
async def test_mappings_and_arrays_of_any_shape_are_sent_as_their_bytes(pair, way):
    with tempfile.TemporaryFile() as file:
        file.write(bytes(range(256)) * 256)
        file.flush()
        mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        cube = numpy.arange(1000, dtype=">f4").reshape(10, 10, 10)
        expected = mapping[:] + cube.tobytes() + array.array("d", [1.5]).tobytes()
        for memory in (mapping, cube, array.array("d", [1.5]), numpy.zeros((0, 3))):
            getattr(pair.left, way)(memory)
        await until(lambda: len(pair.server.data) == len(expected))
        assert pair.server.data == expected
        await until(lambda: pair.left.get_write_buffer_size() == 0)
        mapping.close()  # BufferError while something still exports it


async def test_buffers_may_be_filled_in_other_threads_and_handed_over(pair):
    loop = asyncio.get_running_loop()

    def produce(letter: int) -> None:
        buffer = asyncio.run_coroutine_threadsafe(pair.left.acquire(128 * KIB), loop).result()
        buffer.view[:] = bytes([letter]) * 128 * KIB
        loop.call_soon_threadsafe(pair.left.write, buffer)

    await asyncio.gather(*(asyncio.to_thread(produce, letter) for letter in b"abcdefgh"))
    await until(lambda: len(pair.server.data) == 8 * 128 * KIB)
    received = [bytes(pair.server.data[at : at + 128 * KIB]) for at in range(0, MIB, 128 * KIB)]
    assert sorted(received) == [bytes([letter]) * 128 * KIB for letter in b"abcdefgh"]


async def test_memory_goes_back_in_whatever_turn_the_waiting_for_it_is_cancelled(make_context):
    async with paired(make_context(pool_size=2 * MIB), make_context()) as pair:
        outcomes = []
        for turns in range(6):
            held = await pair.left.acquire(2 * MIB)
            pool = held._pool
            waiting = asyncio.ensure_future(pair.left.acquire(2 * MIB))
            await until(lambda pool=pool: pool.stats().waiters == 1)
            held.release()
            for _ in range(turns):
                await asyncio.sleep(0)
            cancelled = waiting.cancel()
            if cancelled:
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            else:
                (await waiting).release()
            outcomes.append(cancelled)
            assert pool.stats().filling == 0
        assert set(outcomes) == {True, False}


async def test_who_waits_for_memory_learns_that_the_connection_is_lost(make_context):
    async with paired(make_context(pool_size=2 * MIB), make_context()) as pair:
        held = await pair.left.acquire(2 * MIB)
        waiting = asyncio.ensure_future(pair.left.acquire(2 * MIB))
        cancelled = asyncio.ensure_future(pair.left.acquire(2 * MIB))
        await until(lambda: held._pool.stats().waiters == 2)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        pair.right.abort()
        with pytest.raises(zcserver.ConnectionLostError, match="while memory was waited for"):
            await waiting
        held.release()
        assert held._pool.stats().free == 2 * MIB
