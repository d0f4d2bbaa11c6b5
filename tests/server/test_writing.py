"""PUT: whole or not at all, in an order that survives a power cut; and no request writes outside."""

import errno
import hashlib
import os
import shutil
import stat
import struct
import tempfile

import anyio
import pytest

from tests.server.disks import RecordingDisk
from tests.server.requests import MIB, ask, connected, content_of, entries, get, put, refused
from tests.server.test_paths import WithoutOpenat2
from zcserver import ErrorCode, StreamResetError
from zcserver.file_protocol import (
    EXISTS,
    IO_ERROR,
    MISMATCH,
    MKDIR,
    NO_SPACE,
    NOT_A_DIRECTORY,
    NOT_A_FILE,
    NOT_EMPTY,
    PUT,
    REMOVE,
    RENAME,
    STAT,
    validator_of,
)
from zcserver.kernel.calls import Kernel
from zcserver.server import FileServer, Root
from zcserver.server.disk import Disk

pytestmark = pytest.mark.anyio
DAWN = 1_600_000_000_123_456_789


def staged(served):
    return sorted(os.listdir(served / ".zcserver"))


def validator(path):
    return validator_of(path.stat())


# -- PUT --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 64 * 1024, 5 * MIB + 17])
@pytest.mark.parametrize("known", [True, False])
async def test_a_file_is_put_whole_with_its_time_and_committed_once(served, files, make_context, size, known):
    content = os.urandom(size)
    (served / "sub").mkdir()
    announced = {"size": size if known else -1, "digest": hashlib.sha256(content).hexdigest()}
    async with connected(files, make_context) as connection:
        assert await put(connection, "/sub/new", content, mtime_ns=DAWN, **announced) == 1
    assert content_of(served) == {"sub": None, "sub/new": content}
    assert (served / "sub" / "new").stat().st_mtime_ns == DAWN
    assert staged(served) == []


async def test_a_file_that_is_replaced_keeps_its_permissions_and_nothing_else(served, files, make_context):
    (served / "file").write_bytes(b"the old content, which is longer")
    (served / "file").chmod(0o4640)
    os.link(served / "file", served / "other name")
    async with connected(files, make_context) as connection:
        await put(connection, "/file", b"new")
    assert (served / "file").read_bytes() == b"new"
    assert stat.S_IMODE((served / "file").stat().st_mode) == 0o640
    assert (served / "other name").read_bytes() == b"the old content, which is longer"


@pytest.mark.parametrize("time", [-(2**63), -1, 2**63, 2**64 - 1, 2**64, -(2**63) - 1])
async def test_a_time_makes_the_round_trip_or_is_the_nearest_that_can(make_context, time):
    told = min(max(time, -(2**63)), 2**64 - 1)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory, Root(directory) as root:  # holds any time
        async with connected(FileServer(root, writable=True), make_context) as connection:
            await put(connection, "/file", b"content", mtime_ns=told)
            await ask(connection, MKDIR, "/folder", mtime_ns=told)
            for name in ("file", "folder"):
                assert os.stat(f"{directory}/{name}").st_mtime_ns == told
                os.utime(f"{directory}/{name}", ns=(time, time))
                assert (await ask(connection, STAT, f"/{name}"))["mtime_ns"] == told
            assert (await get(connection, "/file"))[0]["mtime_ns"] == told
            assert [entry["mtime_ns"] for entry in await entries(connection, "/")] == [told, told]


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("present", [True, False])
async def test_a_directory_that_gives_its_group_to_new_files_gives_it_to_what_is_put(
    served, make_context, allowed, present
):
    class OrdinaryDisk(Disk):
        def set_group(self, fd, group):
            if not allowed:
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            super().set_group(fd, group)

    groups = [4242] if os.geteuid() == 0 else [group for group in os.getgroups() if group != os.getegid()]
    if not groups:
        pytest.skip("this user has only one group to give")
    (served / "sub").mkdir()
    os.chown(served / "sub", -1, groups[0])
    (served / "sub").chmod(0o2770)
    if present:
        (served / "sub" / "file").touch()
        (served / "sub" / "file").chmod(0o660)
    with Root(served) as root:
        async with connected(
            FileServer(root, writable=True, disk=OrdinaryDisk()), make_context
        ) as connection:
            assert await put(connection, "/sub/file", b"content") == 1
            assert await put(connection, "/file", b"content") == 1
    status = (served / "sub" / "file").stat()
    assert status.st_gid == (groups[0] if allowed else os.getegid())
    # (The group that the server may not give had more than others: then nobody has that.)
    assert not present or stat.S_IMODE(status.st_mode) == (0o660 if allowed else 0o600)
    assert (served / "file").stat().st_gid == os.getegid()


