"""STAT, LIST, GET with ranges and validators, stable GET, DIGEST: what the file protocol promises."""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
import threading
from pathlib import Path

import anyio
import pytest

import zcserver
from tests.raw_peer import RawPeer, deadline, until
from tests.server.requests import MIB, ask, connected, descriptors_of, entries, get, names, refused
from zcserver import ErrorCode
from zcserver.file_protocol import (
    DIGEST,
    GET,
    LIST,
    NOT_A_DIRECTORY,
    NOT_A_FILE,
    PUT,
    READ_ONLY,
    REMOVE,
    STAT,
    validator_of,
)
from zcserver.kernel.calls import RESOLVE_CACHED, Kernel
from zcserver.server import FileServer, Root
from zcserver.server.refusals import refusals

pytestmark = pytest.mark.anyio


@pytest.fixture
def files(served):
    with Root(served) as root:
        yield FileServer(root)


def of(source):
    """What STAT and GET tell of a file."""
    status = source.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "validator": validator_of(status)}


# -- STAT and LIST ----------------------------------------------------------------------------------


async def test_stat_tells_what_is_there(served, files, make_context):
    (served / "file").write_bytes(b"content")
    (served / "folder").mkdir()
    (served / "link").symlink_to("file")
    os.mkfifo(served / "fifo")
    async with connected(files, make_context) as connection:
        assert await ask(connection, STAT, "/file") == {"type": "file", **of(served / "file")}
        assert await ask(connection, STAT, "/link") == {"type": "file", **of(served / "file")}
        for path, kind in (("/folder", "directory"), ("/folder/", "directory"), ("/", "directory")):
            assert (await ask(connection, STAT, path))["type"] == kind
        assert (await ask(connection, STAT, "/fifo"))["type"] == "other"
        for path in ("/none", "/file/", "/file/x"):
            with refused(ErrorCode.NOT_FOUND, "no such file"):
                await ask(connection, STAT, path)


async def test_a_file_where_a_directory_is_due_is_told(served, files, make_context):
    (served / "file").touch()
    async with connected(files, make_context) as connection:
        with refused(NOT_A_DIRECTORY, "/file is not a directory"):
            await names(connection, "/file")


async def test_the_server_s_own_directory_is_neither_listed_nor_read(served, files, make_context):
    (served / ".zcserver").mkdir()
    (served / ".zcserver" / "upload").write_bytes(b"half")
    (served / "sub" / ".zcserver").mkdir(parents=True)  # that of another root, or of another server
    (served / "sub" / ".zcserver" / "upload").write_bytes(b"half")
    (served / "link").symlink_to(".zcserver")
    (served / "inner link").symlink_to("sub/.zcserver")
    async with connected(files, make_context) as connection:
        assert await names(connection, "/", recursive=True) == ["inner link", "link", "sub"]
        assert await names(connection, "/sub") == []
        for path in ("/.zcserver", "/%2ezcserver", "/.zcserver/upload", "/sub/.zcserver/upload"):
            for method in (GET, STAT, LIST):
                with refused(ErrorCode.FORBIDDEN, "the server's own"):
                    await ask(connection, method, path)
        for path in ("/link", "/inner link"):
            with refused(ErrorCode.FORBIDDEN, "the server's own"):
                await names(connection, path)


# -- GET --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize(
    ("offset", "length"), [(0, None), (1, None), (0, 5), (4095, 4098), (3 * MIB, None), (3 * MIB, 7), (7, 0)]
)
async def test_a_range_is_sent_and_its_place_told(served, files, make_context, offset, length, stable):
    content = os.urandom(3 * MIB)
    (served / "file").write_bytes(content)
    wanted = content[offset:] if length is None else content[offset : offset + length]
    arguments = {"offset": offset, "stable": stable} | ({} if length is None else {"length": length})
    async with connected(files, make_context) as connection:
        reply, received = await get(connection, "/file", **arguments)
    assert reply == {**of(served / "file"), "offset": offset, "length": len(wanted)}
    assert received[: len(wanted)] == wanted
    if stable:
        digest = hashlib.sha256(wanted).hexdigest()
        trailer = {"algorithm": "sha256", "digest": digest, "changed": False}
        assert json.loads(received[len(wanted) :]) == trailer
    else:
        assert len(received) == len(wanted)


