"""What a peer chooses (its socket's name, its reasons, its paths) forges no line of a log or a message."""

import socket

import anyio
import pytest

import zcserver
from tests.raw_peer import RawPeer, deadline, until
from zcserver_protocol.errors import ErrorCode

FORGED = "bad\nFORGED \x1b[31m"

pytestmark = pytest.mark.anyio


async def test_the_name_of_a_unix_socket_is_printable(tmp_path, make_context, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    async with zcserver.serve(anyio.sleep, paths=["server"], context=make_context()) as server:
        with deadline(), socket.socket(socket.AF_UNIX) as client:
            client.bind("\n" + FORGED)
            client.connect("server")
            await until(lambda: server.connections)
            (connection,) = server.connections
            assert connection.name == "?bad?FORGED ?[31m"
            client.sendall(b"SSH-2.0-x\r\n")
            await connection.wait_closed()
    assert [record.message.isprintable() for record in caplog.records] == [True]


async def test_the_reason_of_a_goaway_is_printable(make_context):
    async with zcserver.serve(anyio.sleep, port=0, context=make_context()) as server:
        with deadline(), await RawPeer.connect(server.port) as peer:
            await peer.shake_hands()
            (connection,) = server.connections
            peer.codec.goaway(ErrorCode.INTERNAL, FORGED)
            await peer.flush()
            await connection.wait_closed()
            with pytest.raises(zcserver.ConnectionLostError) as caught:
                await connection.open("GET", "/")
    assert "the peer ended the connection: bad?FORGED ?[31m" in str(caught.value)


async def test_the_reason_of_a_reset_is_printable(make_context):
    async def handler(stream):
        raise zcserver.StreamResetError(ErrorCode.REFUSED, FORGED)

    context = make_context()
    with deadline():
        async with (
            zcserver.serve(handler, port=0, context=context) as server,
            zcserver.connect(port=server.port, context=context) as connection,
        ):
            stream = await connection.open("GET", "/")
            with pytest.raises(zcserver.StreamResetError) as caught:
                await stream.receive()
    assert caught.value.reason == "bad?FORGED ?[31m"
    assert str(caught.value).isprintable()


async def test_the_path_of_a_stream_in_words_is_printable(make_context):
    context = make_context()
    with deadline():
        async with (
            zcserver.serve(anyio.sleep, port=0, context=context) as server,
            zcserver.connect(port=server.port, context=context) as connection,
            await connection.open("GET", FORGED) as stream,
        ):
            assert repr(stream).isprintable()