async def test_a_file_that_is_replaced_hands_on_its_access_control_list(served, files, make_context):
    name = "system.posix_acl_access"
    (served / "file").touch(0o600)
    entries = [(1, 6, -1), (2, 6, 4711), (4, 0, -1), (16, 6, -1), (32, 0, -1)]  # linux/posix_acl_xattr.h
    given = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(served / "file", name, given)
    except OSError as error:
        pytest.skip(f"the file system has no access control lists: {error}")
    async with connected(files, make_context) as connection:
        await put(connection, "/file", b"new")
    assert (served / "file").read_bytes() == b"new"
    assert os.getxattr(served / "file", name) == given


async def test_odd_names_are_put(served, files, make_context):
    async with connected(files, make_context) as connection:
        await put(connection, "/100%25 %FF%0Aü", b"content")
    assert (served / os.fsdecode(b"100% \xff\n\xc3\xbc")).read_bytes() == b"content"


async def test_nothing_is_seen_under_the_name_before_the_last_byte(served, files, make_context):
    (served / "file").write_bytes(b"old")
    async with connected(files, make_context) as connection:
        stream = await connection.open(PUT, "/file", size=4 * MIB)
        await stream.response()
        completion = await stream.send(bytes(3 * MIB))
        await completion
        assert (served / "file").read_bytes() == b"old"
        assert len(staged(served)) == 1
        await stream.send(bytes(MIB), end=True)
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
        assert (served / "file").read_bytes() == bytes(4 * MIB)


async def test_the_file_to_be_replaced_must_be_the_one_that_is_meant(served, files, make_context):
    (served / "file").write_bytes(b"old")
    right = validator(served / "file")
    async with connected(files, make_context) as connection:
        with refused(ErrorCode.CHANGED, "was changed on the server"):
            await put(connection, "/file", b"new", validator="1-2-3")
        with refused(ErrorCode.CHANGED, "not there any more"):
            await put(connection, "/none", b"new", validator=right)
        assert content_of(served) == {"file": b"old"}
        await put(connection, "/file", b"new", validator=right)
    assert content_of(served) == {"file": b"new"}


@pytest.mark.parametrize("argument", ["create", "validator"])
async def test_what_happens_to_the_target_meanwhile_is_noticed_at_the_end(
    served, files, make_context, argument
):
    if argument == "validator":
        (served / "file").write_bytes(b"old")
    arguments = {"create": True} if argument == "create" else {"validator": validator(served / "file")}
    async with connected(files, make_context) as connection:
        stream = await connection.open(PUT, "/file", size=2, **arguments)
        await stream.response()
        (served / "file").write_bytes(b"another")
        await stream.send(b"ab", end=True)
        with refused(EXISTS if argument == "create" else ErrorCode.CHANGED):
            await stream.receive()
    assert content_of(served) == {"file": b"another"}
    assert staged(served) == []


async def test_two_that_create_the_same_file_do_not_both_succeed(served, files, make_context):
    outcomes = []

    async def create(connection, content):
        try:
            outcomes.append(await put(connection, "/file", content, create=True))
        except StreamResetError as error:
            outcomes.append(error.code)

    async with connected(files, make_context) as connection, anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(create, connection, b"%d" % number)
    assert sorted(outcomes) == [1] + 7 * [EXISTS]
    assert staged(served) == []


