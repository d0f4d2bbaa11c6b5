"""The client library over real connections, on every loop and lane."""

import contextlib
import errno
import hashlib
import mmap
import os
import stat
import threading

import anyio
import anyio.to_thread
import numpy
import pytest

import zcserver
from tests.client.connected import MIB, AbandonedError, AfterBytes, abandon, client_for, client_of, filled
from tests.trees import content_of, make_tree
from zcserver import Client, ErrorCode, StreamResetError
from zcserver.client import Address, ChangedError, UrlError, VerificationError, parse_url
from zcserver.client.partial import Origin, PartialFile
from zcserver.client.selection import Selection
from zcserver.errors import ConnectionLostError, MisuseError
from zcserver.file_protocol import EXISTS, MISMATCH, NOT_EMPTY
from zcserver.server import FileServer, Root
from zcserver.server.disk import Disk

pytestmark = pytest.mark.anyio


# -- reading -----------------------------------------------------------------------------------------


async def test_bytes_are_read_straight_into_an_array(served, make_context):
    content = filled(served / "file", 3 * MIB + 5)
    array = numpy.zeros((3, MIB), dtype=numpy.uint8)
    async with client_for(served, make_context) as client:
        assert await client.read_into("/file", array) == 3 * MIB
        assert array.tobytes() == content[: 3 * MIB]
        tail = bytearray(100)
        assert await client.read_into("/file", tail, offset=len(content) - 10) == 10
        assert tail == content[-10:] + bytes(90)
        assert await client.read_into("/file", bytearray()) == 0
        assert await client.read("/file", 5, 10) == content[5:15]
        with pytest.raises(MisuseError, match="read-only"):
            await client.read_into("/file", b"constant")


async def test_bytes_are_read_straight_into_a_mapping_that_can_be_closed_at_once(served, local, make_context):
    content = filled(served / "file", 2 * MIB)
    with (local / "copy").open("w+b") as file:
        file.truncate(2 * MIB)
        async with client_for(served, make_context) as client:
            with mmap.mmap(file.fileno(), 0) as mapping:  # BufferError if anybody still had a view of it
                assert await client.read_into("/file", mapping) == 2 * MIB
    assert (local / "copy").read_bytes() == content


async def test_the_borders_of_messages_do_not_show_in_memory(served, make_context):
    content = filled(served / "file", 2 * MIB)
    array = numpy.zeros(3 * MIB, dtype=numpy.uint8)
    async with client_for(served, make_context, rate=8 * MIB) as client:  # makes several messages of it
        assert await client.read_into("/file", array) == 2 * MIB
        assert array[: 2 * MIB].tobytes() == content
        assert not array[2 * MIB :].any()
        async with client.open("/file") as file:
            sizes = [1, 100_000, MIB, 3 * MIB]
            assert b"".join([await file.read(size) for size in sizes]) == content


async def test_memory_in_pieces_is_refused(served, make_context):
    filled(served / "file", 100)
    async with client_for(served, make_context) as client:
        with pytest.raises(MisuseError, match="cannot read into ndarray"):
            await client.read_into("/file", numpy.zeros((10, 10), dtype=numpy.uint8)[:, ::2])


async def test_a_read_into_memory_fails_with_the_servers_word_when_the_file_changes(served, make_context):
    filled(served / "file", 2 * MIB)
    async with client_for(served, make_context, rate=8 * MIB) as client, client.open("/file") as file:
        await file.read(10)
        (served / "file").write_bytes(b"another")
        with pytest.raises(StreamResetError) as caught:
            await file.read()
    assert caught.value.code == ErrorCode.CHANGED


async def test_more_bytes_than_were_announced_are_an_error(make_context):
    async def handle(stream):
        await stream.reply(length=3)
        await stream.send(b"four", end=True)

    async with client_of(handle, make_context) as client:
        with pytest.raises(VerificationError, match="more bytes came than were announced"):
            await client.read_into("/file", bytearray(10))


