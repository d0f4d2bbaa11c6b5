"""An upload that lost its client goes on where it ended: only the same one, and never as a mixture."""

import contextlib
import errno
import hashlib
import os
import random
import threading
from types import SimpleNamespace

import anyio
import anyio.from_thread
import pytest

import zcserver
from tests.raw_peer import until
from tests.server import requests
from tests.server.disks import RecordingDisk
from tests.server.requests import MIB, content_of, put, refused
from zcserver import ErrorCode
from zcserver.file_protocol import MISMATCH, NO_SPACE, PUT
from zcserver.server import FileServer, Root
from zcserver.server.disk import Disk
from zcserver.server.interrupted import MOST, InterruptedUploads
from zcserver.server.staging import Wanted

pytestmark = pytest.mark.anyio
CONTENT = random.Random(1).randbytes(4 * MIB)
# More of it than the stream's window: some of that must have been written, whatever else is in memory.
ENOUGH = 3 * MIB


def staged(served):
    return os.listdir(served / ".zcserver")


def connected(files, make_context):
    """With a small window: so little is on its way that an interrupted upload has left most of it."""
    return requests.connected(files, make_context, stream_window=256 << 10)


async def begin(connection, path="/file", content=CONTENT, nbytes=ENOUGH, **arguments):
    """An upload of which so many bytes have arrived at the server."""
    arguments = {"size": len(content), "resume": "this one", **arguments}
    stream = await connection.open(PUT, path, **arguments)
    await stream.response()
    for start in range(0, nbytes, MIB):
        completion = await stream.send(content[start : min(start + MIB, nbytes)])
    await completion
    return stream


async def interrupt(files, connection, *arguments, code=ErrorCode.CANCELLED, **options):
    """An upload that is given up with so many bytes at the server, which has noticed it."""
    stream = await begin(connection, *arguments, **options)
    stream.reset(code)
    await until(lambda: files.active == 0)


async def go_on(connection, path="/file", content=CONTENT, **arguments):
    """Send what the server says is missing of ``content``; return the offset from which on."""
    arguments = {"size": len(content), "resume": "this one", **arguments}
    stream = await connection.open(PUT, path, **arguments)
    offset = (await stream.response())["offset"]
    await stream.send(content[offset:], end=True)
    with pytest.raises(anyio.EndOfStream):
        await stream.receive()
    assert stream.committed == 1
    return offset


@pytest.fixture(params=[True, False], ids=["digest", "no digest"])
def announced(request):
    return {"digest": hashlib.sha256(CONTENT).hexdigest()} if request.param else {}


async def test_an_upload_goes_on_behind_what_was_written(served, make_context, announced):
    disk = RecordingDisk()
    with Root(served) as root:
        files = FileServer(root, writable=True, disk=disk)
        async with connected(files, make_context) as connection:
            await interrupt(files, connection, **announced)
            assert len(staged(served)) == 1
            assert MIB < await go_on(connection, **announced) <= ENOUGH
            assert disk.calls.count("create") == 1
            assert content_of(served) == {"file": CONTENT}
            assert staged(served) == []


async def test_an_upload_goes_on_after_its_connection_was_lost(served, files, make_context):
    async with connected(files, make_context) as connection:
        port = int(connection.name.rpartition(":")[2])
        with contextlib.suppress(zcserver.ConnectionLostError):
            async with zcserver.connect(port=port, context=make_context()) as lost:
                _uploading = await begin(lost)
                lost.abort()
        await until(lambda: files.active == 0)
        assert await go_on(connection) > 0
    assert content_of(served) == {"file": CONTENT}


async def test_what_lost_its_client_twice_goes_on_all_the_same(served, files, make_context):
    async with connected(files, make_context) as connection:
        await interrupt(files, connection)
        stream = await connection.open(PUT, "/file", size=len(CONTENT), resume="this one")
        first = (await stream.response())["offset"]
        stream.reset()
        await until(lambda: files.active == 0)
        assert await go_on(connection) == first
    assert content_of(served) == {"file": CONTENT}


async def test_the_same_upload_ends_one_whose_connection_only_seems_to_live(served, files, make_context):
    async with connected(files, make_context) as connection:
        stream = await begin(connection)
        assert await go_on(connection) > 0
        with refused(ErrorCode.REFUSED, "another connection goes on"):
            await stream.receive()
    assert content_of(served) == {"file": CONTENT}
    assert staged(served) == []