async def test_create_works_where_the_file_system_cannot_rename_exclusively(
    served, make_context, monkeypatch
):
    class Libc:
        """One without renameat2."""

    monkeypatch.setattr("zcserver.server.disk._libc", Libc())
    with Root(served) as root:
        async with connected(FileServer(root, writable=True), make_context) as connection:
            assert await put(connection, "/file", b"first", create=True) == 1
            with refused(EXISTS):
                await put(connection, "/file", b"second", create=True)
            with refused(EXISTS):
                await ask(connection, RENAME, "/file", to="/file")
    assert content_of(served) == {"file": b"first"}


async def test_what_arrives_must_be_what_was_announced(served, files, make_context):
    (served / "file").write_bytes(b"old")
    async with connected(files, make_context) as connection:
        with refused(MISMATCH, "4 bytes came, 5 were announced"):
            await put(connection, "/file", b"four", size=5)
        with refused(MISMATCH, "more bytes came than the 3"):
            await put(connection, "/file", b"four", size=3)
        with refused(MISMATCH, "SHA-256"):
            await put(connection, "/file", b"four", digest=hashlib.sha256(b"five").hexdigest())
        with refused(ErrorCode.REFUSED, "size"):
            await put(connection, "/file", b"four", size="4")
        with refused(ErrorCode.REFUSED, "size"):
            await ask(connection, PUT, "/file")
    assert content_of(served) == {"file": b"old"}
    assert staged(served) == []


async def test_a_put_without_any_message_is_refused(served, files, make_context):
    async with connected(files, make_context) as connection:
        stream = await connection.open(PUT, "/file", size=0)
        await stream.response()
        await stream.end()
        with refused(ErrorCode.REFUSED, "not even an empty one"):
            await stream.receive()
    assert content_of(served) == {}


async def test_only_files_are_put_and_only_over_files(served, files, make_context):
    (served / "folder").mkdir()
    (served / "link").symlink_to("file")
    os.mkfifo(served / "fifo")
    async with connected(files, make_context) as connection:
        for path, words in (
            ("/folder", "is a directory, not a file"),
            ("/link", "is a symbolic link, not a file"),
            ("/fifo", "is a FIFO, not a file"),
            ("/new/", "slash at the end"),
            ("/", "slash at the end"),
        ):
            with refused(NOT_A_FILE, words):
                await put(connection, path, b"new")
        with refused(ErrorCode.FORBIDDEN, "served directory itself"):
            await put(connection, "", b"new")
        for path, code in (("/none/new", ErrorCode.NOT_FOUND), ("/fifo/new", NOT_A_DIRECTORY)):
            with refused(code):
                await put(connection, path, b"new")
        with refused(ErrorCode.NOT_FOUND, "too long"):
            await put(connection, "/" + 256 * "x", b"new")
    assert sorted(os.listdir(served)) == [".zcserver", "fifo", "folder", "link"]
    assert staged(served) == []


async def test_a_put_that_is_given_up_leaves_nothing_behind(served, files, make_context):
    (served / "file").write_bytes(b"old")
    async with connected(files, make_context) as connection:
        before = len(os.listdir("/proc/self/fd"))
        stream = await connection.open(PUT, "/file", size=8 * MIB)
        await stream.response()
        await (await stream.send(bytes(3 * MIB)))
        stream.reset()
        while files.active:
            await anyio.lowlevel.checkpoint()
        assert staged(served) == []
        assert len(os.listdir("/proc/self/fd")) == before
    assert content_of(served) == {"file": b"old"}


async def test_uploads_left_by_a_dead_server_are_gone_when_the_next_one_starts(served):
    (served / ".zcserver" / "odd" / "folder").mkdir(parents=True)
    (served / ".zcserver" / "upload").write_bytes(b"half")
    (served / ".zcserver" / "link").symlink_to("../file")
    (served / "file").write_bytes(b"content")
    with Root(served) as root:
        FileServer(root).close()
        assert len(staged(served)) == 3  # a server that only reads leaves them
        FileServer(root, writable=True).close()
    assert staged(served) == []
    assert content_of(served) == {"file": b"content"}


