"""What the engine owes those who wait, and what it must not forget when it refuses."""

import gc
import weakref

import anyio
import pytest

import zcserver
from tests.raw_peer import MIB, RawPeer, deadline, joined, serving, until
from zcserver.ending import Phase
from zcserver_protocol.codec import Limits
from zcserver_protocol.errors import TooManyStreams

pytestmark = pytest.mark.anyio


@pytest.fixture
def one_stream(make_context):
    """A context that lets its peers open one stream at a time."""
    context = make_context()
    context.limits = Limits(max_streams=1)
    return context


async def test_who_waits_to_open_a_stream_may_when_our_half_of_the_last_one_has_gone_out(one_stream):
    async with joined(one_stream) as ends:
        ours, theirs = await ends.stream()
        await theirs.end()
        await until(lambda: ours._inbox.ended)
        opened = []

        async def open_another():
            opened.append(await ends.client.open("TEST", "/"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_another)
            await anyio.wait_all_tasks_blocked()
            assert not opened
            await ours.end()
            await until(lambda: opened)
        await opened[0].end()


async def test_a_stream_that_may_not_be_opened_is_promised_nothing(one_stream):
    async with joined(one_stream) as ends:
        _the_one = await ends.stream()
        promised = one_stream.receive_memory.promised
        with pytest.raises(TooManyStreams):
            ends.client.engine.open("TEST", "/", {})
        assert one_stream.receive_memory.promised == promised


async def test_a_stream_accepted_when_memory_was_full_has_its_first_credit_as_soon_as_it_is_not(make_context):
    context = make_context(receive_memory=4 * MIB)
    kept = [context.receive_memory.take(MIB) for _ in range(4)]
    async with serving(context) as served:
        _, peer, theirs = await served.peer()
        assert not theirs.send_credit
        kept.clear()
        await peer.read_until(lambda: theirs.send_credit)


async def test_a_stream_opened_when_memory_was_full_has_its_first_credit_as_soon_as_it_is_not(make_context):
    context = make_context(receive_memory=4 * MIB)
    kept = [context.receive_memory.take(MIB) for _ in range(4)]
    async with joined(make_context(), context) as ends:
        _, theirs = await ends.stream()
        assert not theirs.credit
        kept.clear()
        await until(lambda: theirs.credit)


@pytest.mark.interpreted
async def test_streams_that_are_gone_wait_for_no_memory(make_context):
    context = make_context(receive_memory=4 * MIB)
    kept = [context.receive_memory.take(MIB) for _ in range(4)]
    channels = []

    async def handler(stream):
        channels.append(weakref.ref(stream._channel))

    async with zcserver.serve(handler, port=0, context=context) as server:
        with deadline(), await RawPeer.connect(server.port) as peer:
            stream = await peer.open()
            await until(lambda: channels)
            assert context.receive_memory._starved
            await peer.read_until(lambda: stream.reset_code is not None)  # the handler has returned
            await until(lambda: gc.collect() >= 0 and channels[0]() is None)
            assert context.receive_memory._starved
    assert kept


async def test_a_process_that_was_stopped_hears_what_its_peer_has_said_before_it_gives_it_up(make_context):
    async with serving(make_context(silence_seconds=45)) as served:
        stream, peer, theirs = await served.peer()
        await peer.read_until(lambda: theirs.send_credit)
        engine = stream.connection.engine
        time = engine._driver.time
        await peer.send(theirs, b"x")
        engine._driver.time = lambda: time() + 50
        engine.on_time()
        assert engine.error is None
        assert bytes(await stream.receive()) == b"x"


async def test_a_clock_that_rings_early_rings_again_for_a_peer_that_is_told_why(make_context, monkeypatch):
    async with serving(make_context()) as served:
        stream, peer, _ = await served.peer()
        engine = stream.connection.engine
        await peer.write(bytes(32))  # no frame of the protocol
        await until(lambda: engine.ending.phase is Phase.LINGERING)
        wishes = []
        monkeypatch.setattr(engine._driver, "wake_at", wishes.append)
        engine.on_time()
        assert wishes == [engine.ending.deadline]