async def test_the_newest_goes_on_whoever_waits_besides(served, make_context):
    """The first one is in the middle of a write that takes its time."""
    in_write, go_on_writing = anyio.Event(), threading.Event()

    class SlowDisk(Disk):
        def write(self, fd, pieces, offset):
            if not in_write.is_set():
                anyio.from_thread.run_sync(in_write.set)
                go_on_writing.wait(60)
            return super().write(fd, pieces, offset)

    ends = []

    async def end_of(stream):
        try:
            await stream.response()
            ends.append("goes on")
        except zcserver.StreamResetError as error:
            ends.append(error.code)

    with Root(served) as root:
        files = FileServer(root, writable=True, disk=SlowDisk())
        async with connected(files, make_context) as connection, anyio.create_task_group() as tasks:
            stream = await connection.open(PUT, "/file", size=len(CONTENT), resume="this one")
            await stream.send(CONTENT[: 3 * MIB])
            await in_write.wait()
            for number in range(2, 6):
                waiting = await connection.open(PUT, "/file", size=len(CONTENT), resume="this one")
                tasks.start_soon(end_of, waiting)
                await until(lambda number=number: files.active == number)
            await until(lambda: len(ends) == 3)
            go_on_writing.set()
            await until(lambda: len(ends) == 4)
            assert ends == [ErrorCode.REFUSED] * 3 + ["goes on"]
            waiting.reset()


async def test_of_many_that_come_at_once_one_writes_at_a_time(served, files, make_context):
    ends = []

    async def go_on_or_yield(connection):
        try:
            await go_on(connection)
            ends.append(None)
        except zcserver.StreamResetError as error:
            ends.append(error.code)

    async with connected(files, make_context) as connection:
        await interrupt(files, connection)
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(go_on_or_yield, connection)
    assert len(ends) == 5
    assert None in ends
    assert set(ends) <= {None, ErrorCode.REFUSED}
    assert content_of(served) == {"file": CONTENT}
    assert staged(served) == []


@pytest.mark.parametrize(
    "other", [{"resume": "another"}, {"resume": None}, {"mtime_ns": 1}, {"digest": "0" * 64}]
)
async def test_another_upload_of_the_file_begins_anew(served, files, make_context, other):
    other = {"resume": "this one", **other}
    if other["resume"] is None:
        del other["resume"]
    async with connected(files, make_context) as connection:
        await interrupt(files, connection)
        stream = await connection.open(PUT, "/file", size=len(CONTENT), **other)
        assert await stream.response() == {"offset": 0}
        stream.reset()
        await until(lambda: files.active == 0)
        assert await go_on(connection) > 0  # the interrupted one is still there
    assert content_of(served) == {"file": CONTENT}


async def test_nothing_is_kept_that_was_not_asked_to_be_or_has_changed(served, files, make_context):
    async with connected(files, make_context) as connection:
        stream = await connection.open(PUT, "/file", size=len(CONTENT))
        await stream.response()
        await (await stream.send(CONTENT[:ENOUGH]))
        stream.reset()
        await until(lambda: files.active == 0)
        assert staged(served) == []
        await interrupt(files, connection, code=ErrorCode.CHANGED)
        assert staged(served) == []
        await interrupt(files, connection, nbytes=1)  # of which nothing is written yet
        assert staged(served) == []


async def test_what_was_kept_must_still_be_what_was_announced(served, files, make_context, announced):
    async with connected(files, make_context) as connection:
        await interrupt(files, connection, **announced)
        stream = await connection.open(PUT, "/file", size=len(CONTENT), resume="this one", **announced)
        offset = (await stream.response())["offset"]
        await stream.send(bytes(len(CONTENT) - offset + (not announced)), end=True)
        with refused(MISMATCH, "SHA-256" if announced else "more bytes came"):
            await stream.receive()
        assert staged(served) == []
        assert await go_on(connection, **announced) == 0
    assert content_of(served) == {"file": CONTENT}


@pytest.mark.parametrize("replaced", [True, False])
async def test_a_temporary_file_that_somebody_removed_or_replaced_is_begun_anew(
    served, files, make_context, announced, replaced
):
    async with connected(files, make_context) as connection:
        await interrupt(files, connection, **announced)
        part = served / ".zcserver" / staged(served)[0]
        part.unlink()
        if replaced:
            part.mkdir()
        assert await go_on(connection, **announced) == 0
    assert content_of(served) == {"file": CONTENT}
    assert staged(served) == ([part.name] if replaced else [])


async def test_the_oldest_go_when_there_are_too_many(served, files, make_context):
    content = CONTENT[: 3 * MIB]
    async with connected(files, make_context) as connection:
        for number in range(MOST + 1):
            await interrupt(files, connection, f"/{number}", content, 3 * MIB)
        assert len(staged(served)) == MOST
        assert await go_on(connection, f"/{MOST}", content) > 0
        assert await go_on(connection, "/1", content) > 0
        assert await go_on(connection, "/0", content) == 0


async def test_those_that_nobody_asks_for_go_after_a_day():
    now = 0.0
    kept = InterruptedUploads(clock=lambda: now)
    uploads = [SimpleNamespace(wanted=Wanted(str(number), resume="")) for number in range(2)]
    kept.keep(uploads[0])
    now = 24 * 3600.0
    kept.keep(uploads[1])
    assert kept.surplus() == []
    now += 1
    assert kept.surplus() == [uploads[0]]
    assert kept.take(uploads[0].wanted) is None
    assert kept.take(uploads[1].wanted) is uploads[1]