def test_unfinished_uploads_are_for_their_owner_only(served):
    before = os.umask(0)
    try:
        with Root(served) as root:
            FileServer(root, writable=True).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((served / ".zcserver").stat().st_mode) == 0o700


@pytest.mark.parametrize(("mode", "owner"), [(0o777, None), (0o750, None), (0o700, 4242)])
def test_a_place_for_unfinished_uploads_that_is_not_only_ours_is_replaced(served, mode, owner):
    place = served / ".zcserver"
    place.mkdir()
    (place / "left over").touch()
    place.chmod(mode)
    if owner is not None:
        if os.geteuid() != 0:
            pytest.skip("only root makes directories of others")
        os.chown(place, owner, -1)
    theirs = os.open(place, os.O_RDONLY)
    with Root(served) as root:
        FileServer(root, writable=True).close()
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert place.stat().st_uid == os.geteuid()
    with pytest.raises(FileNotFoundError):
        os.mkdir("way in", dir_fd=theirs)
    os.close(theirs)


def test_two_servers_do_not_write_to_one_root(served):
    with Root(served) as root:
        first = FileServer(root, writable=True)
        with pytest.raises(BlockingIOError) as caught:
            FileServer(root, writable=True)
        assert caught.value.filename == str(served / ".zcserver")
        FileServer(root).close()
        first.close()
        FileServer(root, writable=True).close()


def test_a_staging_directory_that_is_a_link_is_not_used(served, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").touch()
    (served / ".zcserver").symlink_to(tmp_path / "elsewhere")
    with Root(served) as root, pytest.raises(OSError, match="zcserver"):
        FileServer(root, writable=True)
    assert os.listdir(tmp_path / "elsewhere") == ["precious"]


async def test_a_staging_directory_that_somebody_removed_is_made_anew(served, files, make_context):
    async with connected(files, make_context) as connection:
        under_way = await connection.open(PUT, "/under way", size=5)
        await under_way.response()
        shutil.rmtree(served / ".zcserver")
        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(put, connection, f"/{number}", b"content")
        await under_way.send(b"right", end=True)
        with refused(IO_ERROR, "somebody removed or replaced the unfinished /under way"):
            await under_way.receive()
        with Root(served) as root, pytest.raises(BlockingIOError):  # (it is still this server's alone)
            FileServer(root, writable=True)
    assert content_of(served) == dict.fromkeys("0123", b"content")
    assert staged(served) == []


async def test_a_staging_directory_that_another_server_has_by_now_is_not_used(served, files, make_context):
    async with connected(files, make_context) as connection:
        shutil.rmtree(served / ".zcserver")
        with Root(served) as root:
            other = FileServer(root, writable=True)
            with refused(ErrorCode.LIMIT, "/file"):
                await put(connection, "/file", b"content")
            other.close()
    assert content_of(served) == {}


# -- the order of calls, and calls that fail -----------------------------------------------------------


@pytest.mark.interpreted
@pytest.mark.parametrize("create", [True, False])
async def test_content_then_name_then_directory_are_made_to_last_before_commit(served, make_context, create):
    if not create:
        (served / "file").write_bytes(b"old")
        (served / "file").chmod(0o600)
    disk = RecordingDisk()

    class Committing(FileServer):
        """Notes when COMMIT is sent."""

        async def handle(self, stream):
            commit = stream.commit

            async def noted(count):
                disk.calls.append("COMMIT")
                await commit(count)

            stream.commit = noted
            await super().handle(stream)

    with Root(served) as root:
        async with connected(Committing(root, writable=True, disk=disk), make_context) as connection:
            await put(connection, "/file", b"new", mtime_ns=DAWN, create=create)
    assert disk.calls == [
        "create",
        "write",
        *([] if create else ["mode"]),
        "mtime",
        "sync file",
        "rename to new file" if create else "rename over file",
        "sync directory",
        "COMMIT",
    ]


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.ENOSPC, NO_SPACE, "disk is full"),
        (errno.EDQUOT, NO_SPACE, "quota"),
        (errno.EFBIG, NO_SPACE, "too large"),
        (errno.EACCES, ErrorCode.FORBIDDEN, "may not"),
        (errno.EROFS, ErrorCode.FORBIDDEN, "read-only"),
        (errno.EIO, IO_ERROR, "Input/output error"),
        (errno.EMFILE, ErrorCode.LIMIT, "too many files"),
    ],
)
@pytest.mark.parametrize("call", ["create", "write", "set_mtime", "sync", "rename"])
async def test_whatever_fails_before_the_rename_leaves_the_old_file(
    served, make_context, call, number, code, words
):
    (served / "file").write_bytes(b"old")
    disk = Disk()

    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    setattr(disk, call, fail)
    with Root(served) as root:
        async with connected(FileServer(root, writable=True, disk=disk), make_context) as connection:
            with refused(code, words) as caught:
                await put(connection, "/file", b"new", mtime_ns=DAWN)
            assert "/file" in caught.value.reason
    assert content_of(served) == {"file": b"old"}
    assert staged(served) == []


