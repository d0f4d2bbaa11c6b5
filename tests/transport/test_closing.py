"""Every way a byte stream ends, seen from both of its ends: connection_lost once, with the right reason."""

import asyncio

import pytest

import zcserver
from tests.transport.recorders import KIB, MIB, Recorder, paired, until

pytestmark = pytest.mark.asyncio


def half_open() -> Recorder:
    return Recorder(keep_open=True)


async def test_close_delivers_what_was_written_and_ends_both_sides_cleanly(pair):
    data = bytes(range(256)) * 3 * KIB
    pair.left.write(data)
    pair.left.close()
    assert pair.left.is_closing()
    pair.left.close()
    await pair.over()
    assert pair.server.data == data
    assert (pair.client.error, pair.server.error) == (None, None)
    assert pair.server.calls[-2:] == ["eof_received", "connection_lost"]
    assert pair.client.calls == ["connection_made", "connection_lost"]


async def test_write_eof_ends_one_direction_and_leaves_the_other_open(make_context):
    async with paired(make_context(), make_context(), server=half_open) as pair:
        pair.left.write(b"request")
        pair.left.write_eof()
        pair.left.write_eof()
        await until(lambda: "eof_received" in pair.server.calls)
        assert pair.server.data == b"request"
        assert not pair.left.is_closing()
        with pytest.raises(RuntimeError, match="after write_eof"):
            pair.left.write(b"more")
        pair.right.write(b"r" * MIB)
        await until(lambda: len(pair.client.data) == MIB)
        pair.right.close()
        await pair.over()
        assert (pair.client.error, pair.server.error) == (None, None)
        assert pair.client.calls[-2:] == ["eof_received", "connection_lost"]


async def test_of_both_ends_closing_at_once_one_whose_bytes_nobody_takes_may_learn_it(pair):
    pair.left.write(b"l" * MIB)  # beyond the credit
    pair.right.write(b"r" * 100)
    pair.left.close()
    pair.right.close()
    await pair.over()
    assert pair.client.error is None or isinstance(pair.client.error, ConnectionResetError)
    assert pair.server.error is None


@pytest.mark.parametrize("paused", [False, True])
async def test_both_ends_may_close_with_more_to_send_than_the_other_takes(make_context, paused):
    async with paired(make_context(stream_window=64 * KIB), make_context(stream_window=64 * KIB)) as pair:
        for end in (pair.left, pair.right):
            if paused:
                end.pause_reading()
            end.write(b"x" * 3 * MIB)
        pair.left.close()
        pair.right.close()
        await pair.over()


@pytest.mark.parametrize("when", ["before it is read", "after it is read"])
async def test_a_stream_that_came_whole_is_no_error_though_its_sender_is_gone(make_context, when):
    async with paired(make_context(), make_context(), server=half_open) as pair:
        pair.right.pause_reading()
        pair.left.write(b"x" * 1000)
        pair.left.write_eof()
        await until(lambda: pair.left.get_write_buffer_size() == 0)
        if when == "after it is read":
            pair.right.resume_reading()
            await until(lambda: "eof_received" in pair.server.calls)
        pair.left.abort()
        await until(lambda: pair.right._link.over)
        pair.right.resume_reading()
        await until(lambda: "eof_received" in pair.server.calls)
        await asyncio.sleep(0)
        assert len(pair.server.data) == 1000
        assert pair.server.calls[-1] == "eof_received"
        pair.right.write(b"too late")
        await pair.server.lost
        assert isinstance(pair.server.error, ConnectionResetError)


async def test_nothing_waits_once_the_connection_is_lost(make_context):
    waiting = []

    class Late(Recorder):
        def connection_lost(self, exc):
            super().connection_lost(exc)
            waiting.append(self.transport.get_write_buffer_size())
            self.transport.set_write_buffer_limits(high=0)

    async with paired(make_context(), make_context(), client=Late) as pair:
        pair.right.pause_reading()
        pair.left.write(b"x" * MIB)
        pair.left.write(b"joined")
        pair.left.abort()
        assert pair.left.get_write_buffer_size() == 0
        await pair.client.lost
        assert pair.client.calls == ["connection_made", "connection_lost"]
    assert waiting == [0]


async def test_abort_is_an_error_for_the_peer_and_none_here(pair):
    pair.left.write(b"x" * MIB)
    pair.left.abort()
    pair.left.abort()
    await pair.over()
    assert pair.client.error is None
    assert isinstance(pair.server.error, ConnectionResetError)
    assert isinstance(pair.server.error, zcserver.ConnectionLostError)


async def test_a_peer_that_has_closed_leaves_a_half_open_end_to_close_without_an_error(make_context):
    async with paired(make_context(), make_context(), client=half_open) as pair:
        pair.right.write(b"bye")
        pair.right.close()
        await pair.server.lost
        await until(lambda: "eof_received" in pair.client.calls)
        assert pair.client.data == b"bye"
        assert not pair.left.is_closing()
        pair.left.write_eof()
        pair.left.close()
        await pair.client.lost
        assert pair.client.error is None


async def test_writing_to_a_peer_that_has_closed_is_a_reset(make_context):
    async with paired(make_context(), make_context(), client=half_open) as pair:
        pair.right.close()
        await pair.server.lost
        await until(lambda: "eof_received" in pair.client.calls)
        pair.left.write(b"nobody reads this")
        assert "connection_lost" not in pair.client.calls, "it was called from within write"
        await pair.client.lost
        assert isinstance(pair.client.error, ConnectionResetError)
        with pytest.raises(zcserver.StreamLostError):
            pair.left.send(b"nor this")


