"""MKDIR, RENAME and REMOVE: what changes, what is refused, and what stays."""

import contextlib
import os
import threading

import anyio
import pytest

from tests.server.disks import RecordingDisk
from tests.server.requests import ask, connected, content_of, put, refused
from zcserver import ErrorCode, StreamResetError
from zcserver.file_protocol import (
    EXISTS,
    MKDIR,
    NOT_A_DIRECTORY,
    NOT_A_FILE,
    NOT_EMPTY,
    PUT,
    REMOVE,
    RENAME,
)
from zcserver.server import FileServer, Root
from zcserver.server.disk import Disk, status_of

pytestmark = pytest.mark.anyio
DAWN = 1_600_000_000_123_456_789


# -- MKDIR ------------------------------------------------------------------------------------------


async def test_directories_are_made_and_those_that_are_there_are_no_error(served, files, make_context):
    async with connected(files, make_context) as connection:
        assert await ask(connection, MKDIR, "/a") == {"created": True}
        assert await ask(connection, MKDIR, "/a/") == {"created": False}
        assert await ask(connection, MKDIR, "/") == {"created": False}
        with refused(ErrorCode.NOT_FOUND):
            await ask(connection, MKDIR, "/x/y/z")
        assert await ask(connection, MKDIR, "/x/y/z%25", parents=True, mtime_ns=DAWN) == {"created": True}
        assert await ask(connection, MKDIR, "/x/y", parents=True) == {"created": False}
    assert set(content_of(served)) == {"a", "x", "x/y", "x/y/z%"}
    assert (served / "x" / "y" / "z%").stat().st_mtime_ns == DAWN


async def test_the_time_of_a_directory_that_is_there_is_set(served, files, make_context):
    (served / "a").mkdir()
    async with connected(files, make_context) as connection:
        for time in (DAWN, -1_000_000_000):
            await ask(connection, MKDIR, "/a", mtime_ns=time)
            assert (served / "a").stat().st_mtime_ns == time


async def test_no_directory_is_made_where_something_else_is(served, files, make_context):
    (served / "file").touch()
    async with connected(files, make_context) as connection:
        with refused(NOT_A_DIRECTORY, "/file"):
            await ask(connection, MKDIR, "/file")
        with refused(NOT_A_DIRECTORY, "/file"):
            await ask(connection, MKDIR, "/file/a/b", parents=True)


@pytest.mark.parametrize(
    ("method", "path", "arguments", "calls"),
    [
        (MKDIR, "/a", {}, ["make a", "sync directory"]),
        (MKDIR, "/a/b", {"parents": True}, ["make a", "sync directory", "make b", "sync directory"]),
        (REMOVE, "/file", {}, ["remove file", "sync directory"]),
        (REMOVE, "/empty", {}, ["remove empty", "sync directory"]),
        (REMOVE, "/tree", {"recursive": True}, ["remove file", "remove tree", "sync directory"]),
    ],
)
async def test_what_is_made_or_removed_survives_a_power_cut(
    served, make_context, method, path, arguments, calls
):
    for name in ("empty", "tree"):
        (served / name).mkdir()
    for name in ("file", "tree/file"):
        (served / name).touch()
    disk = RecordingDisk()
    with Root(served) as root:
        async with connected(FileServer(root, writable=True, disk=disk), make_context) as connection:
            await ask(connection, method, path, **arguments)
    assert disk.calls == calls


# -- RENAME -----------------------------------------------------------------------------------------


async def test_files_and_directories_are_renamed(served, files, make_context):
    (served / "a" / "sub").mkdir(parents=True)
    (served / "a" / "sub" / "file").write_bytes(b"content")
    async with connected(files, make_context) as connection:
        assert await ask(connection, RENAME, "/a/sub/file", to="/a/moved") == {}
        assert await ask(connection, RENAME, "/a", to="/b%25") == {}
    assert content_of(served) == {"b%": None, "b%/sub": None, "b%/moved": b"content"}


