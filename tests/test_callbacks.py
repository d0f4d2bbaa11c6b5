"""What the application does in a callback harms nobody but itself."""

import contextlib
import logging
import socket

import anyio
import pytest

import zcserver
from tests.raw_peer import at_rest, in_socket, joined, serving, until
from zcserver_protocol.frames import ACK, HEADER_SIZE, pack

pytestmark = pytest.mark.anyio
KIB = 1024


async def test_a_callback_that_raises_keeps_no_other_from_its_fate(make_context, caplog):
    async with serving(make_context()) as served:
        stream, *_ = await served.peer()
        connection = stream.connection
        bad, good = await stream.send(b"a" * KIB), await stream.send(b"b" * KIB)
        bad.add_done_callback(lambda completion: 1 // 0)
        with caplog.at_level(logging.ERROR, "zcserver"):
            connection.abort()
        assert "ZeroDivisionError" in caplog.text
        for completion in (bad, good):
            with pytest.raises(zcserver.ConnectionLostError):
                await completion.wait()
        with pytest.raises(zcserver.ConnectionLostError):
            await stream.receive()
        await connection.wait_closed()
        assert not served.server.connections


async def test_a_connection_dropped_in_a_callback_ends_once_and_for_that_reason(make_context, monkeypatch):
    ended = []
    closed = zcserver.Connection.closed

    def count(self, error):
        ended.append(str(error))
        closed(self, error)

    monkeypatch.setattr(zcserver.Connection, "closed", count)
    async with serving(make_context()) as served:
        stream, peer, theirs = await served.peer()
        await peer.read_until(lambda: peer.codec.sendable(theirs) >= 200 * KIB)
        completion = await stream.send(b"x" * KIB)
        completion.add_done_callback(lambda done: stream.connection.abort())
        await until(lambda: in_socket(stream))
        peer.read_now()
        peer.codec.acknowledge()
        await peer.flush()
        for _ in range(20):  # behind the acknowledgement there is more than one call reads
            await peer.send(theirs, b"y" * 8 * KIB)
        await until(lambda: stream.connection.is_closed)
    assert len(ended) == 1
    assert "aborted by this end" in ended[0]


async def queue(stream, count):
    """So many messages, most of which only wait; their completions."""
    completions = []
    for _ in range(count):
        buffer = await stream.connection.acquire(64 * KIB)
        completions.append(await stream.send(buffer))
    await until(lambda: at_rest(stream))
    assert len(stream._channel.outgoing) > 10
    return completions


@pytest.mark.parametrize("ends", ["by this end", "by the peer"])
@pytest.mark.parametrize("acts", ["sends", "resets", "drops the connection"])
async def test_a_callback_may_use_a_stream_that_is_just_given_up(make_context, ends, acts):
    context = make_context()
    refused = []
    async with serving(context) as served:
        stream, peer, theirs = await served.peer(credit=256 * KIB)
        completions = await queue(stream, 60)

        async def send():
            with pytest.raises(zcserver.TransferError):
                await stream.send(b"more")
            refused.append(stream)

        def act(_completion):
            if acts == "sends":
                with contextlib.suppress(StopIteration):
                    send().send(None)
            elif acts == "resets":
                stream.reset(9, "again")
            else:
                stream.connection.abort()

        stream._channel.outgoing[3].add_done_callback(act)
        if ends == "by this end":
            stream.reset(8, "enough")
        else:
            peer.codec.reset(theirs, 8, "enough")
            await peer.flush()
            await until(lambda: stream.failed is not None)
        assert stream.failed.code == 8
        assert bool(refused) is (acts == "sends")
        stream.connection.abort()
        assert all(completion.error is not None for completion in completions)
        await stream.connection.wait_closed()
        assert context.pool.stats().in_flight == 0


async def test_a_stream_given_up_by_both_ends_has_failed_for_the_first_reason(make_context):
    async with serving(make_context()) as served:
        stream, peer, theirs = await served.peer()
        engine = stream.connection.engine
        engine._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
        await queue(stream, 120)
        assert engine._lanes.train, "ours waits for what the socket has not taken"
        stream.reset(8, "ours")
        peer.codec.reset(theirs, 9, "the peer's")
        await peer.flush()
        peer.codec.ping(7)
        await peer.read_until(lambda: "Pong" in peer.log)
        assert stream.failed.code == 8


async def test_what_was_acknowledged_has_arrived_though_a_callback_drops_the_connection(make_context):
    async with serving(make_context()) as served:
        stream, peer, theirs = await served.peer()
        await peer.read_until(lambda: peer.codec.sendable(theirs) > 0)
        completions = [await stream.send(b"x" * KIB) for _ in range(20)]
        await until(lambda: in_socket(stream))
        completions[2].add_done_callback(lambda completion: stream.connection.abort())
        await peer.write(pack(ACK, offset=7 * (HEADER_SIZE + KIB)))
        await until(lambda: stream.connection.is_closed)
        assert [completion.error is None for completion in completions] == [True] * 7 + [False] * 13


async def test_an_error_in_on_change_costs_nobody_the_connection(make_context, caplog):
    async with joined(make_context()) as ends:
        ours, theirs = await ends.stream()
        ours.on_change = lambda: 1 // 0
        with caplog.at_level(logging.ERROR, "zcserver"):
            await theirs.commit(0)
            await theirs.send(b"message", end=True)
            assert bytes(await ours.receive()) == b"message"
            with pytest.raises(anyio.EndOfStream):
                await ours.receive()
        assert "ZeroDivisionError" in caplog.text
        assert not ours.connection.is_closed
        await ours.end()