async def test_a_length_beyond_the_end_is_cut_there_and_an_offset_is_refused(served, files, make_context):
    (served / "file").write_bytes(b"0123456789")
    async with connected(files, make_context) as connection:
        reply, received = await get(connection, "/file", offset=8, length=2**62)
        assert (reply["length"], received) == (2, b"89")
        with refused(ErrorCode.REFUSED, "has 10 bytes"):
            await get(connection, "/file", offset=11)


async def test_only_the_state_that_the_validator_names_is_sent(served, files, make_context):
    (served / "file").write_bytes(b"content")
    async with connected(files, make_context) as connection:
        validator = of(served / "file")["validator"]
        assert (await get(connection, "/file", offset=3, validator=validator))[1] == b"tent"
        os.utime(served / "file", ns=(1, 1))
        with refused(ErrorCode.CHANGED, "fetch it anew"):
            await get(connection, "/file", offset=3, validator=validator)
        with refused(ErrorCode.CHANGED, "fetch it anew"):
            await ask(connection, DIGEST, "/file", validator=validator)


@pytest.mark.parametrize(
    "arguments",
    [{"offset": -1}, {"offset": "1"}, {"offset": True}, {"length": -1}, {"stable": 1}, {"validator": 7}],
)
async def test_arguments_that_make_no_sense_are_refused_by_name(served, files, make_context, arguments):
    (served / "file").write_bytes(b"content")
    async with connected(files, make_context) as connection:
        with refused(ErrorCode.REFUSED, next(iter(arguments))):
            await get(connection, "/file", **arguments)


async def test_a_read_only_server_says_so(files, make_context):
    async with connected(files, make_context) as connection:
        for method in (PUT, REMOVE):
            with refused(READ_ONLY, "not started writable"):
                await ask(connection, method, "/file")


# -- files that change while they are sent ----------------------------------------------------------


def truncated(source):
    os.truncate(source, 5 * MIB + 1)


def replaced(source):
    other = source.with_name("other")
    other.write_bytes(b"other")
    other.rename(source)


def removed(source):
    source.unlink()


def rewritten(source):
    with source.open("r+b") as file:
        file.write(b"other")


async def receive_all_and_change(connection, change, **arguments):
    """GET /file; call ``change`` when the first bytes are here and the last not sent. All that came."""
    stream = await connection.open(GET, "/file", **arguments)
    await stream.response()
    received = bytearray()
    async for piece in stream.chunks():
        if not received:
            change()
        received += piece
    return bytes(received)


@pytest.mark.parametrize("change", [truncated, replaced, removed, rewritten])
async def test_a_file_that_changes_while_it_is_sent_ends_in_changed(served, files, make_context, change):
    source = served / "file"
    source.write_bytes(b"\x01" * (32 * MIB))
    os.utime(source, ns=(1, 1))
    async with connected(files, make_context) as connection:
        with refused(ErrorCode.CHANGED):
            await receive_all_and_change(connection, lambda: change(source))


async def test_a_file_that_becomes_shorter_is_never_padded(served, files, make_context):
    source = served / "file"
    source.write_bytes(b"\x01" * (32 * MIB))
    received = bytearray()
    async with connected(files, make_context) as connection:
        stream = await connection.open(GET, "/file")
        with refused(ErrorCode.CHANGED):
            async for piece in stream.chunks():
                if not received:
                    os.truncate(source, 5 * MIB + 1)
                received += piece
        # The connection is as good as before.
        assert (await get(connection, "/file"))[1] == b"\x01" * (5 * MIB + 1)
    # (Pages that were in flight at the truncation may be zeroed to the end of theirs by the kernel: those
    # bytes existed, and the stream's end disowns them. No byte comes that the file never had.)
    assert len(received) < 32 * MIB


async def test_a_stable_get_of_a_changing_file_tells_exactly_what_it_sent(served, files, make_context):
    source = served / "file"
    source.write_bytes(b"\x01" * (32 * MIB))
    os.utime(source, ns=(1, 1))
    async with connected(files, make_context) as connection:
        received = await receive_all_and_change(connection, lambda: rewritten(source), stable=True)
    content, trailer = received[: 32 * MIB], json.loads(received[32 * MIB :])
    assert trailer["digest"] == hashlib.sha256(content).hexdigest()
    assert trailer["changed"] is True