async def test_a_target_is_replaced_only_if_that_is_wanted(served, files, make_context):
    (served / "a").write_bytes(b"a")
    (served / "b").write_bytes(b"b")
    async with connected(files, make_context) as connection:
        with refused(EXISTS, "/b exists"):
            await ask(connection, RENAME, "/a", to="/b")
        await ask(connection, RENAME, "/a", to="/b", replace=True)
    assert content_of(served) == {"b": b"a"}


@pytest.mark.parametrize(("to", "directories"), [("other", 1), ("folder/other", 2)])
async def test_of_two_names_of_one_file_the_old_one_goes(served, make_context, to, directories):
    (served / "folder").mkdir()
    (served / "file").write_bytes(b"content")
    os.link(served / "file", served / to)
    disk = RecordingDisk()
    with Root(served) as root:
        async with connected(FileServer(root, writable=True, disk=disk), make_context) as connection:
            with refused(EXISTS):
                await ask(connection, RENAME, "/file", to=f"/{to}")
            await ask(connection, RENAME, "/file", to=f"/{to}", replace=True)
    assert content_of(served) == {"folder": None, to: b"content"}
    assert disk.calls == ["remove file"] + directories * ["sync directory"]


async def test_of_two_names_that_are_both_to_go_one_stays(served, make_context):
    """Each request finds both names there, if it is not kept from looking until the other is done."""
    both = threading.Barrier(2)

    class SlowDisk(Disk):
        def remove(self, name, directory):
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(0.2)  # in vain where one at a time removes, which this then costs
            super().remove(name, directory)

    async def rename(connection, path, to):
        with contextlib.suppress(StreamResetError):
            await ask(connection, RENAME, path, to=to, replace=True)

    (served / "a").write_bytes(b"content")
    os.link(served / "a", served / "b")
    with Root(served) as root:
        files = FileServer(root, writable=True, disk=SlowDisk())
        async with connected(files, make_context) as connection, anyio.create_task_group() as tasks:
            tasks.start_soon(rename, connection, "/a", "/b")
            tasks.start_soon(rename, connection, "/b", "/a")
    assert list(content_of(served).values()) == [b"content"]


async def test_a_file_that_is_renamed_to_its_own_name_stays(served, files, make_context):
    (served / "folder").mkdir()
    (served / "here").symlink_to(".")
    (served / "file").touch()
    os.link(served / "file", served / "link")
    before = content_of(served)
    async with connected(files, make_context) as connection:
        for to in ("/file", "/./file", "/here/file"):
            await ask(connection, RENAME, "/file", to=to, replace=True)
        await ask(connection, RENAME, "/folder", to="/folder", replace=True)
    assert content_of(served) == before


async def test_a_name_in_another_case_is_no_second_name(served, make_context, monkeypatch):
    class KeepingDisk(Disk):
        def remove(self, name, directory):
            raise AssertionError(f"{name} removed")

    def found_in_any_case(name, directory):
        return status_of(name.lower(), directory)

    monkeypatch.setattr("zcserver.server.editing.status_of", found_in_any_case)
    (served / "file").touch()
    os.link(served / "file", served / "link")
    with Root(served) as root:
        async with connected(FileServer(root, writable=True, disk=KeepingDisk()), make_context) as connection:
            with refused(ErrorCode.NOT_FOUND):  # by this file system, which tells the two apart
                await ask(connection, RENAME, "/FILE", to="/file", replace=True)
            await ask(connection, RENAME, "/file", to="/FILE", replace=True)
    assert content_of(served) == {"FILE": b"", "link": b""}