async def test_no_commit_comes_when_the_directory_cannot_be_made_to_last(served, make_context):
    class FailingDisk(Disk):
        def sync(self, fd):
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            super().sync(fd)

    with Root(served) as root:
        async with connected(FileServer(root, writable=True, disk=FailingDisk()), make_context) as connection:
            stream = await connection.open(PUT, "/file", size=3)
            await stream.send(b"new", end=True)
            with refused(IO_ERROR):
                await stream.receive()
            assert stream.committed == 0
    assert staged(served) == []


async def test_a_file_that_cannot_fit_is_refused_before_its_first_byte(served, files, make_context):
    async with connected(files, make_context) as connection:
        stream = await connection.open(PUT, "/file", size=2**60)
        with refused(NO_SPACE, "no 1152921504606846976 bytes left"):
            await stream.response()


async def test_a_directory_that_the_server_may_not_write_is_refused_before_the_first_byte(
    served, files, make_context, monkeypatch
):
    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # root would be allowed everything
    async with connected(files, make_context) as connection:
        stream = await connection.open(PUT, "/file", size=1)
        with refused(ErrorCode.FORBIDDEN, "may not change /file"):
            await stream.response()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
async def test_another_file_system_is_refused_before_the_first_byte(served, files, make_context):
    (served / "mounted").mkdir()
    await anyio.run_process(["mount", "-t", "tmpfs", "tmpfs", str(served / "mounted")])
    try:
        async with connected(files, make_context) as connection:
            stream = await connection.open(PUT, "/mounted/file", size=1)
            with refused(ErrorCode.REFUSED, "another file system"):
                await stream.response()
    finally:
        await anyio.run_process(["umount", "-l", str(served / "mounted")])


async def test_short_writes_are_completed(served, make_context):
    class ShortDisk(Disk):
        def write(self, fd, pieces, offset):
            return super().write(fd, [pieces[0][:1000]], offset)

    content = os.urandom(300_000)
    with Root(served) as root:
        async with connected(FileServer(root, writable=True, disk=ShortDisk()), make_context) as connection:
            await put(connection, "/file", content, piece=70_000)
    assert content_of(served) == {"file": content}


# -- one root inside another ---------------------------------------------------------------------------


@pytest.fixture
def nested(served):
    """A server of ``served`` as /outer and of the directory ``sub`` in it as /inner."""
    (served / "sub").mkdir()
    with Root(served, name="outer") as outer, Root(served / "sub", name="inner") as inner:
        yield FileServer(outer, inner, writable=True)


