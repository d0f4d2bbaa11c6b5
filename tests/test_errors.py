"""What goes wrong is said clearly, costs as little as possible, and never hangs."""

import anyio
import pytest

import zcserver
from tests.raw_peer import MIB, RawPeer, deadline, dial, serving
from zcserver_protocol.frames import HELLO, PREFACE, pack

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "opening",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        bytes(range(64)),
        PREFACE + pack(HELLO, length=4) + b"null",
        PREFACE + pack(77),
    ],
    ids=["http", "noise", "bad hello", "unknown frame"],
)
async def test_what_does_not_speak_the_protocol_is_told_and_parted_from(make_context, opening):
    context = make_context()
    async with serving(context) as served:
        peer = RawPeer(dial(served.server.port))
        with peer:
            await peer.write(opening)
            answer = b""
            while True:
                await anyio.wait_readable(peer.sock)
                data = peer.sock.recv(65536)
                if not data:
                    break
                answer += data
        assert b'"code":1' in answer  # a GOAWAY that says PROTOCOL, not a reset
        while served.server.connections:
            await anyio.lowlevel.checkpoint()


async def test_a_peer_that_says_nothing_is_refused_at_the_handshake_deadline(make_context):
    context = make_context(handshake_seconds=0.05)
    async with serving(context) as served:
        peer = RawPeer(dial(served.server.port))
        with peer:
            await anyio.wait_readable(peer.sock)  # the deadline of `serving` cuts a hang
        while served.server.connections:
            await anyio.lowlevel.checkpoint()


async def test_connecting_to_something_else_says_so(make_context):
    context = make_context()
    with deadline():
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            port = listener.extra(anyio.abc.SocketAttribute.local_port)

            async def http(stream):
                async with stream:
                    await stream.receive()
                    await stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listener.serve, http)
                with pytest.raises(zcserver.HandshakeError, match="does not speak ZCP"):
                    async with zcserver.connect(port=port, context=context):
                        pass
                tasks.cancel_scope.cancel()


async def test_nobody_listening_and_unknown_names_are_connection_errors(make_context):
    context = make_context()
    with pytest.raises(zcserver.ConnectionLostError, match=r"cannot connect to 127\.0\.0\.1:1: "):
        async with zcserver.connect(port=1, context=context):
            pass


async def test_a_handler_that_fails_costs_its_stream_only(make_context, caplog):
    async def handler(stream):
        if stream.path == "/bad":
            raise KeyError("bug")
        await stream.send(b"fine", end=True)

    context = make_context()
    with deadline():
        async with (
            zcserver.serve(handler, port=0, context=context) as server,
            zcserver.connect(port=server.port, context=context) as connection,
        ):
            bad = await connection.open("GET", "/bad")
            with pytest.raises(zcserver.StreamResetError, match="INTERNAL"):
                await bad.receive()
            with pytest.raises(zcserver.StreamResetError):
                await bad.send(b"more")
            good = await connection.open("GET", "/good")
            assert bytes(await good.receive()) == b"fine"
    assert "KeyError" in caplog.text


async def test_misuse_of_a_buffer_is_named_and_changes_nothing(make_context):
    async def handler(stream):
        async for _ in stream:
            pass

    context = make_context()
    with deadline():
        async with (
            zcserver.serve(handler, port=0, context=context) as server,
            zcserver.connect(port=server.port, context=context) as connection,
        ):
            stream = await connection.open("PUT", "/")
            buffer = await connection.acquire(1000)
            part = buffer.view[:10]
            with pytest.raises(zcserver.ViewsAliveError, match="slices"):
                await stream.send(buffer)
            part.release()
            del part
            await stream.send(buffer)
            with pytest.raises(ValueError, match="released"):
                buffer.view[0] = 1
            with pytest.raises(zcserver.BufferStateError, match="sent already"):
                await stream.send(buffer)
            await stream.end()
            with pytest.raises(zcserver.MisuseError, match="was ended"):
                await stream.send(b"late")


async def test_a_message_over_the_limit_is_refused_at_its_first_byte(make_context):
    server_context, client_context = make_context(max_message=MIB), make_context()
    errors = []

    async def handler(stream):
        try:
            await stream.receive()
        except zcserver.MessageTooLargeError as error:
            errors.append(str(error))

    with deadline():
        async with (
            zcserver.serve(handler, port=0, context=server_context) as server,
            zcserver.connect(port=server.port, context=client_context) as connection,
        ):
            stream = await connection.open("PUT", "/")
            completion = await stream.send(bytes(3 * MIB))
            with pytest.raises(zcserver.StreamResetError, match="TOO_LARGE"):
                await stream.receive()
            await connection.open("PUT", "/next")  # the connection lives on
            del completion
    assert "3145728 bytes exceeds max_message (1048576 bytes)" in errors[0]


async def test_a_cancelled_send_has_queued_nothing(make_context):
    context = make_context()
    async with serving(context) as served:
        stream, peer, _ = await served.peer(credit=0)
        sent = 0
        while True:
            with anyio.move_on_after(0.05) as scope:
                await stream.send(bytes([sent]) * MIB)
            if scope.cancelled_caught:
                break
            sent += 1
        queued = len(stream._channel.outgoing)
        assert queued == sent
        buffer = await stream.connection.acquire(100)
        with anyio.move_on_after(0) as scope:
            await stream.send(buffer)
        assert scope.cancelled_caught
        buffer.release()  # still ours
        peer.close()


async def test_waiting_for_memory_ends_with_the_connection(make_context):
    context = make_context(pool_size=4 * MIB)
    async with serving(context) as served:
        stream, peer, _ = await served.peer()
        connection = stream.connection
        held = await connection.acquire(2 * MIB)

        async def wait():
            with pytest.raises(zcserver.ConnectionLostError):
                await connection.acquire(4 * MIB)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            while not context.pool.stats().waiters:
                await anyio.lowlevel.checkpoint()
            peer.close()
        held.release()