async def test_a_file_is_read_like_a_local_one(served, make_context):
    content = filled(served / "file", 2 * MIB + 7)
    async with client_for(served, make_context) as client, client.open("/file") as file:
        assert (file.size, file.mtime_ns) == (len(content), (served / "file").stat().st_mtime_ns)
        assert await file.read(10) == content[:10]
        assert await file.read(MIB) == content[10 : 10 + MIB]
        assert await file.seek(-20, os.SEEK_END) == len(content) - 20
        assert await file.read(5) == content[-20:-15]
        assert await file.seek(5, os.SEEK_CUR) == file.tell() == len(content) - 10
        memory = bytearray(64)
        assert await file.readinto(memory) == 10
        assert memory[:10] == content[-10:]
        assert await file.read() == b""
        await file.seek(0)
        assert b"".join([chunk async for chunk in file]) == content
        with pytest.raises(MisuseError, match="before the beginning"):
            await file.seek(-1)


async def test_all_reads_of_an_open_file_see_one_state_of_it(served, make_context):
    filled(served / "file", 1000)
    async with client_for(served, make_context) as client, client.open("/file") as file:
        await file.read(10)
        (served / "file").write_bytes(b"another one")
        await file.seek(5)
        with pytest.raises(StreamResetError) as caught:
            await file.read(10)
    assert caught.value.code == ErrorCode.CHANGED


@pytest.mark.parametrize("path", ["/", "/folder", "/folder/", "/fifo", "/none", "/file/", "/empty/"])
async def test_what_cannot_be_fetched_cannot_be_read_either(served, local, make_context, path):
    filled(served / "file", 10)
    (served / "empty").touch()
    (served / "folder").mkdir()
    os.mkfifo(served / "fifo")
    refusals = []
    async with client_for(served, make_context) as client:
        for attempt in (client.fetch(path, local / "copy"), client.read(path), client.read(path, 0, 0)):
            with pytest.raises(StreamResetError) as caught:
                await attempt
            refusals.append((caught.value.code, caught.value.reason))
        assert await client.read("/empty") == b""
        async with client.open("/empty") as file:
            assert [chunk async for chunk in file] == []
    assert refusals == [refusals[0]] * 3


async def test_a_file_that_hides_its_size_is_not_taken_for_an_empty_one(make_context):
    with (
        Root("/proc/sys/kernel") as root,
        contextlib.closing(FileServer(root)) as files,
        anyio.fail_after(60),
    ):
        async with (
            zcserver.serve(files.handle, port=0, context=make_context()) as server,
            Client(f"zc://127.0.0.1:{server.port}", context=make_context()) as client,
        ):
            with pytest.raises(StreamResetError, match="says that its size is 0"):
                await client.read("/ostype")


async def test_a_file_goes_to_a_descriptor_as_a_whole_or_in_part(served, local, make_context):
    content = filled(served / "file", 3 * MIB)
    async with client_for(served, make_context) as client:
        with (local / "copy").open("wb") as file:
            assert await client.fetch_to("/file", file.fileno()) == len(content)
            assert await client.fetch_to("/file", file.fileno(), 100, 50) == 50
    assert (local / "copy").read_bytes() == content + content[100:150]


async def test_a_unix_socket_is_a_url_too(served, tmp_path, make_context):
    filled(served / "file", 10)
    with Root(served) as root, anyio.fail_after(60):
        path = str(tmp_path / "s")
        async with (
            zcserver.serve(FileServer(root).handle, paths=[path], context=make_context()),
            Client("zc+unix://" + path.replace("/", "%2F"), context=make_context()) as client,
        ):
            assert (await client.stat("/file")).size == 10


async def test_nobody_there_is_an_error_at_once(make_context, tmp_path):
    with pytest.raises(ConnectionLostError):
        async with Client(f"zc+unix://{str(tmp_path / 'none').replace('/', '%2F')}", context=make_context()):
            pass


