"""create_connection, create_server and their kin: asyncio's signatures, meanings and errors."""

import asyncio
import contextlib
import errno
import os
import socket

import pytest

import zcserver
from tests.raw_peer import RawPeer, deadline, dial
from tests.transport.recorders import MIB, Recorder, serving, until
from zcserver.transport.link import BYTE_STREAM, Link
from zcserver_protocol.errors import ErrorCode

pytestmark = pytest.mark.asyncio


async def echo(reader, writer):
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def round_trip(reader, writer, nbytes=3 * MIB):
    sent = bytes(range(256)) * (nbytes // 256)
    writer.write(sent)
    writer.write_eof()
    assert await reader.read() == sent
    writer.close()
    await writer.wait_closed()


def address_of(server):
    return server.sockets[0].getsockname()


async def test_streams_over_tcp(make_context):
    async with serving(zcserver.start_server(echo, "127.0.0.1", 0, context=make_context())) as server:
        await round_trip(*await zcserver.open_connection(*address_of(server), context=make_context()))


async def test_streams_over_a_unix_socket(make_context, tmp_path):
    path = tmp_path / "socket"
    async with serving(zcserver.start_unix_server(echo, path, context=make_context())):
        await round_trip(*await zcserver.open_unix_connection(path, context=make_context()))


@pytest.mark.parametrize("kind", [str, bytes])
async def test_streams_over_an_abstract_unix_socket(make_context, kind):
    name = f"\0zcserver test {os.getpid()}"
    path = name if kind is str else name.encode()
    async with serving(zcserver.start_unix_server(echo, path, context=make_context())):
        await round_trip(*await zcserver.open_unix_connection(path, context=make_context()))


async def test_without_a_context_the_loop_has_one_for_all():
    async with serving(zcserver.start_server(echo, "127.0.0.1", 0)) as server:
        reader, writer = await zcserver.open_connection(*address_of(server))
        pool = writer.get_extra_info("pool")
        await round_trip(reader, writer)
        reader, writer = await zcserver.open_connection(*address_of(server))
        assert writer.get_extra_info("pool") is pool
        await round_trip(reader, writer)


async def test_a_stream_writer_sends_pool_buffers_without_leaving_its_api(make_context):
    async with serving(zcserver.start_server(echo, "127.0.0.1", 0, context=make_context())) as server:
        reader, writer = await zcserver.open_connection(*address_of(server), context=make_context())
        with await writer.transport.acquire(2 * MIB):
            buffers = [await writer.transport.acquire(MIB) for _ in range(2)]
            for buffer, letter in zip(buffers, b"ab", strict=True):
                buffer.view[:] = bytes([letter]) * MIB
            writer.write(buffers[0])
            writer.writelines([b"between", buffers[1]])
            await writer.drain()
            writer.write_eof()
            assert await reader.read() == b"a" * MIB + b"between" + b"b" * MIB
        if writer.get_extra_info("lane") == "vmsplice":
            assert writer.get_extra_info("stats").reference_bytes == 2 * MIB
        writer.close()
        await writer.wait_closed()


async def test_connected_and_accepted_sockets_of_the_callers_own(make_context):
    context = make_context()
    ours, theirs = socket.socketpair()
    (left, client), (right, server) = await asyncio.gather(
        zcserver.create_unix_connection(Recorder, sock=ours, context=context),
        zcserver.connect_accepted_socket(Recorder, theirs, context=context),
    )
    left.write(b"over a pair of sockets")
    await until(lambda: server.data == b"over a pair of sockets")
    right.close()
    await asyncio.gather(client.lost, server.lost)
    assert ours.fileno() == theirs.fileno() == -1


async def test_a_listening_socket_of_the_callers_own(make_context):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        async with serving(zcserver.start_server(echo, sock=sock, context=make_context())):
            await round_trip(*await zcserver.open_connection(*sock.getsockname(), context=make_context()))
    with pytest.raises(ValueError, match="can not be specified at the same time"):
        await zcserver.start_server(echo, "127.0.0.1", 0, sock=sock)
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams, pytest.raises(ValueError, match="Stream Socket"):
        await zcserver.start_server(echo, sock=datagrams)


async def test_several_hosts_and_the_loops_own_options(make_context):
    async with serving(
        zcserver.create_server(
            asyncio.Protocol, ["127.0.0.1", "127.0.0.2"], 0, reuse_port=True, context=make_context()
        )
    ) as server:
        assert {sock.getsockname()[0] for sock in server.sockets} == {"127.0.0.1", "127.0.0.2"}
        assert server.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)