async def test_a_stable_get_of_a_file_that_becomes_shorter_ends_in_changed(served, files, make_context):
    source = served / "file"
    source.write_bytes(b"\x01" * (32 * MIB))
    async with connected(files, make_context) as connection:
        with refused(ErrorCode.CHANGED, "shorter"):
            await receive_all_and_change(connection, lambda: os.truncate(source, MIB), stable=True)


async def test_a_file_that_became_shorter_before_its_first_byte_is_changed(served, make_context):
    source = served / "file"
    source.write_bytes(b"content")

    class Shrinking(Root):
        def open_file(self, path, cached=False):
            file = super().open_file(path, cached)
            os.truncate(source, 1)
            return file

    with Shrinking(served) as root:
        async with connected(FileServer(root), make_context) as connection:
            with refused(ErrorCode.CHANGED):
                await get(connection, "/file")


# -- a slow disk ------------------------------------------------------------------------------------


def slow_disk(kernel, cold, head=0):
    """``kernel`` with a disk: of ``cold`` only the ``head`` is cached; the rest comes when ``arrive`` is set.

    ``asked`` is set when somebody waits for it. Whoever reads it without being in a thread is in ``stalled``.
    """

    class SlowDisk(type(kernel)):
        arrive, asked = threading.Event(), threading.Event()
        loop = threading.get_ident()

        def __init__(self):
            self.stalled = []

        def _is_cold(self, fd, end):
            return end > head and not self.arrive.is_set() and os.path.samestat(os.fstat(fd), cold.stat())

        def page_cached(self, fd, offset):
            return not self._is_cold(fd, offset + 1)

        def splice(self, source, target, count, offset=None):
            if offset is not None and self._is_cold(source, offset + count):
                self.stalled.append(offset)
            return super().splice(source, target, count, offset)

        def _wait_for(self, fd, end):
            if self._is_cold(fd, end):
                assert threading.get_ident() != self.loop
                self.asked.set()
                assert self.arrive.wait(60)

        def splice_blocking(self, source, target, count, offset=None):
            self._wait_for(source, offset + count)
            return super().splice_blocking(source, target, count, offset)

        def pread(self, fd, count, offset):  # where the user's quota gives no pipe
            self._wait_for(fd, offset + count)
            return super().pread(fd, count, offset)

    return SlowDisk()


@contextlib.asynccontextmanager
async def beside_a_slow_disk(files, make_context, disk, streams=1):
    """A server, and a client whose ``streams`` downloads of /cold wait for the disk while the body runs."""
    with anyio.fail_after(60):
        async with (
            zcserver.serve(files.handle, port=0, context=make_context(kernel=disk)) as server,
            zcserver.connect(port=server.port, context=make_context()) as slow,
            anyio.create_task_group() as tasks,
        ):
            received = []

            async def fetch_cold():
                received.append((await get(slow, "/cold"))[1])

            for _ in range(streams):
                tasks.start_soon(fetch_cold)
            await until(lambda: files.active == streams)
            await anyio.to_thread.run_sync(disk.asked.wait, 60)
            try:
                yield server, slow, received
                assert disk.stalled == []
            finally:
                disk.arrive.set()


async def test_a_cold_file_delays_nothing_else_on_its_connection(served, files, make_context, kernel):
    cold, warm = served / "cold", served / "warm"
    cold.write_bytes(os.urandom(3 * MIB))
    warm.write_bytes(os.urandom(3 * MIB))
    disk = slow_disk(kernel, cold)
    async with beside_a_slow_disk(files, make_context, disk) as (_, connection, received):
        # The disk is at work, and will be until we say so.
        assert (await get(connection, "/warm"))[1] == warm.read_bytes()
        assert (await ask(connection, STAT, "/cold"))["size"] == 3 * MIB
        assert await names(connection, "/") == ["cold", "warm"]
        assert not received
    assert received == [cold.read_bytes()]


