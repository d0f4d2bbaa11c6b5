"""Where a server listens: several addresses, IPv6, Unix sockets; and that every lane works there."""

import os
import socket
import stat

import anyio
import pytest

import zcserver
from zcserver.errors import ConnectionLostError
from zcserver.server import FileServer, Root

pytestmark = pytest.mark.anyio
MIB = 1 << 20


async def echo(stream):
    async for message in stream:
        await stream.send(bytes(message))
    await stream.end()


async def answered(connection, data=b"hello"):
    stream = await connection.open("ECHO", "/")
    await stream.send(data, end=True)
    return bytes(await stream.receive())


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@needs_ipv6
async def test_several_addresses_of_both_families_are_served_at_once(make_context):
    context = make_context()
    binds = [("127.0.0.1", 0), ("127.0.0.2", 0), ("::1", 0)]
    with anyio.fail_after(60):
        async with zcserver.serve(echo, binds=binds, context=context) as server:
            assert server.port == server.ports[0]
            for (host, _), port in zip(binds, server.ports, strict=True):
                async with zcserver.connect(host, port, context=make_context()) as connection:
                    assert await answered(connection) == b"hello"


@needs_ipv6
async def test_the_star_stands_for_both_families(make_context):
    with anyio.fail_after(60):
        async with zcserver.serve(echo, "*", 0, context=make_context()) as server:
            for host in ("127.0.0.1", "::1"):
                async with zcserver.connect(host, server.port, context=make_context()) as connection:
                    assert await answered(connection) == b"hello"


@needs_ipv6
async def test_the_unspecified_addresses_of_both_families_can_be_given_side_by_side(make_context):
    with anyio.fail_after(60):
        async with zcserver.serve(echo, "0.0.0.0", 0, context=make_context()) as first:
            binds = [("::", first.port)]
            async with zcserver.serve(echo, binds=binds, context=make_context()) as second:
                assert second.port == first.port


async def test_a_port_that_is_taken_is_told_and_the_other_listeners_are_given_up(make_context):
    with socket.create_server(("127.0.0.1", 0)) as taken, anyio.fail_after(60):
        binds = [("127.0.0.1", 0), ("127.0.0.1", taken.getsockname()[1])]
        context = make_context()
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(ConnectionLostError, match="in use") as caught:
            async with zcserver.serve(echo, binds=binds, context=context):
                pass
        assert isinstance(caught.value.__cause__, OSError)
        assert len(os.listdir("/proc/self/fd")) == before


async def test_a_name_that_does_not_resolve_cannot_be_listened_on(make_context):
    with anyio.fail_after(60), pytest.raises(ConnectionLostError, match="cannot be resolved"):
        async with zcserver.serve(echo, "no.such.host.invalid", 0, context=make_context()):
            pass


# -- Unix sockets -----------------------------------------------------------------------------------


async def test_a_unix_socket_is_served_and_removed_afterwards(make_context, tmp_path):
    path = str(tmp_path / "socket")
    with anyio.fail_after(60):
        async with zcserver.serve(echo, paths=[path], context=make_context()) as server:
            assert stat.S_ISSOCK(os.stat(path).st_mode)
            assert server.port == 0
            async with zcserver.connect(path=path, context=make_context()) as connection:
                assert await answered(connection) == b"hello"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [str, bytes])
async def test_a_unix_socket_may_be_abstract(make_context, kind):
    name = f"\0zcserver test {os.getpid()}"
    path = name if kind is str else name.encode()
    with anyio.fail_after(60):
        async with zcserver.serve(echo, paths=[path], context=make_context()) as server:
            assert server.port == 0
            async with zcserver.connect(path=path, context=make_context()) as connection:
                assert await answered(connection) == b"hello"
            with pytest.raises(ConnectionLostError, match=r"cannot listen on @zcserver test .* in use"):
                async with zcserver.serve(echo, paths=[path], context=make_context()):
                    pass
        with pytest.raises(ConnectionLostError, match=r"cannot connect to @zcserver test .* refused"):
            async with zcserver.connect(path=path, context=make_context()):
                pass


