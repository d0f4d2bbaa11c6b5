"""What the application does in a callback harms nobody but itself."""

import logging

import pytest

import zcserver
from tests.raw_peer import in_socket, serving, until

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