async def test_renames_that_make_no_sense_are_refused_in_words(served, files, make_context):
    (served / "folder" / "sub").mkdir(parents=True)
    (served / "empty").mkdir()
    (served / "file").touch()
    async with connected(files, make_context) as connection:
        for path, to, code, words in (
            ("/none", "/new", ErrorCode.NOT_FOUND, "/none"),
            ("/file", "/none/new", ErrorCode.NOT_FOUND, "/none/new"),
            ("/folder", "/folder/sub/new", ErrorCode.REFUSED, "inside itself"),
            ("/empty", "/folder", NOT_EMPTY, "/folder"),
            ("/empty", "/file", NOT_A_DIRECTORY, "/file"),
            ("/file", "/empty", NOT_A_FILE, "/empty"),
            ("/", "/new", ErrorCode.FORBIDDEN, "served directory itself"),
            ("/file", "/", ErrorCode.FORBIDDEN, "served directory itself"),
            ("/file", "/.zcserver/x", ErrorCode.FORBIDDEN, "server's own"),
            ("/.zcserver", "/x", ErrorCode.FORBIDDEN, "server's own"),
        ):
            with refused(code, words):
                await ask(connection, RENAME, path, to=to, replace=True)
        with refused(ErrorCode.REFUSED, "'to' is missing"):
            await ask(connection, RENAME, "/file")
    assert set(content_of(served)) == {"folder", "folder/sub", "empty", "file"}


async def test_nothing_is_renamed_from_one_root_to_another(tmp_path, make_context):
    for name in "ab":
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "file").write_bytes(b"content")
    with Root(tmp_path / "a", name="a") as a, Root(tmp_path / "b", name="b") as b:
        async with connected(FileServer(a, b, writable=True), make_context) as connection:
            with refused(ErrorCode.REFUSED, "another served directory"):
                await ask(connection, RENAME, "/a/file", to="/b/file")
            with refused(ErrorCode.FORBIDDEN):
                await ask(connection, REMOVE, "/a", recursive=True)
            assert await put(connection, "/b/file", b"new") == 1
            assert await ask(connection, MKDIR, "/b/x/y", parents=True) == {"created": True}
            await ask(connection, RENAME, "/b/file", to="/b/x/y/file")
    assert content_of(tmp_path / "a") == {"file": b"content"}
    assert content_of(tmp_path / "b") == {"x": None, "x/y": None, "x/y/file": b"new"}


# -- REMOVE -----------------------------------------------------------------------------------------


async def test_a_file_a_link_and_an_empty_directory_are_removed(served, files, make_context):
    (served / "kept").write_bytes(b"content")
    (served / "file").touch()
    (served / "link").symlink_to("kept")
    (served / "folder").mkdir()
    async with connected(files, make_context) as connection:
        for path in ("/file", "/link", "/folder/"):
            assert await ask(connection, REMOVE, path) == {"removed": 1}
        with refused(ErrorCode.NOT_FOUND):
            await ask(connection, REMOVE, "/file")
        with refused(NOT_A_DIRECTORY):
            await ask(connection, REMOVE, "/kept/")
    assert content_of(served) == {"kept": b"content"}


async def test_a_tree_is_removed_only_if_that_is_wanted_and_no_link_is_followed(served, files, make_context):
    (served / "tree" / "a" / "b").mkdir(parents=True)
    (served / "tree" / "a" / "b" / "file").touch()
    (served / "kept").mkdir()
    (served / "kept" / "file").write_bytes(b"content")
    (served / "tree" / "a" / "link").symlink_to("../../kept")
    os.mkfifo(served / "tree" / "fifo")
    async with connected(files, make_context) as connection:
        with refused(NOT_EMPTY):
            await ask(connection, REMOVE, "/tree")
        assert await ask(connection, REMOVE, "/tree", recursive=True) == {"removed": 6}
    assert content_of(served) == {"kept": None, "kept/file": b"content"}


