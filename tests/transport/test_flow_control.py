"""Writers are told when to pause, readers hold back credit, and acknowledgements go on all the while."""

import asyncio

import pytest

from tests.transport.recorders import KIB, MIB, Recorder, paired, until

pytestmark = pytest.mark.asyncio
# What a receiver with a window of 128 KiB lets a sender have in flight, with headers.
ON_THEIR_WAY = 129 * KIB


async def test_the_default_high_water_mark_is_a_mebibyte(make_context):
    async with paired(make_context(window=2 * MIB), make_context()) as pair:
        assert pair.left.get_write_buffer_limits() == (256 * KIB, MIB)
        for limits, expected in (
            ({"high": 100}, (25, 100)),
            ({"low": 100}, (100, 400)),
            ({"high": 0}, (0, 0)),
            ({"high": 7, "low": 7}, (7, 7)),
        ):
            pair.left.set_write_buffer_limits(**limits)
            assert pair.left.get_write_buffer_limits() == expected
        for high, low in ((1, 2), (-1, -2), (1, -1)):
            with pytest.raises(ValueError, match="must be >="):
                pair.left.set_write_buffer_limits(high, low)
        assert pair.left.get_write_buffer_limits() == (7, 7)


async def test_the_buffer_counts_what_the_peer_has_not_acknowledged(pair):
    pair.left.write(b"x" * 1000)
    assert pair.left.get_write_buffer_size() == 1000
    pair.left.write(b"y" * 100 * KIB)
    assert pair.left.get_write_buffer_size() == 1000 + 100 * KIB
    await until(lambda: pair.left.get_write_buffer_size() == 0)
    assert len(pair.server.data) == 1000 + 100 * KIB


async def test_a_writer_is_paused_above_the_high_water_mark_and_resumed_at_the_low_one(make_context):
    async with paired(make_context(), make_context(stream_window=128 * KIB)) as pair:
        sizes = []
        pair.client.resume_writing = lambda: sizes.append(pair.left.get_write_buffer_size())
        pair.right.pause_reading()
        pair.left.set_write_buffer_limits(high=MIB, low=300 * KIB)
        while "pause_writing" not in pair.client.calls:
            assert pair.left.get_write_buffer_size() <= MIB + ON_THEIR_WAY
            pair.left.write(b"x" * 50 * KIB)
        assert MIB < pair.left.get_write_buffer_size() <= MIB + ON_THEIR_WAY + 50 * KIB
        pair.left.write(b"x" * 50 * KIB)
        assert pair.client.calls == ["connection_made", "pause_writing"], "it was paused twice"
        pair.right.resume_reading()
        await until(lambda: sizes)
        assert sizes[0] <= 300 * KIB + ON_THEIR_WAY
        await until(lambda: pair.left.get_write_buffer_size() == 0)
        assert len(sizes) == 1


async def test_what_is_in_flight_does_not_pause_a_writer(pair):
    pair.left.set_write_buffer_limits(high=0)
    for _ in range(50):
        pair.left.write(b"x" * KIB)
    assert pair.left.get_write_buffer_size() >= 50 * KIB
    assert pair.client.calls == ["connection_made"]
    await until(lambda: len(pair.server.data) == 50 * KIB)
    assert pair.client.calls == ["connection_made"]


async def test_a_paused_writer_is_resumed_although_the_mark_was_moved(make_context):
    async with paired(make_context(), make_context(stream_window=128 * KIB)) as pair:
        pair.right.pause_reading()
        pair.left.write(b"x" * 2 * MIB)
        assert pair.client.calls == ["connection_made", "pause_writing"]
        pair.left.set_write_buffer_limits(high=0)
        pair.right.resume_reading()
        await until(lambda: "resume_writing" in pair.client.calls)


async def test_lowering_the_mark_pauses_a_writer_that_is_above_it(pair):
    pair.right.pause_reading()
    pair.left.write(b"x" * MIB)
    assert "pause_writing" not in pair.client.calls
    pair.left.set_write_buffer_limits(high=10 * KIB)
    assert "pause_writing" in pair.client.calls


async def test_a_paused_reader_gets_nothing_grants_nothing_and_acknowledges_everything(make_context):
    async with paired(make_context(), make_context(stream_window=128 * KIB)) as pair:
        pair.right.pause_reading()
        pair.right.pause_reading()
        assert not pair.right.is_reading()
        pair.left.write(b"x" * MIB)
        engine, channel = pair.left._link.engine, pair.left._channel
        await until(lambda: engine.unacknowledged(channel) == channel.queued)  # nothing is in flight any more
        assert pair.server.calls == ["connection_made"]
        taken = MIB - channel.queued
        assert 0 < taken <= 128 * KIB, "credit was granted to a stream that nobody reads"
        assert channel.state.send_credit <= 128 * KIB
        pair.right.resume_reading()
        pair.right.resume_reading()
        assert pair.right.is_reading()
        assert pair.server.calls == ["connection_made"], "it was called from within resume_reading"
        await until(lambda: len(pair.server.data) == MIB)


async def test_a_reader_may_pause_within_data_received(make_context):
    class Sipping(Recorder):
        def data_received(self, data):
            assert self.transport.is_reading()
            super().data_received(data)
            self.transport.pause_reading()

    async with paired(make_context(), make_context(stream_window=64 * KIB), server=Sipping) as pair:
        for _ in range(25):
            pair.left.write(b"x" * 40 * KIB)
        received = 0
        while received < 1000 * KIB:  # many windows: what a pause held back is granted when it ends
            await until(lambda: len(pair.server.data) > received)  # noqa: B023 – awaited before it changes
            assert pair.server.calls.count("data_received") == len(pair.server.pieces)
            received = len(pair.server.data)
            pair.right.resume_reading()
        assert len(pair.server.pieces) >= 5


async def test_one_stopped_reader_does_not_stop_the_other_direction(make_context):
    async with paired(make_context(stream_window=64 * KIB), make_context(stream_window=64 * KIB)) as pair:
        pair.right.pause_reading()
        pair.left.write(b"x" * 4 * MIB)
        for _ in range(8):
            pair.right.write(b"y" * MIB)
        await until(lambda: len(pair.client.data) == 8 * MIB)
        assert pair.server.data == b""


class Failing(Recorder):
    def pause_writing(self):
        raise ZeroDivisionError

    def resume_writing(self):
        raise ZeroDivisionError


class Without(Recorder):
    def __getattribute__(self, name):
        if name in ("pause_writing", "resume_writing"):
            raise AttributeError(name)
        return super().__getattribute__(name)


@pytest.mark.parametrize("kind", [Failing, Without])
async def test_errors_in_flow_control_callbacks_are_reported_and_cost_nothing(make_context, kind):
    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context["message"]))
    async with paired(make_context(), make_context(), client=kind) as pair:
        pair.left.write(b"x" * 3 * MIB)
        await until(lambda: len(pair.server.data) == 3 * MIB and len(errors) == 2)
        assert errors == ["protocol.pause_writing() failed", "protocol.resume_writing() failed"]
        assert not pair.left.is_closing()