async def test_happy_eyeballs_go_on_past_an_address_that_does_not_answer(make_context, monkeypatch):
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.BaseEventLoop):
        pytest.skip("uvloop has no happy eyeballs")
    async with serving(zcserver.start_server(echo, "127.0.0.1", 0, context=make_context())) as server:
        with (
            socket.create_server(("127.0.0.1", 0), backlog=0) as full,
            socket.create_connection(full.getsockname()),  # Linux drops what would be one more
        ):
            addresses = [full.getsockname(), address_of(server)]

            async def getaddrinfo(host, port, **_):
                return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", at) for at in addresses]

            monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
            await round_trip(
                *await zcserver.open_connection(
                    "twofold", 1, happy_eyeballs_delay=0.01, local_addr=None, context=make_context()
                )
            )


async def test_connecting_where_nobody_listens_is_asyncios_own_error(make_context, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()
    with pytest.raises(ConnectionRefusedError):
        await zcserver.open_connection(*address, context=make_context())
    with pytest.raises(FileNotFoundError):
        await zcserver.open_unix_connection(tmp_path / "nothing", context=make_context())
    with pytest.raises(socket.gaierror):
        await zcserver.open_connection("name.invalid", 1, context=make_context())


async def test_an_address_in_use_is_asyncios_own_error(make_context):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        await zcserver.create_server(asyncio.Protocol, *taken.getsockname(), context=make_context())


async def test_a_unix_socket_that_cannot_be_is_asyncios_own_error(make_context, tmp_path):
    with pytest.raises(FileNotFoundError):
        await zcserver.create_unix_server(Recorder, tmp_path / "no" / "socket", context=make_context())
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="in use") as caught:
        await zcserver.create_unix_server(Recorder, tmp_path / "file", context=make_context())
    assert caught.value.errno == errno.EADDRINUSE


async def test_tls_is_refused_with_the_way_out():
    for function in (zcserver.create_connection, zcserver.create_server):
        with pytest.raises(zcserver.MisuseError, match="leave ssl out"):
            await function(asyncio.Protocol, "127.0.0.1", 1, ssl=True)
        with pytest.raises(ValueError, match="only meaningful with ssl"):
            await function(asyncio.Protocol, "127.0.0.1", 1, ssl_handshake_timeout=1)


async def test_a_server_of_messages_is_no_place_for_a_byte_stream(make_context):
    async def handler(stream):
        raise zcserver.StreamResetError(zcserver.ErrorCode.NOT_FOUND, f"nothing by {stream.method}")

    async with zcserver.serve(handler, port=0, context=make_context()) as server:
        with pytest.raises(zcserver.HandshakeError, match=r"takes no byte stream.*nothing by BYTES"):
            await zcserver.open_connection("127.0.0.1", server.port, context=make_context())


async def test_a_server_of_byte_streams_refuses_other_streams_and_a_second_one(make_context):
    async with (
        serving(zcserver.start_server(echo, "127.0.0.1", 0, context=make_context())) as server,
        zcserver.connect(*address_of(server), context=make_context()) as connection,
    ):
        with pytest.raises(zcserver.StreamResetError, match="one byte stream"):
            await (await connection.open("GET", "/")).response()
        first = await connection.open("BYTES", "/")
        await first.response()
        with pytest.raises(zcserver.StreamResetError, match="one byte stream"):
            await (await connection.open("BYTES", "/")).response()


async def test_a_byte_stream_that_is_given_up_in_the_same_breath_gets_no_protocol(make_context, caplog):
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    listening = await zcserver.create_server(Recorder, "127.0.0.1", 0, context=make_context())
    with RawPeer(dial(listening.sockets[0].getsockname()[1])) as peer, deadline():
        await peer.shake_hands()
        stream = peer.codec.open(BYTE_STREAM, "/", {}, 1 << 20)
        peer.codec.reset(stream, ErrorCode.CANCELLED, "changed my mind")
        await peer.flush()
        while not peer.fin:
            await peer.read()
    listening.close()
    await listening.wait_closed()
    assert not reported
    assert "changed my mind" in caplog.text


@pytest.mark.parametrize("kind", [ZeroDivisionError, asyncio.CancelledError])
async def test_a_factory_that_fails_costs_its_connection_and_is_reported(make_context, kind):
    def factory():
        raise kind

    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context["message"]))
    async with serving(zcserver.create_server(factory, "127.0.0.1", 0, context=make_context())) as server:
        with pytest.raises(zcserver.ConnectionLostError):
            await zcserver.create_connection(Recorder, *address_of(server), context=make_context())
        assert errors == ["Error on transport creation for incoming connection"]
    context = make_context()
    async with serving(zcserver.create_server(Recorder, "127.0.0.1", 0, context=context)) as server:
        with pytest.raises(kind):
            await zcserver.create_connection(factory, *address_of(server), context=make_context())