async def test_tcp_and_unix_are_served_together(make_context, tmp_path):
    path = str(tmp_path / "socket")
    with anyio.fail_after(60):
        async with (
            zcserver.serve(echo, binds=[("127.0.0.1", 0)], paths=[path], context=make_context()) as server,
            zcserver.connect(port=server.port, context=make_context()) as over_tcp,
            zcserver.connect(path=path, context=make_context()) as over_unix,
        ):
            assert await answered(over_tcp) == await answered(over_unix) == b"hello"


async def test_memory_and_files_go_over_a_unix_socket_by_the_lanes_of_tcp(make_context, tmp_path):
    """vmsplice → pipe → splice, and file → pipe → splice, to a Unix stream socket."""
    served = tmp_path / "served"
    served.mkdir()
    content = os.urandom(3 * MIB + 17)
    (served / "file").write_bytes(content)
    path = str(tmp_path / "socket")
    server_context, client_context = make_context(), make_context()
    with Root(served) as root, anyio.fail_after(60):
        files = FileServer(root)

        async def handle(stream):
            if stream.method == "ECHO":
                await echo(stream)
            else:
                await files.handle(stream)

        async with (
            zcserver.serve(handle, paths=[path], context=server_context),
            zcserver.connect(path=path, context=client_context) as connection,
        ):
            stream = await connection.open("GET", "/file")
            assert b"".join([bytes(piece) async for piece in stream.chunks()]) == content
            stream = await connection.open("ECHO", "/")
            buffer = await connection.acquire(2 * MIB)
            buffer.view[:] = content[: 2 * MIB]
            await stream.send(buffer, end=True)
            assert bytes(await stream.receive()) == content[: 2 * MIB]
            assert client_context.by_reference == bool(connection.statistics.reference_bytes)
    assert files.totals.as_dict()["file_bytes"] == len(content)


async def test_the_socket_of_a_dead_server_is_replaced_that_of_a_living_one_is_not(make_context, tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
        dead.listen()
    with anyio.fail_after(60):
        async with zcserver.serve(echo, paths=[path], context=make_context()):
            with pytest.raises(ConnectionLostError, match="in use"):
                async with zcserver.serve(echo, paths=[path], context=make_context()):
                    pass
            async with zcserver.connect(path=path, context=make_context()) as connection:
                assert await answered(connection) == b"hello"


async def test_a_file_in_the_place_of_the_socket_is_left_alone(make_context, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with anyio.fail_after(60), pytest.raises(ConnectionLostError, match="in use"):
        async with zcserver.serve(echo, paths=[str(path)], context=make_context()):
            pass
    assert path.read_bytes() == b"content"


async def test_a_successor_s_socket_is_not_removed(make_context, tmp_path):
    path = str(tmp_path / "socket")
    with anyio.fail_after(60), socket.socket(socket.AF_UNIX) as successor:
        async with zcserver.serve(echo, paths=[path], context=make_context()):
            os.unlink(path)
            successor.bind(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["socket"]


async def test_the_path_of_a_unix_socket_that_is_too_long_is_told_at_both_ends(make_context, tmp_path):
    path = str(tmp_path / ("x" * 120))
    with anyio.fail_after(60):
        with pytest.raises(ConnectionLostError, match="107 bytes"):
            async with zcserver.serve(echo, paths=[path], context=make_context()):
                pass
        with pytest.raises(ConnectionLostError, match="too long"):
            async with zcserver.connect(path=path, context=make_context()):
                pass


async def test_nobody_at_a_unix_socket_is_told(make_context, tmp_path):
    with anyio.fail_after(60), pytest.raises(ConnectionLostError, match="No such file"):
        async with zcserver.connect(path=str(tmp_path / "none"), context=make_context()):
            pass


async def test_more_connections_than_allowed_wait_at_every_listener(make_context):
    binds = [("127.0.0.1", 0), ("127.0.0.2", 0)]
    context = make_context()
    with anyio.fail_after(60):
        async with zcserver.serve(echo, binds=binds, max_connections=1, context=make_context()) as server:
            answers = []

            async def ask(host, port):
                async with zcserver.connect(host, port, context=context) as connection:
                    answers.append(await answered(connection))

            async with anyio.create_task_group() as tasks:
                for (host, _), port in zip(binds, server.ports, strict=True):
                    for _ in range(2):
                        tasks.start_soon(ask, host, port)
            assert answers == [b"hello"] * 4