async def test_what_was_on_its_way_to_a_peer_that_closed_is_a_reset(make_context):
    async with paired(make_context(), make_context(stream_window=256 * KIB), client=half_open) as pair:
        pair.right.pause_reading()
        pair.left.write(b"x" * 4 * MIB)  # far beyond the credit
        await until(lambda: pair.left._link.engine.unacknowledged(pair.left._channel) < 4 * MIB)
        pair.right.close()
        await pair.over()
        assert isinstance(pair.client.error, ConnectionResetError)
        assert pair.server.error is None


async def test_a_protocol_that_closes_at_the_end_of_file_learns_that_its_bytes_were_lost(make_context):
    async with paired(make_context(), make_context(stream_window=256 * KIB)) as pair:
        pair.right.pause_reading()
        pair.left.write(b"x" * 4 * MIB)
        await until(lambda: pair.left._link.engine.unacknowledged(pair.left._channel) < 4 * MIB)
        pair.right.close()
        await pair.over()
        assert isinstance(pair.client.error, ConnectionResetError)


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_draining_what_the_peer_never_read_is_a_reset(make_context, end):
    async with paired(make_context(stream_window=256 * KIB), make_context(stream_window=256 * KIB)) as pair:
        pair.right.pause_reading()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        writer = asyncio.StreamWriter(pair.left, protocol, reader, asyncio.get_running_loop())
        protocol.connection_made(pair.left)
        pair.left.set_protocol(protocol)
        pair.left.set_write_buffer_limits(0)
        writer.write(b"x" * 4 * MIB)
        draining = asyncio.ensure_future(writer.drain())
        await until(lambda: pair.left._link.engine.unacknowledged(pair.left._channel) < 4 * MIB)
        getattr(pair.right, end)()
        with pytest.raises(ConnectionResetError):
            await draining
        pair.left.set_protocol(pair.client)
        pair.client.lost.set_result(None)


async def test_writes_after_close_are_ignored(pair, caplog):
    pair.left.close()
    for _ in range(7):
        pair.left.write(b"ignored")
    await pair.over()
    pair.left.write(b"ignored")
    assert pair.server.data == b""
    assert sum("socket.send() raised exception" in message for message in caplog.messages) == 3


async def test_a_pool_buffer_written_after_close_goes_home(pair):
    buffer = await pair.left.acquire(64 * KIB)
    pair.left.close()
    pair.left.write(buffer)
    assert pair.left.get_extra_info("pool").stats().filling == 0


async def test_received_bytes_come_before_the_loss_that_followed_them(pair):
    pair.right.pause_reading()
    pair.left.write(b"x" * 10_000)
    await until(lambda: pair.left.get_write_buffer_size() == 0)  # acknowledged: the other end has them
    pair.left.abort()
    await pair.client.lost
    await until(lambda: pair.right._link.over)
    for _ in range(5):
        await asyncio.sleep(0)
    assert pair.server.calls == ["connection_made"]
    pair.right.resume_reading()
    await pair.over()
    assert pair.server.data == b"x" * 10_000
    assert pair.server.calls[-2:] == ["data_received", "connection_lost"]
    assert isinstance(pair.server.error, ConnectionResetError)


async def test_a_paused_reader_with_unsent_bytes_learns_of_the_loss_at_once(make_context):
    async with paired(make_context(stream_window=64 * KIB), make_context()) as pair:
        pair.right.pause_reading()
        pair.left.pause_reading()
        pair.left.write(b"x" * 10_000)
        await until(lambda: pair.left.get_write_buffer_size() == 0)
        pair.right.write(b"y" * MIB)
        pair.left.abort()
        await pair.over()  # it would wait for ever in drain()
        assert isinstance(pair.server.error, ConnectionResetError)


async def test_close_waits_for_a_slow_peer_as_long_as_it_takes(make_context):
    client = make_context(close_seconds=0.0)
    async with paired(client, make_context(stream_window=256 * KIB)) as pair:
        pair.right.pause_reading()
        pair.left.write(b"x" * 2 * MIB)
        pair.left.close()
        late = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(
            0, late.set_result, None
        )  # after a deadline of 0 s would be due
        await late
        assert "connection_lost" not in pair.client.calls
        pair.right.resume_reading()
        await pair.over()
        assert (len(pair.server.data), pair.client.error) == (2 * MIB, None)


@pytest.mark.parametrize("last_words", [b"last words", b""])
async def test_eof_is_not_told_while_reading_is_paused(pair, last_words):
    pair.right.pause_reading()
    pair.left.write(last_words)
    pair.left.close()
    await until(lambda: pair.right._channel.inbox.ended)
    for _ in range(5):
        await asyncio.sleep(0)
    assert pair.server.calls == ["connection_made"]
    pair.right.resume_reading()
    await pair.over()
    received = ["data_received"] if last_words else []
    assert pair.server.calls == ["connection_made", *received, "eof_received", "connection_lost"]


async def test_the_protocol_may_close_and_abort_within_its_callbacks(make_context):
    class Hasty(Recorder):
        def data_received(self, data):
            super().data_received(data)
            self.transport.write(b"answer")
            getattr(self.transport, data.decode())()

    for way, answer, error in (("close", b"answer", type(None)), ("abort", b"answer", ConnectionResetError)):
        async with paired(make_context(), make_context(), server=Hasty) as pair:
            pair.left.write(way.encode())
            await pair.over()
            assert (bytes(pair.client.data), pair.server.error) == (answer, None)
            assert isinstance(pair.client.error, error)