# -- resuming ----------------------------------------------------------------------------------------


async def test_an_abandoned_download_goes_on_where_it_stopped(served, local, make_context):
    content = filled(served / "file", 12 * MIB)
    async with client_for(served, make_context) as client:
        with pytest.raises(AbandonedError):
            await client.fetch("/file", local / "copy", progress=AfterBytes(6 * MIB, abandon))
    assert sorted(os.listdir(local)) == [".copy.zcfrom", ".copy.zcpart"]
    have = (local / ".copy.zcpart").stat().st_size
    assert 0 < have < len(content)
    async with client_for(served, make_context) as client:
        done = await client.fetch("/file", local / "copy", verify=True)
    assert done.resumed == have
    assert (local / "copy").read_bytes() == content
    assert os.listdir(local) == ["copy"]


async def test_a_stable_fetch_keeps_a_file_that_was_written_to_meanwhile(served, local, make_context):
    content = filled(served / "file", 8 * MIB)

    def append():
        with (served / "file").open("ab") as file:
            file.write(b"more")

    async with client_for(served, make_context, rate=64 * MIB) as client:  # not sent before it is changed
        leave_partial(local, b"old", "1-2-1000", 1000)  # is not gone on from
        done = await client.fetch("/file", local / "copy", stable=True, progress=AfterBytes(1, append))
        assert (done.changed, done.nbytes, done.resumed) == (True, 8 * MIB, 0)
        assert (local / "copy").read_bytes() == content
        assert done.digest == hashlib.sha256(content).hexdigest()
        assert os.listdir(local) == ["copy"]
        report = await client.fetch_tree("/", local / "tree", stable=True)
        assert (report.files, report.changed, report.failures) == (1, [], [])
    assert (local / "tree" / "file").read_bytes() == content + b"more"


def leave_partial(local, content, validator, size):
    partial = PartialFile(local / "copy")
    assert partial.find() is None
    partial.open(Origin("/file", validator, size))
    partial.write([memoryview(content)])
    partial.keep()


async def test_only_the_rest_is_fetched_even_when_there_is_none(served, local, make_context):
    content = filled(served / "file", 1000)
    async with client_for(served, make_context) as client:
        validator = (await client.stat("/file")).validator
        for have in (1, 500, 1000):
            leave_partial(local, content[:have], validator, 1000)
            done = await client.fetch("/file", local / "copy")
            assert (done.resumed, (local / "copy").read_bytes()) == (have, content)


async def test_a_changed_file_is_refused_with_the_reason_or_begun_anew(served, local, make_context):
    content = filled(served / "file", 1000)
    async with client_for(served, make_context) as client:
        leave_partial(local, b"old", "1-2-1000", 1000)
        with pytest.raises(ChangedError, match=r"first 3 bytes.*has changed.*restart"):
            await client.fetch("/file", local / "copy")
        await client.fetch("/file", local / "copy", restart=True)
    assert (local / "copy").read_bytes() == content
    assert os.listdir(local) == ["copy"]


def test_what_a_kill_between_two_calls_leaves_is_resumable_or_ignored(tmp_path):
    """Every call that changes the disk, in turn, is the last one that is made."""
    calls = ("ftruncate", "pwritev", "replace", "utime", "flock")
    for count in range(1, 12):
        directory = tmp_path / str(count)
        directory.mkdir()
        pid = os.fork()
        if not pid:
            _die_at(count, calls, directory / "file")
        status = os.waitpid(pid, 0)[1]
        partial = PartialFile(directory / "file")
        beginning = partial.find()
        if beginning is not None:
            assert (directory / ".file.zcpart").read_bytes() == b"0123456789"[: beginning.nbytes]
        if (directory / "file").exists():
            assert (directory / "file").read_bytes() == b"0123456789"
        partial.open(Origin("/file", "v", 10), beginning.nbytes if beginning is not None else 0)
        partial.write([memoryview(b"0123456789")[partial.written :]])
        partial.commit(0)
        assert (directory / "file").read_bytes() == b"0123456789"
        assert os.listdir(directory) == ["file"]
        if not status:
            break
    else:
        pytest.fail("the writer never came to its end")