class Watched(FileServer):
    """``stream`` is the last request's, at the server's end."""

    async def handle(self, stream):
        self.stream = stream
        await super().handle(stream)


@pytest.mark.parametrize("fails", ["write", "sync"])
async def test_what_a_disk_has_failed_to_take_is_not_gone_on_with(served, make_context, fails):
    class FailingDisk(Disk):
        failed = False

        def fail(self):
            """The stream ends just before: so it is interrupted, too."""
            if not self.failed:
                self.failed = True
                anyio.from_thread.run_sync(files.stream.reset)
                raise OSError(errno.EIO, "as injected")

        def write(self, fd, pieces, offset):
            if fails == "write" and offset:
                self.fail()
            return super().write(fd, pieces, offset)

        def sync(self, fd):
            if fails == "sync":
                self.fail()
            super().sync(fd)

    with Root(served) as root:
        files = Watched(root, writable=True, disk=FailingDisk())
        async with connected(files, make_context) as connection:
            stream = await begin(connection, nbytes=MIB)
            await stream.send(CONTENT[MIB:], end=True)
            await until(lambda: files.active == 0)
            assert staged(served) == []
            assert await go_on(connection) == 0
    assert content_of(served) == {"file": CONTENT}


async def test_uploads_that_make_room_go_although_the_one_that_needs_it_is_given_up(
    served, make_context, monkeypatch
):
    class EndingDisk(Disk):
        def remove(self, *arguments):
            anyio.from_thread.run_sync(files.stream.reset)
            super().remove(*arguments)

    with Root(served) as root:
        files = Watched(root, writable=True, disk=EndingDisk())
        async with connected(files, make_context) as connection:
            for number in range(3):
                await interrupt(files, connection, f"/{number}")
            monkeypatch.setattr("os.fstatvfs", lambda fd: SimpleNamespace(f_bavail=0, f_frsize=4096))
            stream = await connection.open(PUT, "/huge", size=1)
            with refused(ErrorCode.CANCELLED):
                await stream.response()
            await until(lambda: files.active == 0)
            assert staged(served) == []


async def test_they_make_room_on_a_full_disk(served, files, make_context, monkeypatch):
    real = os.fstatvfs

    def full(fd):
        """Room for 16 MiB in all."""
        status = real(fd)
        used = sum(os.stat(served / ".zcserver" / name).st_size for name in staged(served))
        blocks = max(4 * MIB - used, 0) // status.f_frsize
        return SimpleNamespace(f_bavail=blocks, f_frsize=status.f_frsize)

    monkeypatch.setattr("os.fstatvfs", full)
    async with connected(files, make_context) as connection:
        await interrupt(files, connection)
        assert await go_on(connection) > 0  # only the rest of it needs room
        os.unlink(served / "file")
        await interrupt(files, connection)
        assert await put(connection, "/other", CONTENT) == 1
        with refused(NO_SPACE):
            await put(connection, "/larger", CONTENT + b"!")
    assert content_of(served) == {"other": CONTENT}


async def test_they_stay_when_what_they_hold_would_not_be_enough(served, files, make_context):
    async with connected(files, make_context) as connection:
        await interrupt(files, connection)
        with refused(NO_SPACE):
            await put(connection, "/huge", b"", size=1 << 60)
        assert await go_on(connection) > 0
    assert content_of(served) == {"file": CONTENT}


async def test_they_go_when_an_upload_of_unknown_size_has_filled_the_disk(served, make_context):
    class FullDisk(Disk):
        full = False

        def write(self, fd, pieces, offset):
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(fd, pieces, offset)

    disk = FullDisk()
    with Root(served) as root:
        files = FileServer(root, writable=True, disk=disk)
        async with connected(files, make_context) as connection:
            await interrupt(files, connection)
            disk.full = True
            with refused(NO_SPACE):
                await put(connection, "/other", b"content", size=-1)
            assert staged(served) == []


async def test_a_server_that_can_open_no_more_files_for_now_keeps_it(
    served, files, make_context, monkeypatch
):
    def exhausted(fd):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with connected(files, make_context) as connection:
        await interrupt(files, connection)
        with monkeypatch.context() as patched:
            patched.setattr("os.fstatvfs", exhausted)
            with refused(ErrorCode.LIMIT):
                await go_on(connection)
        assert await go_on(connection) > 0
    assert content_of(served) == {"file": CONTENT}


async def test_a_server_that_stops_leaves_none(served, make_context):
    with Root(served) as root, contextlib.closing(FileServer(root, writable=True)) as files:
        async with connected(files, make_context) as connection:
            await interrupt(files, connection)
            assert len(staged(served)) == 1
    assert staged(served) == []
