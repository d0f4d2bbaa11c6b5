"""Requests that a peer has given up end at once: they take neither time, memory nor turns from others."""

import os

import pytest

import zcserver
from tests.raw_peer import RawPeer, deadline, until
from tests.server.requests import ask, connected, get
from zcserver.file_protocol import DIGEST, GET
from zcserver.server import FileServer, Root
from zcserver.server.refusals import refusals

pytestmark = pytest.mark.anyio
KIB = 1024


@pytest.fixture
def ended():
    return []


@pytest.fixture
def slow(served, ended):
    """A server that would take minutes for each file."""
    with Root(served) as root:
        yield FileServer(root, rate=1000, on_request=ended.append)


async def test_a_stream_that_was_reset_and_its_part_of_the_rate(served, slow, ended, make_context):
    (served / "file").write_bytes(bytes(60 * KIB))
    (served / "short").write_bytes(b"short")
    async with connected(slow, make_context) as connection:
        streams = [await connection.open(GET, "/file") for _ in range(20)]
        await until(lambda: slow.active == 20)
        for stream in streams:
            stream.reset()
        await until(lambda: slow.active == 0)
        assert [request.status for request in ended] == ["CANCELLED"] * 20
        assert (await get(connection, "/short"))[1] == b"short"


async def ask_and_go(server, files, method, path):
    """A request by a peer that disappears while the server is at it; return when the server has noticed."""
    with await RawPeer.connect(server.port) as peer:
        peer.codec.open(method, path, {}, 0)
        await peer.flush()
        await until(lambda: files.active == 1)
    await until(lambda: files.active == 0)


async def test_a_connection_that_was_lost(served, slow, ended, make_context):
    (served / "file").write_bytes(bytes(60 * KIB))
    with deadline():
        async with zcserver.serve(slow.handle, port=0, context=make_context()) as server:
            await ask_and_go(server, slow, GET, "/file")
    slow.close()
    assert [request.status for request in ended] == ["LOST"]


async def test_a_lost_connection_is_no_failure_of_the_disk():
    with pytest.raises(zcserver.ConnectionLostError), refusals("/file"):
        raise zcserver.ConnectionLostError("lost")  # also an OSError


async def test_digests_of_huge_files_keep_no_processor(served, files, make_context):
    (served / "huge").touch()
    os.truncate(served / "huge", 1 << 38)
    (served / "short").write_bytes(b"short")
    with deadline():
        async with zcserver.serve(files.handle, port=0, context=make_context()) as server:
            for _ in range(len(os.sched_getaffinity(0)) + 1):
                await ask_and_go(server, files, DIGEST, "/huge")
            async with zcserver.connect(port=server.port, context=make_context()) as connection:
                assert (await ask(connection, DIGEST, "/short"))["size"] == 5
    files.close()