def _die_at(count, calls, target):
    import fcntl

    left = [count]

    def counted(call):
        def wrapper(*arguments, **named):
            left[0] -= 1
            if not left[0]:
                os._exit(1)
            return call(*arguments, **named)

        return wrapper

    for name in calls:
        module = fcntl if name == "flock" else os
        setattr(module, name, counted(getattr(module, name)))
    partial = PartialFile(target)
    partial.find()
    partial.open(Origin("/file", "v", 10))
    for start in (0, 4, 8):
        partial.write([memoryview(b"0123456789"[start : start + 4])])
    partial.commit(0)
    os._exit(0)


def test_two_downloads_to_one_target_do_not_mix(tmp_path):
    first, second = PartialFile(tmp_path / "file"), PartialFile(tmp_path / "file")
    first.find()
    first.open(None)
    second.find()
    with pytest.raises(OSError, match="another download") as caught:
        second.open(None)
    assert caught.value.errno == errno.EBUSY
    first.discard()
    second.open(None)
    second.discard()
    assert not os.listdir(tmp_path)


# -- writing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [0, 1, 9 * MIB + 17])
async def test_a_file_is_sent_whole_with_its_time(served, local, make_context, nbytes):
    content = filled(local / "file", nbytes)
    os.utime(local / "file", ns=(1, 1_600_000_000_123_456_789))
    async with client_for(served, make_context) as client:
        done = await client.put(local / "file", "/there", verify=True)
    assert done.nbytes == nbytes
    assert (served / "there").read_bytes() == content
    assert (served / "there").stat().st_mtime_ns == 1_600_000_000_123_456_789


async def test_a_file_that_is_not_in_the_page_cache_is_sent_too(served, local, make_context):
    content = filled(local / "file", 24 * MIB)
    async with client_for(served, make_context) as client:
        with (local / "file").open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        await client.put(local / "file", "/there")
    assert (served / "there").read_bytes() == content


@pytest.mark.parametrize("path", ["/dev/null", "/proc/self/status"])
async def test_what_is_no_file_to_be_sent_says_how_to_send_it(served, make_context, path):
    async with client_for(served, make_context) as client:
        with pytest.raises(OSError, match="send it as standard input") as caught:
            await client.put(path, "/there")
        assert caught.value.filename == path
    assert not (served / "there").exists()


async def test_memory_is_sent_like_a_file(served, make_context):
    array = numpy.arange(MIB, dtype=numpy.float64)
    async with client_for(served, make_context) as client:
        await client.put(array, "/array", mtime_ns=5)
        await client.put(b"", "/nothing")
    assert (served / "array").read_bytes() == array.tobytes()
    assert (served / "array").stat().st_mtime_ns == 5
    assert (served / "nothing").read_bytes() == b""


@pytest.mark.parametrize("nbytes", [0, 3 * MIB + 1])
async def test_what_a_descriptor_gives_is_sent_to_its_end(served, local, make_context, nbytes):
    content = filled(local / "file", nbytes)
    source, target = os.pipe()

    def write():
        with open(target, "wb") as pipe:
            pipe.write(content)

    async with client_for(served, make_context) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, write)
        with os.fdopen(source, "rb", buffering=0) as pipe:
            assert (await client.put(pipe.fileno(), "/piped", mtime_ns=7)).nbytes == nbytes
        with (local / "file").open("rb") as file:
            await client.put(file.fileno(), "/redirected")
            with pytest.raises(MisuseError, match="SHA-256"):
                await client.put(file.fileno(), "/file", verify=True)
    assert (served / "piped").read_bytes() == (served / "redirected").read_bytes() == content
    assert (served / "piped").stat().st_mtime_ns == 7


