"""Descriptors that others hold, too: all of it arrives, waiting can be cancelled, flags stay as they are."""

import contextlib
import fcntl
import os
import select
import socket
import tty

import anyio
import anyio.to_thread
import pytest

from zcserver.client import descriptors
from zcserver.client.descriptors import ready, writing

pytestmark = pytest.mark.anyio
CONTENT = bytes(range(256)) * 4096


@contextlib.contextmanager
def ends(kind):
    """What is read from, and what is written to."""
    if kind == "socket":
        ours, theirs = (sock.detach() for sock in socket.socketpair())
    elif kind == "terminal":
        ours, theirs = os.openpty()
        tty.setraw(theirs)
    else:
        ours, theirs = os.pipe()
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.fixture(params=["pipe", "socket", "terminal", "pipe of another user"])
def both(request, monkeypatch):
    def refused(*_):
        raise PermissionError

    if request.param == "pipe of another user":
        monkeypatch.setattr(descriptors.os, "open", refused)
    with ends(request.param) as both:
        yield both


def is_blocking(fd):
    return not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK


def read_all(fd):
    content = bytearray()
    while len(content) < len(CONTENT):
        content += os.read(fd, 65536)
    return bytes(content)


async def test_all_of_it_arrives_and_the_open_file_keeps_its_flags(both):
    reader, writer = both
    read = []

    async def read_on():
        read.append(await anyio.to_thread.run_sync(read_all, reader))

    pieces = [memoryview(CONTENT)[:10], memoryview(b""), memoryview(CONTENT)[10:]]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read_on)
        with writing(writer) as write:
            await write(pieces)
    assert read == [CONTENT]
    assert not pieces
    assert is_blocking(writer)
    assert is_blocking(reader)


async def test_waiting_for_a_reader_is_cancelled_at_once(both):
    reader, writer = both
    with writing(writer) as write:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write, [memoryview(CONTENT)])
            await ready(reader, select.EPOLLIN)  # now it has written as much as there is room for, or will
            tasks.cancel_scope.cancel()


async def test_a_reader_that_has_gone_is_an_error():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb"), writing(writer) as write, pytest.raises(BrokenPipeError):
        await write([memoryview(CONTENT)])


async def test_files_get_it_where_they_stand(tmp_path):
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        file.write(b"before")
        with writing(file.fileno()) as write:
            await write([memoryview(CONTENT), memoryview(CONTENT)])
        assert not await ready(file.fileno(), select.EPOLLIN)
    assert (tmp_path / "file").read_bytes() == b"before" + CONTENT + CONTENT


async def test_a_pipe_gets_more_room_if_it_has_less():
    with ends("pipe") as (_, writer):
        with writing(writer, room=1 << 18):
            assert fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ) == 1 << 18
        with writing(writer, room=1 << 17):
            assert fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ) == 1 << 18