async def test_a_cancelled_connect_leaves_nothing(make_context):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connecting = asyncio.ensure_future(
            zcserver.create_connection(Recorder, *silent.getsockname(), context=make_context())
        )
        accepted, _ = await asyncio.to_thread(silent.accept)
        accepted.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(accepted, 8) == b"\x89ZCP\r\n\x1a\n"
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        with contextlib.suppress(ConnectionResetError):
            while await asyncio.get_running_loop().sock_recv(accepted, 1 << 16):
                pass
        accepted.close()


async def test_a_silent_server_is_given_up_at_the_deadline(make_context):
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(zcserver.HandshakeError, match=r"no handshake|did not answer"),
    ):
        await zcserver.create_connection(
            Recorder, *silent.getsockname(), context=make_context(handshake_seconds=0.05)
        )


async def test_a_loop_that_was_late_itself_gives_the_peer_as_much_longer(make_context):
    ours, theirs = socket.socketpair()
    errors = []
    context = make_context(handshake_seconds=60)
    with theirs:
        link = Link(ours, "client", context, False, lambda channel: None, errors.append)
        link._too_late(link.time() - 30)
        assert not errors
        link._too_late(link.time())
        assert "did not answer within 60 s" in str(errors[0])


# -- the server object -------------------------------------------------------------------------------------


async def test_a_server_serves_when_it_is_told_to(make_context):
    context = make_context()
    server = await zcserver.start_server(echo, "127.0.0.1", 0, start_serving=False, context=context)
    assert not server.is_serving()
    with pytest.raises(ConnectionRefusedError):
        await zcserver.open_connection(*address_of(server), context=context)
    await server.start_serving()
    await server.start_serving()
    assert server.is_serving()
    assert server.get_loop() is asyncio.get_running_loop()
    await round_trip(*await zcserver.open_connection(*address_of(server), context=context))
    server.close()
    server.close()
    await server.wait_closed()
    assert server.sockets == ()
    assert not server.is_serving()
    with pytest.raises(RuntimeError, match="is closed"):
        await server.start_serving()


async def test_serve_forever_ends_when_cancelled_and_closes(make_context):
    server = await zcserver.start_server(echo, "127.0.0.1", 0, start_serving=False, context=make_context())
    forever = asyncio.ensure_future(server.serve_forever())
    await until(server.is_serving)
    with pytest.raises(RuntimeError, match="already being awaited"):
        await server.serve_forever()
    await round_trip(*await zcserver.open_connection(*address_of(server), context=make_context()))
    forever.cancel()
    with pytest.raises(asyncio.CancelledError):
        await forever
    assert not server.is_serving()


async def test_wait_closed_waits_for_the_last_connection(make_context):
    context = make_context()
    server = await zcserver.create_server(Recorder, "127.0.0.1", 0, context=context)
    (_, client) = await zcserver.create_connection(Recorder, *address_of(server), context=context)
    server.close()
    waiting = asyncio.ensure_future(server.wait_closed())
    client.transport.write(b"x" * MIB)
    await until(lambda: client.transport.get_write_buffer_size() == 0)
    assert not waiting.done()
    server.close_clients()
    await asyncio.gather(waiting, client.lost)
    assert client.error is None


async def test_a_server_of_a_unix_socket_serves_when_it_is_told_to(make_context, tmp_path):
    path, context = tmp_path / "socket", make_context()
    async with serving(
        zcserver.start_unix_server(echo, path, start_serving=False, context=context)
    ) as server:
        assert not server.is_serving()
        await server.start_serving()
        await round_trip(*await zcserver.open_unix_connection(path, context=context))


async def test_abort_clients_drops_every_connection(make_context):
    context = make_context()
    async with serving(zcserver.create_server(Recorder, "127.0.0.1", 0, context=context)) as server:
        (_, client) = await zcserver.create_connection(Recorder, *address_of(server), context=context)
        server.abort_clients()
        await client.lost
        assert isinstance(client.error, ConnectionResetError)


async def test_closing_a_server_drops_peers_that_have_not_asked_for_anything(make_context):
    server = await zcserver.create_server(Recorder, "127.0.0.1", 0, context=make_context())
    with socket.create_connection(address_of(server)) as silent:
        await until(lambda: server.handshaking)
        server.close()
        await server.wait_closed()
        assert silent.recv(1) == b""


async def test_a_server_without_descriptors_goes_on_when_there_are_some_again(make_context, caplog):
    import resource

    context = make_context()
    async with serving(zcserver.start_server(echo, "127.0.0.1", 0, context=context)) as server:
        with socket.socket() as sock:
            sock.setblocking(False)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            spare = os.open("/dev/null", os.O_RDONLY)
            os.close(spare)
            resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
            try:
                with contextlib.suppress(BlockingIOError):
                    sock.connect(address_of(server))
                await until(lambda: caplog.records)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert "cannot accept more connections for now" in caplog.text
            await round_trip(*await zcserver.open_connection(*address_of(server), context=make_context()))