async def test_a_put_can_insist_on_what_it_replaces(served, make_context):
    async with client_for(served, make_context) as client:
        await client.put(b"one", "/file", create=True)
        with pytest.raises(StreamResetError, match=r"\(EXISTS\)") as caught:
            await client.put(b"two", "/file", create=True)
        assert caught.value.code == EXISTS
        with pytest.raises(StreamResetError) as caught:
            await client.put(b"two", "/file", validator="1-2-3")
        assert caught.value.code == ErrorCode.CHANGED
        await client.put(b"two", "/file", validator=(await client.stat("/file")).validator)
    assert (served / "file").read_bytes() == b"two"


async def test_a_local_file_that_changes_while_it_is_sent_is_not_taken(served, local, make_context):
    filled(local / "file", 32 * MIB)
    (served / "there").write_bytes(b"old")
    async with client_for(served, make_context) as client:
        change = AfterBytes(1, lambda: os.utime(local / "file", ns=(1, 1)))
        with pytest.raises(ChangedError, match="send it again"):
            await client.put(local / "file", "/there", progress=change)
        shorten = AfterBytes(1, lambda: os.truncate(local / "file", MIB))
        with pytest.raises((ChangedError, StreamResetError)):
            await client.put(local / "file", "/there", progress=shorten)
        assert (await client.stat("/there")).size == 3
    assert (served / "there").read_bytes() == b"old"


async def test_the_server_compares_the_digest_before_it_takes_a_file(served, make_context):
    async with client_for(served, make_context) as client:
        stream = await client.connection.open("PUT", "/file", size=5, digest="0" * 64)
        await stream.response()
        await stream.send(b"bytes", end=True)
        with pytest.raises(StreamResetError) as caught:
            await stream.receive()
        assert caught.value.code == MISMATCH
    assert not (served / "file").exists()


async def test_directories_are_made_renamed_and_removed(served, make_context):
    async with client_for(served, make_context) as client:
        assert await client.mkdir("/a/b", parents=True, mtime_ns=7)
        assert not await client.mkdir("/a")
        assert (served / "a" / "b").stat().st_mtime_ns == 7
        await client.rename("/a/b", "/c")
        await client.put(b"x", "/c/x")
        with pytest.raises(StreamResetError) as caught:
            await client.remove("/c")
        assert caught.value.code == NOT_EMPTY
        assert await client.remove("/c", recursive=True) == 2
        assert await client.remove("/a") == 1


async def test_trees_go_both_ways_and_a_second_sync_does_nothing(served, local, make_context):
    tree = make_tree(local / "tree", files=5)
    async with client_for(served, make_context) as client:
        await client.put_tree(tree, "/one")
        await client.fetch_tree("/one", local / "back")
        report = await client.sync(tree, "/one", delete=True)
        assert (report.files, report.removed, report.failures) == (0, 0, [])
        report = await client.sync("/one", local / "back", delete=True)
        assert (report.files, report.removed, report.failures) == (0, 0, [])
    assert content_of(served / "one") == content_of(local / "back") == content_of(tree)
    assert (local / "back").stat().st_mtime_ns == tree.stat().st_mtime_ns


async def test_a_folder_of_which_the_time_may_not_be_set_is_named(served, local, make_context, monkeypatch):
    (served / "folder").mkdir()
    (local / "folder").mkdir()
    os.utime(served / "folder", ns=(1, 1))
    utime = os.utime

    def of_another_owner(path, *arguments, **named):
        if path == "folder":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))  # without the name, as the real one
        utime(path, *arguments, **named)

    monkeypatch.setattr(os, "utime", of_another_owner)
    async with client_for(served, make_context) as client:
        ((name, error),) = (await client.sync("/", local)).failures
    assert name == error.filename == str(local / "folder")
    assert error.errno == errno.EPERM