# As many as there are pipes for files, threads that read and threads that open; and one more.
@pytest.mark.parametrize("streams", [1, 41])
async def test_cold_files_delay_neither_another_client_s_cached_ones_nor_its_pings(
    served, files, make_context, kernel, streams
):
    cold, warm, small = served / "cold", served / "warm", served / "small"
    cold.write_bytes(os.urandom(MIB))
    warm.write_bytes(os.urandom(3 * MIB))
    small.write_bytes(b"small")
    disk = slow_disk(kernel, cold)
    async with beside_a_slow_disk(files, make_context, disk, streams) as (server, _, received):
        with await RawPeer.connect(server.port) as peer:
            for token in range(1, 4):
                peer.codec.ping(token)
                await peer.flush()
                await peer.read_until(lambda due=token: peer.log.count("Pong") == due)
                stream = await peer.open(path="/warm")
                await peer.read_until(lambda stream=stream: stream.recv_ended)
                assert b"".join(peer.messages[stream.id]) == warm.read_bytes()
        async with zcserver.connect(port=server.port, context=make_context()) as fast:
            assert (await get(fast, "/small"))[1] == b"small"
            assert (await ask(fast, STAT, "/cold"))["size"] == MIB
            assert await names(fast, "/") == ["cold", "small", "warm"]
        assert not received
    assert received == [cold.read_bytes()] * streams


async def test_a_piece_of_which_only_the_head_is_cached_is_read_by_a_thread(
    served, files, make_context, kernel
):
    cold = served / "cold"
    cold.write_bytes(os.urandom(MIB))
    disk = slow_disk(kernel, cold, head=MIB - 4096)  # the kernel is reading ahead: the rest is on its way
    async with beside_a_slow_disk(files, make_context, disk) as (_, connection, received):
        assert (await ask(connection, STAT, "/cold"))["size"] == MIB
    assert received == [cold.read_bytes()]