async def test_a_link_that_took_the_place_of_a_tree_is_not_followed(served, files, make_context, monkeypatch):
    def swapped_after_the_look(name, directory):
        status = status_of(name, directory)
        if name == b"tree":
            (served / "tree").rmdir()
            (served / "tree").symlink_to("kept")
        return status

    monkeypatch.setattr("zcserver.server.editing.status_of", swapped_after_the_look)
    (served / "tree").mkdir()
    (served / "kept").mkdir()
    (served / "kept" / "file").write_bytes(b"content")
    async with connected(files, make_context) as connection:
        with refused(ErrorCode.NOT_FOUND):
            await ask(connection, REMOVE, "/tree", recursive=True)
    assert (served / "kept" / "file").read_bytes() == b"content"


async def test_a_tree_may_be_deeper_than_a_path_can_be_long(served, files, make_context):
    name, depth = "d" * 250, 16
    for tree in ("x", "y"):
        os.makedirs(served.joinpath(tree, *[name] * (depth - 1)))
    async with connected(files, make_context) as connection:
        await ask(connection, RENAME, "/y", to=f"/x/{'/'.join([name] * (depth - 1))}/y")
        assert await ask(connection, REMOVE, "/x", recursive=True) == {"removed": 2 * depth}
    assert content_of(served) == {}


class MeddlingDisk(Disk):
    """``meddle`` is called before a file is removed."""

    def __init__(self, meddle):
        self.meddle = meddle

    def remove(self, name, directory):
        self.meddle()
        super().remove(name, directory)


async def test_what_takes_a_removed_directory_s_place_or_parent_is_left_alone(served, make_context):
    (served / "tree" / "a").mkdir(parents=True)
    (served / "tree" / "a" / "file").touch()
    (served / "kept" / "a").mkdir(parents=True)

    def move():
        (served / "tree" / "a").rename(served / "kept" / "moved")

    with Root(served) as root:
        files = FileServer(root, writable=True, disk=MeddlingDisk(move))
        async with connected(files, make_context) as connection:
            with refused(ErrorCode.LIMIT, "moved meanwhile; try again"):
                await ask(connection, REMOVE, "/tree", recursive=True)
    assert content_of(served) == {"tree": None, "kept": None, "kept/a": None, "kept/moved": None}


async def test_a_link_that_took_the_place_of_an_inner_directory_is_not_followed(served, make_context):
    (served / "tree" / "a").mkdir(parents=True)
    (served / "tree" / "file").touch()
    (served / "kept").mkdir()
    (served / "kept" / "file").touch()

    def swap():
        if (served / "tree" / "a").is_dir() and not (served / "tree" / "a").is_symlink():
            (served / "tree" / "a").rmdir()
            (served / "tree" / "a").symlink_to("../kept")

    with Root(served) as root:
        files = FileServer(root, writable=True, disk=MeddlingDisk(swap))
        async with connected(files, make_context) as connection:
            with refused(ErrorCode.NOT_FOUND):
                await ask(connection, REMOVE, "/tree", recursive=True)
    assert (served / "kept" / "file").exists()


async def test_a_tree_may_be_deeper_than_there_are_descriptors(served, files, make_context):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    parts = ["d"] * 400
    os.makedirs(served.joinpath(*parts))
    async with connected(files, make_context) as connection:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 30, limits[1]))
        try:
            assert await ask(connection, REMOVE, "/d", recursive=True) == {"removed": 400}
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert content_of(served) == {}


async def test_what_the_server_keeps_to_itself_is_not_removed(served, make_context):
    (served / "tree" / "sub").mkdir(parents=True)
    (served / "tree" / ".hidden").touch()
    with Root(served, hidden=False) as root:
        async with connected(FileServer(root, writable=True), make_context) as connection:
            with refused(NOT_EMPTY):
                await ask(connection, REMOVE, "/tree", recursive=True)
            for method in (PUT, MKDIR, REMOVE):
                with refused(ErrorCode.FORBIDDEN, "begin with a dot"):
                    await ask(connection, method, "/tree/.hidden", size=0)
            with refused(ErrorCode.FORBIDDEN, "served directory itself"):
                await ask(connection, REMOVE, "/", recursive=True)
    assert content_of(served) == {"tree": None, "tree/.hidden": b""}
