"""The peer's socket holds our very pages, whatever TCP has acknowledged, and nothing was copied."""

import errno
import mmap
import os
import threading

import anyio
import pytest

from tests.raw_peer import MIB, in_socket, joined, serving, until
from zcserver.kernel.calls import memory_at, pointer_to
from zcserver.sending.slab import PLACES

pytestmark = pytest.mark.anyio
SIZE = 64 * 1024  # fits the peer's receive buffer with room to spare


async def fill(connection, size, byte):
    buffer = await connection.acquire(size)
    buffer.view[:] = byte * size
    return buffer


async def test_what_is_written_after_tcp_acknowledged_is_what_the_peer_reads(make_context):
    context = make_context()
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        connection = stream.connection
        # A stranger's pages travel by reference once it holds a megabyte.
        with await connection.acquire(MIB):
            buffer = await fill(connection, SIZE, b"A")
            completion = await stream.send(buffer)
            await until(lambda: in_socket(stream))
            assert not completion.done
            memory_at(pointer_to(buffer.address), SIZE)[:] = b"B" * SIZE
            await peer.read_until(lambda: theirs.id in peer.messages)
            await completion.wait()
        by_reference = context.capabilities.vmsplice == "reference"
        assert peer.messages[theirs.id] == [(b"B" if by_reference else b"A") * SIZE]
        statistics = connection.statistics
        assert statistics.copied_bytes == (0 if by_reference else SIZE)
        assert statistics.reference_bytes == (SIZE if by_reference else 0)


async def test_megabytes_go_by_reference_without_a_copied_byte(make_context):
    context = make_context()
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        connection = stream.connection
        messages = [bytes([65 + index]) * MIB for index in range(8)]
        completions = []
        for message in messages:
            buffer = await fill(connection, MIB, message[:1])
            completions.append(await stream.send(buffer))
        await peer.read_until(lambda: len(peer.messages.get(theirs.id, ())) == len(messages))
        await completions[-1].wait()
        assert peer.messages[theirs.id] == messages
        total = len(messages) * MIB
        statistics = connection.statistics
        assert statistics.reference_bytes + statistics.copied_bytes == total
        if context.by_reference:
            assert statistics.copied_bytes == 0


async def test_headers_find_room_although_the_pool_is_all_in_use(make_context):
    """More messages than a page holds headers, never none in flight, and no page left for a second one."""
    context = make_context(pool_size=4 * MIB)
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        connection = stream.connection
        with await connection.acquire(MIB), await connection.acquire(MIB - 3 * SIZE):
            kept = await connection.acquire_many([SIZE, SIZE, 4096])
            rest = []
            while (page := context.pool.try_acquire(4096, connection.principal, "the rest")) is not None:
                rest.append(page)
            for buffer in kept:
                buffer.release()
            before = await stream.send(await fill(connection, SIZE, b"m"))
            for number in range(1, 2 * PLACES):
                last = await stream.send(await fill(connection, SIZE, b"m"))
                while len(peer.messages.get(theirs.id, ())) < number:
                    await anyio.wait_readable(peer.sock)
                    peer.read_now(most=4096)
                await peer.answer()
                await before.wait()
                before = last
            for page in rest:
                page.release()
        statistics = connection.statistics
        assert statistics.reference_bytes + statistics.copied_bytes == 2 * PLACES * SIZE
        if context.by_reference:
            assert statistics.copied_bytes == 0


async def test_memory_straight_from_the_pool_goes_by_whatever_lane_there_is(make_context):
    context = make_context()
    async with joined(context, make_context(), trust_peer=True) as ends:
        stream, theirs = await ends.stream()
        connection = stream.connection
        buffer = await connection.context.pool.acquire(SIZE, connection.principal, "a thread, say")
        buffer.view[:] = b"p" * SIZE
        completion = await stream.send(buffer)
        assert bytes(await theirs.receive()) == b"p" * SIZE
        await completion.wait()
        assert connection.statistics.copied_bytes == (0 if context.by_reference else SIZE)


async def test_the_pages_of_a_file_are_in_flight_in_the_same_sense(make_context, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"A" * SIZE)
    context = make_context()
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        with path.open("r+b", buffering=0) as file:
            completion = await stream.send_file(file)
            await until(lambda: in_socket(stream))
            file.write(b"B" * SIZE)
        await peer.read_until(lambda: theirs.id in peer.messages)
        await completion.wait()
        assert peer.messages[theirs.id] == [b"B" * SIZE]
        assert stream.connection.statistics.file_bytes == SIZE
        assert stream.connection.statistics.copied_bytes == 0


async def test_without_a_descriptor_for_the_pipe_the_same_bytes_are_copied(make_context, kernel, monkeypatch):
    context = make_context()
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        buffer = await fill(stream.connection, MIB, b"A")

        def none_left():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr(kernel, "pipe", none_left)
        completion = await stream.send(buffer)
        await peer.read_until(lambda: theirs.id in peer.messages)
        await completion.wait()
        assert peer.messages[theirs.id] == [b"A" * MIB]
        assert stream.connection.statistics.reference_bytes == 0


async def test_a_file_goes_through_whatever_pipe_the_users_quota_leaves(
    make_context, kernel, monkeypatch, tmp_path
):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(MIB))
    resize = kernel.set_pipe_size

    def within_quota(fd, size):
        if size > 16 * 4096:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return resize(fd, size)

    monkeypatch.setattr(kernel, "set_pipe_size", within_quota)
    async with serving(make_context()) as served:
        stream, peer, theirs = await served.peer()
        received = peer.messages.setdefault(theirs.id, [])
        for number in range(1, 4):
            with path.open("rb") as file:
                completion = await stream.send_file(file)
            await peer.read_until(lambda number=number: len(received) == number)
            await completion.wait()
        assert received == [path.read_bytes()] * 3
        assert stream.connection.statistics.file_bytes == 3 * MIB


@pytest.mark.parametrize("trusting", [True, False])
async def test_a_mapping_is_read_from_the_disk_by_a_thread_and_only_while_it_is_cold(
    make_context, kernel, tmp_path, trusting
):
    class Watched(type(kernel)):
        def fault_in(self, address, length):
            faults.append(threading.current_thread() is threading.main_thread())
            super().fault_in(address, length)

    faults: list[bool] = []
    context = make_context(kernel=Watched())
    path = tmp_path / "file"
    path.write_bytes(os.urandom(MIB))
    with path.open("rb") as file:
        whole = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    async with joined(context, trust_peer=trusting) as ends:
        ours, theirs = await ends.stream()
        for part in (whole, whole, whole[MIB // 2 :], whole[:100]):
            await ours.send(part)
            assert bytes(await theirs.receive()) == part
    assert faults == [False]