async def test_of_many_small_files_one_that_cannot_be_stored_stops_no_other(served, local, make_context):
    for number in range(100):
        (served / f"{number:02}").write_bytes(b"%d" % number)
    for name in (".50.zcpart", ".51.zcpart"):  # in the way
        (local / "back" / name).mkdir(parents=True)
    async with client_for(served, make_context) as client:
        report = await client.fetch_tree("/", local / "back")
    assert (report.files, sorted(name for name, _ in report.failures)) == (98, ["/50", "/51"])
    for number in set(range(100)) - {50, 51}:
        assert (local / "back" / f"{number:02}").read_bytes() == b"%d" % number


async def test_many_small_files_are_sent_side_by_side_over_one_connection(served, local, make_context):
    jobs = 8
    begun = threading.Semaphore(jobs - 1)
    all_begun = threading.Event()

    class Patient(Disk):
        """No file gets to the disk before as many as may be under way have begun."""

        def create(self, name, directory):
            if not begun.acquire(blocking=False):
                all_begun.set()
            return super().create(name, directory)

        def sync(self, fd):
            if stat.S_ISREG(os.fstat(fd).st_mode):
                assert all_begun.wait(30), "they are sent one after another"
            super().sync(fd)

    for number in range(200):
        (local / str(number)).write_bytes(b"%d" % number * 1000)
    async with client_for(served, make_context, disk=Patient()) as client:
        report = await client.put_tree(local, "/there", jobs=jobs)
        assert (report.files, report.failures) == (200, [])
    assert content_of(served / "there") == content_of(local)


async def test_a_sync_says_which_side_is_which_by_type(served, local, make_context):
    async with client_for(served, make_context) as client:
        with pytest.raises(MisuseError, match="local Path"):
            await client.sync("/a", "/b")


# -- what needs no server ----------------------------------------------------------------------------


def test_a_client_that_is_not_connected_says_how_to_connect():
    with pytest.raises(MisuseError, match="async with"):
        Client("zc://127.0.0.1/").connection  # noqa: B018


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("zc+unix://%2Frun%2Fzc.sock", Address("", 0, "/", "/run/zc.sock")),
        ("zc+unix://%2Frun%2Fzc.sock/a/b%20c", Address("", 0, "/a/b%20c", "/run/zc.sock")),
        ("zc+unix://here.sock/", Address("", 0, "/", "here.sock")),
    ],
)
def test_a_url_of_a_unix_socket_is_read(url, address):
    assert parse_url(url) == address


@pytest.mark.parametrize("url", ["zc+unix:///run/zc.sock", "zc+unix://", "zc+unix://%00/"])
def test_a_url_without_a_socket_is_refused(url):
    with pytest.raises(UrlError):
        parse_url(url)


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*.txt", ["a.txt", "x/y/a.txt", ".txt"], ["a.txt2", "a.txt/b"]),
        ("x/*.txt", ["x/a.txt"], ["a.txt", "x/y/a.txt", "z/x/a.txt"]),
        ("/top", ["top"], ["x/top"]),
        ("x/**/z", ["x/z", "x/a/z", "x/a/b/z"], ["xz", "x/az"]),
        ("x/**", ["x/a", "x/a/b"], ["y/x/a", "x"]),
        ("[!a]?", ["bc", "x/bc"], ["ab", "b", "b/"]),
        ("[a-c]*", ["a", "bz"], ["d"]),
        ("a[", ["a["], ["a"]),
        ("a\nb*", ["a\nbc"], ["ab"]),
    ],
)
def test_patterns_match_names_or_whole_paths(pattern, matching, others):
    selection = Selection(include=[pattern])
    assert [path for path in matching + others if selection.includes(path)] == matching


def test_a_pattern_that_makes_no_sense_is_refused():
    with pytest.raises(MisuseError, match="usable pattern"):
        Selection(include=["[z-a]"])