async def test_uploads_to_an_inner_root_are_out_of_reach_of_the_outer_one(served, nested, make_context):
    async with connected(nested, make_context) as connection:
        stream = await connection.open(PUT, "/inner/file", size=5)
        await stream.response()
        (name,) = staged(served / "sub")
        path = f"/outer/sub/.zcserver/{name}"
        with refused(ErrorCode.FORBIDDEN, "the server's own"):
            await put(connection, path, b"wrong")
        for method, arguments in ((MKDIR, {}), (RENAME, {"to": "/outer/stolen"}), (REMOVE, {})):
            with refused(ErrorCode.FORBIDDEN, "the server's own"):
                await ask(connection, method, path, **arguments)
        with refused(ErrorCode.FORBIDDEN, "the server's own"):
            await ask(connection, REMOVE, "/outer/sub/.zcserver", recursive=True)
        with refused(NOT_EMPTY):
            await ask(connection, REMOVE, "/outer/sub", recursive=True)
        await stream.send(b"right", end=True)
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
        assert stream.committed == 1
    assert content_of(served) == {"sub": None, "sub/file": b"right"}


@pytest.mark.parametrize("meddling", ["replaced", "removed"])
async def test_what_somebody_else_puts_in_the_place_of_an_upload_gets_no_name(
    served, files, make_context, meddling
):
    (served / "file").write_bytes(b"old")
    async with connected(files, make_context) as connection:
        stream = await connection.open(PUT, "/file", size=5)
        await stream.response()
        (name,) = staged(served)
        upload = served / ".zcserver" / name
        upload.unlink()
        if meddling == "replaced":
            upload.write_bytes(b"wrong")
        await stream.send(b"right", end=True)
        with refused(IO_ERROR, "somebody removed or replaced the unfinished /file"):
            await stream.receive()
        assert stream.committed == 0
    assert content_of(served) == {"file": b"old"}
    assert staged(served) == []


# -- never outside ----------------------------------------------------------------------------------


@pytest.fixture(params=[None, errno.ENOSYS], ids=["openat2", "ENOSYS"])
def guarded(request, served, tmp_path):
    """A writable server beside a directory that must stay as it is."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"precious")
    (served / "out").symlink_to(outside)
    (served / "up").symlink_to("..")
    (served / "file link").symlink_to(outside / "file")
    (served / "sub").mkdir()
    (served / "staging").symlink_to(".zcserver")
    kernel = Kernel() if request.param is None else WithoutOpenat2(request.param)
    with Root(served, kernel) as root:
        yield FileServer(root, writable=True)
    assert content_of(outside) == {"file": b"precious"}


async def test_nothing_outside_is_written_whatever_the_path(served, guarded, make_context):
    before = set(os.listdir(served)) | {".zcserver"}
    async with connected(guarded, make_context) as connection:
        for path in (
            "/out/new", "/out/file", "/out/sub/new", "/up/new", "/up/outside/file", "/../outside/file",
            "/sub/../../outside/file", "/%2e%2e/outside/file", "/sub/..%2f..%2foutside/file", "/file link",
            "/staging/new", "/.zcserver/new", "/new%00",
        ):  # fmt: skip
            for method, arguments in (
                (PUT, {"size": 0}),
                (MKDIR, {}),
                (MKDIR, {"parents": True}),
                (RENAME, {"to": "/sub/stolen", "replace": True}),
                (REMOVE, {"recursive": True}),
            ):
                if path == "/file link" and method in (RENAME, REMOVE):
                    continue  # moves or removes the link itself, which is within
                with pytest.raises(StreamResetError):
                    await ask(connection, method, path, **arguments)
            with pytest.raises(StreamResetError):
                await ask(connection, RENAME, "/sub", to=path, replace=True)
        await ask(connection, RENAME, "/file link", to="/sub/link")
        await ask(connection, REMOVE, "/sub/link")
    assert set(os.listdir(served)) == before - {"file link"}
    assert os.listdir(served / "sub") == []


async def test_writing_goes_through_links_within_where_the_kernel_vouches_for_them(served, make_context):
    (served / "real").mkdir()
    (served / "link").symlink_to("real")
    for links, works in (("follow", True), ("refuse", False)):
        with Root(served, links=links) as root:
            async with connected(FileServer(root, writable=True), make_context) as connection:
                if works:
                    assert await put(connection, "/link/file", b"content") == 1
                else:
                    with refused(ErrorCode.FORBIDDEN, "symbolic link"):
                        await put(connection, "/link/other", b"content")
    assert content_of(served / "real") == {"file": b"content"}