async def test_a_disk_on_which_even_opening_waits_delays_no_other_root(tmp_path, make_context, kernel):
    arrive, waiting = threading.Event(), threading.Semaphore(0)

    class SlowToOpen(type(kernel)):
        def openat2(self, directory, path, flags, mode, resolve):
            if resolve & RESOLVE_CACHED:
                raise BlockingIOError
            waiting.release()
            assert arrive.wait(60)
            return super().openat2(directory, path, flags, mode, resolve)

    for name in ("slow", "fast"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(name.encode())
    with (
        Root(tmp_path / "slow", SlowToOpen(), name="slow") as slow,
        Root(tmp_path / "fast", name="fast") as fast,
    ):
        async with (
            connected(FileServer(slow, fast), make_context) as connection,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(50):
                tasks.start_soon(ask, connection, STAT, "/slow/file")
            await anyio.to_thread.run_sync(waiting.acquire)
            try:
                assert (await ask(connection, STAT, "/fast/file"))["size"] == 4
                assert await names(connection, "/fast") == ["file"]
                assert (await get(connection, "/fast/file"))[1] == b"fast"
            finally:
                arrive.set()


async def test_a_cold_get_that_is_abandoned_leaves_nothing_behind(served, files, make_context, kernel):
    cold = served / "cold"
    cold.write_bytes(os.urandom(3 * MIB))
    disk = slow_disk(kernel, cold)
    async with connected(files, make_context, kernel=disk) as connection:
        stream = await connection.open(GET, "/cold")
        await stream.response()
        await anyio.to_thread.run_sync(disk.asked.wait, 60)
        stream.reset()
        disk.arrive.set()
        while files.active:
            await anyio.lowlevel.checkpoint()
        assert (await get(connection, "/cold"))[1] == cold.read_bytes()
        with deadline():
            await until(lambda: not descriptors_of(cold))


# -- file systems and kernels that cannot say what is cached ------------------------------------------


def reads_counted(kernel):
    """``kernel`` on a file system that answers EOPNOTSUPP to RWF_NOWAIT; ``threads`` read for it."""

    class Silent(type(kernel)):
        threads = 0

        def page_cached(self, fd, offset):
            return None

        def splice_blocking(self, *arguments):
            assert threading.current_thread() is not threading.main_thread()
            self.threads += 1
            return super().splice_blocking(*arguments)

    return Silent()


async def test_a_file_system_that_cannot_tell_is_read_by_threads(served, files, make_context, kernel):
    content = os.urandom(3 * MIB)
    (served / "file").write_bytes(content)
    silent = reads_counted(kernel)
    async with connected(files, make_context, kernel=silent) as connection:
        assert (await get(connection, "/file"))[1] == content
        assert connection.context.splices_files is False or silent.threads > 0


@pytest.mark.parametrize("nbytes", [5, 3 * MIB])
async def test_a_file_system_that_cannot_tell_closes_its_files_in_threads(
    served, make_context, kernel, monkeypatch, nbytes
):
    source = served / "file"
    source.write_bytes(os.urandom(nbytes))
    status = source.stat()
    closed_by = []

    def close(fd, close=os.close):
        if os.path.samestat(os.fstat(fd), status):
            closed_by.append(threading.current_thread())
        close(fd)

    with Root(served) as root:
        root.local = False  # such as one on a network
        files = FileServer(root)
        async with connected(files, make_context, kernel=reads_counted(kernel)) as connection:
            monkeypatch.setattr(os, "close", close)
            assert len((await get(connection, "/file"))[1]) == nbytes
            # The server's own; the duplicate that is sent from, and what the last look at the path opened.
            handles = 1 if nbytes == 5 else 3
            await until(lambda: len(closed_by) >= handles)
            monkeypatch.undo()
    assert threading.main_thread() not in closed_by


@pytest.fixture(params=[0, 5, 64 * 1024, 3 * MIB])
def tmpfs(request):
    """A directory on a tmpfs, and the content of the file in it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        content = os.urandom(request.param)
        Path(directory, "file").write_bytes(content)
        yield directory, content


async def test_files_on_a_tmpfs_are_served(make_context, tmpfs):
    directory, content = tmpfs
    with Root(directory) as root:
        async with connected(FileServer(root), make_context) as connection:
            assert (await get(connection, "/file"))[1] == content
            half = len(content) // 2
            assert (await get(connection, "/file", offset=half))[1] == content[half:]


async def test_a_file_of_which_the_size_is_not_known_is_refused_not_sent_as_an_empty_one(make_context):
    with Root("/proc/sys/kernel") as root:
        async with connected(FileServer(root), make_context) as connection:
            assert (await ask(connection, STAT, "/ostype"))["size"] == 0
            for arguments in ({}, {"stable": True}, {"length": 0}):
                with refused(NOT_A_FILE, "/ostype has content but says that its size is 0"):
                    await get(connection, "/ostype", **arguments)
            with refused(NOT_A_FILE, "/ostype has content"):
                await ask(connection, DIGEST, "/ostype")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
async def test_files_are_served_and_refused_as_ever_without_openat2(served, make_context, number):
    opened_by = set()

    class Without(Kernel):
        def openat2(self, *arguments):
            opened_by.add(threading.current_thread())
            raise OSError(number, os.strerror(number))

    (served / "sub").mkdir()
    for name in ("small", "sub/large"):
        (served / name).write_bytes(os.urandom(5 if name == "small" else 3 * MIB))
    (served / "out").symlink_to("/etc/hostname")
    with Root(served, Without()) as root:
        async with connected(FileServer(root), make_context) as connection:
            for name in ("small", "sub/large"):
                assert (await get(connection, f"/{name}"))[1] == (served / name).read_bytes()
            assert await names(connection, "/", recursive=True) == ["out", "small", "sub", "sub/large"]
            for path in ("/out", "/../etc/hostname"):
                with refused(ErrorCode.FORBIDDEN):
                    await get(connection, path)
    assert opened_by - {threading.main_thread()}  # the walk in parts, which may wait for the disk


# -- several roots, and what is kept to itself -------------------------------------------------------


@pytest.fixture
def several(tmp_path):
    for name in ("b", "ä b", "a"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "file").write_bytes(name.encode())
    with (
        Root(tmp_path / "b", name="b") as b,
        Root(tmp_path / "ä b", name="ä b") as umlaut,
        Root(tmp_path / "a", name="a") as a,
    ):
        yield FileServer(b, umlaut, a)


async def test_several_roots_are_directories_of_one_that_holds_nothing_else(several, make_context):
    async with connected(several, make_context) as connection:
        assert await names(connection, "/") == ["a", "b", "ä b"]
        assert await names(connection, "/", recursive=True) == [
            "a", "a/sub", "a/sub/file", "b", "b/sub", "b/sub/file", "ä b", "ä b/sub", "ä b/sub/file",
        ]  # fmt: skip
        assert (await ask(connection, STAT, "/"))["type"] == "directory"
        assert (await ask(connection, STAT, "/a"))["type"] == "directory"
        assert await names(connection, "/b/sub") == ["file"]
        for name in ("a", "b", "ä b"):
            assert (await get(connection, f"/{name}/sub/file"))[1] == name.encode()


async def test_a_root_that_cannot_be_read_is_told_in_the_listing_of_all(several, tmp_path, make_context):
    class Unreadable(Root):
        def open_directory(self, path):
            with refusals(path):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with Root(tmp_path / "a", name="a") as a, Unreadable(tmp_path / "b", name="b") as b:
        async with connected(FileServer(a, b), make_context) as connection:
            *readable, last = await entries(connection, "/", recursive=True)
    assert [entry["path"] for entry in readable] == ["a", "a/sub", "a/sub/file"]
    assert (last["path"], last["error"]) == ("b", "the server may not read /b")


async def test_out_of_descriptors_in_the_middle_of_a_get_is_said(served, files, make_context, monkeypatch):
    def dup(fd):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    (served / "file").write_bytes(bytes(MIB))
    async with connected(files, make_context) as connection:
        monkeypatch.setattr("zcserver.sending.files.os.dup", dup)
        with refused(ErrorCode.LIMIT, "too many files open"):
            await get(connection, "/file")


async def test_nothing_is_found_beside_or_between_several_roots(several, make_context):
    async with connected(several, make_context) as connection:
        for path in ("/sub/file", "/c", "/c/sub/file", "/ab/sub/file", "/a/b/sub/file"):
            with refused(ErrorCode.NOT_FOUND, path):
                await get(connection, path)
        with refused(ErrorCode.FORBIDDEN):
            await get(connection, "/a/../b/sub/file")
        with refused(ErrorCode.FORBIDDEN, "name one of them"):
            await get(connection, "/")
        with refused(NOT_A_FILE):
            await get(connection, "/a")


def test_roots_that_do_not_go_together_are_misuse(tmp_path):
    from zcserver import MisuseError

    with Root(tmp_path) as unnamed, Root(tmp_path, name="a") as a, Root(tmp_path, name="a") as same:
        for roots in ([], [unnamed, a], [a, same]):
            with pytest.raises(MisuseError):
                FileServer(*roots)
    for name in ("a/b", "..", ".", "a\0b"):
        with pytest.raises(MisuseError, match="name of a root"):
            Root(tmp_path, name=name)


async def test_hidden_names_are_served_unless_the_server_keeps_them(served, make_context):
    (served / ".secret").write_bytes(b"secret")
    (served / ".git" / "sub").mkdir(parents=True)
    (served / "sub").mkdir()
    (served / "sub" / ".hidden").touch()
    with Root(served) as root:
        async with connected(FileServer(root), make_context) as connection:
            assert (await get(connection, "/.secret"))[1] == b"secret"
            assert await names(connection, "/") == [".git", ".secret", "sub"]
    with Root(served, hidden=False) as root:
        async with connected(FileServer(root), make_context) as connection:
            assert await names(connection, "/", recursive=True) == ["sub"]
            for path in ("/.secret", "/.git/sub", "/sub/.hidden", "/sub/%2Ehidden", "/.none"):
                with refused(ErrorCode.FORBIDDEN, "begin with a dot"):
                    await get(connection, path)


async def test_links_are_followed_within_the_root_unless_the_policy_refuses(served, make_context):
    (served / "sub").mkdir()
    (served / "sub" / "file").write_bytes(b"content")
    (served / "link").symlink_to("sub/file")
    (served / "folder").symlink_to("sub")
    with Root(served, links="refuse") as root:
        async with connected(FileServer(root), make_context) as connection:
            assert await names(connection, "/") == ["folder", "link", "sub"]
            for method, path in ((GET, "/link"), (GET, "/folder/file"), (STAT, "/link"), (LIST, "/folder")):
                with refused(ErrorCode.FORBIDDEN, "symbolic link"):
                    await ask(connection, method, path)
            assert (await get(connection, "/sub/file"))[1] == b"content"
    with Root(served, links="follow") as root:
        async with connected(FileServer(root), make_context) as connection:
            assert (
                (await get(connection, "/link"))[1]
                == (await get(connection, "/folder/file"))[1]
                == b"content"
            )


async def test_a_disk_that_fails_is_told_in_words(served, make_context):
    class FailingDisk(Kernel):
        def openat2(self, *arguments):
            raise OSError(5, "Input/output error")

    (served / "file").touch()
    with Root(served, FailingDisk()) as root:
        async with connected(FileServer(root), make_context) as connection:
            from zcserver.file_protocol import IO_ERROR

            with refused(IO_ERROR, "the server's disk failed to read /file: Input/output error"):
                await get(connection, "/file")
