"""A browser, curl, TLS, random bytes, a peer that says nothing: each is refused, with a line on each side."""

import asyncio
import http.client
import logging
import socket
import ssl

import anyio
import pytest

import zcserver
from tests.raw_peer import deadline, dial, until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["messages", "byte streams", "transports"])
async def port(request, make_context, anyio_backend):
    """Where a server listens: for messages, for anyio's byte streams, or for asyncio's transports."""
    context = make_context(handshake_seconds=0.2)
    if request.param == "messages":
        async with zcserver.serve(lambda stream: None, port=0, context=context) as server:
            yield server.port
    elif request.param == "byte streams" or anyio_backend[0] == "trio":
        listener = await zcserver.listen_byte_streams(port=0, context=context)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, lambda stream: None)
            yield listener.port
            tasks.cancel_scope.cancel()
        await listener.aclose()
    else:
        async with await zcserver.create_server(asyncio.Protocol, "127.0.0.1", 0, context=context) as server:
            yield server.sockets[0].getsockname()[1]


async def refusal(caplog):
    """The one line in the server's log."""
    await until(lambda: caplog.records)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("zcserver", logging.WARNING)
    return record.getMessage()


async def everything(sock):
    sock.setblocking(False)
    received = b""
    while True:
        await anyio.wait_readable(sock)
        data = sock.recv(1 << 16)
        if not data:
            return received
        received += data


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS"])
async def test_an_http_client_is_told_what_this_port_is(port, caplog, method):
    def ask():
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        client.request(method, "/", b"body" if method == "POST" else None)
        answer = client.getresponse()
        client.close()
        return answer.status, answer.read()

    with deadline():
        status, body = await anyio.to_thread.run_sync(ask)
        assert status == 400
        assert (b"ZCP/1" in body) is (method != "HEAD")
        line = await refusal(caplog)
        assert "an HTTP request" in line
        assert "127.0.0.1:" in line


async def test_a_tls_client_gets_an_alert_with_a_name(port, caplog):
    def shake_hands():
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
            trusting.wrap_socket(sock, server_hostname="localhost")

    with deadline():
        with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
            await anyio.to_thread.run_sync(shake_hands)
        assert "a TLS handshake" in await refusal(caplog)


async def test_random_bytes_are_answered_with_the_reason_and_logged(port, caplog):
    with deadline(), dial(port) as sock:
        sock.sendall(bytes(range(100, 200)))
        assert b"does not speak ZCP" in await everything(sock)
        assert "it began with b'defghijk'" in await refusal(caplog)


async def test_a_peer_that_says_nothing_is_dropped_at_the_deadline_with_a_line_in_the_log(port, caplog):
    with deadline(), dial(port) as sock:
        await everything(sock)
        assert "0.2 s" in await refusal(caplog)


async def test_a_peer_that_hangs_up_at_once_is_named(port, caplog):
    with deadline():
        dial(port).close()
        assert "closed the connection during the handshake" in await refusal(caplog)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "an HTTP answer"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "an SSH greeting"),
        (b"\x15\x03\x01\x00\x02\x02\x46\x00", "a TLS alert"),
    ],
)
async def test_a_client_names_what_answered_it(make_context, said, what):
    context = make_context()
    with deadline(), socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)

        async def answer():
            await anyio.wait_readable(listening)
            with listening.accept()[0] as sock:
                sock.sendall(said)
                await everything(sock)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            with pytest.raises(zcserver.HandshakeError, match=what):
                async with zcserver.connect(port=listening.getsockname()[1], context=context):
                    pass
