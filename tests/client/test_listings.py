"""What a tree job makes of listings that no honest server sends, and of times that are odd but true."""

import contextlib
import os
import tempfile
from pathlib import Path

import anyio
import msgspec
import pytest

import zcserver
from tests.client.connected import client_for
from zcserver import Client
from zcserver.file_protocol import LIST, Entry, Page
from zcserver.server import FileServer, Root

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def client_of_listing(directory, make_context, entries):
    """A client of a server of ``directory`` that lists ``entries`` instead."""
    with Root(directory) as root, contextlib.closing(FileServer(root)) as files, anyio.fail_after(60):

        async def handle(stream):
            if stream.method != LIST:
                await files.handle(stream)
                return
            await stream.reply()
            await stream.send(msgspec.json.encode(Page(entries, False)))
            await stream.end()

        async with (
            zcserver.serve(handle, port=0, context=make_context()) as server,
            Client(f"zc://127.0.0.1:{server.port}", context=make_context()) as client,
        ):
            yield client


@pytest.mark.parametrize("include", [[], ["*"]])
async def test_a_link_is_not_gone_through_whatever_the_order_of_a_listing(
    served, local, tmp_path, make_context, include
):
    (served / "folder" / "inner").mkdir(parents=True)
    for name in ("folder/file", "folder/inner/file", "other"):
        (served / name).write_text(name)
    (tmp_path / "outside").mkdir()
    (local / "folder").symlink_to(tmp_path / "outside")
    entries = [
        Entry("folder/inner/file", "file", 17),
        Entry("other", "file", 5),
        Entry("folder/file", "file", 11),
        Entry("folder/inner", "directory"),
        Entry("folder", "directory"),
    ]
    async with client_of_listing(served, make_context, entries) as client:
        report = await client.fetch_tree("/", local, include=include)
    assert report.transferred == ["/other"]
    assert {str(error) for _, error in report.failures} == {
        f"[Errno 17] is a symbolic link: remove it, or sync with --delete: '{local / 'folder'}'"
    }
    assert not list((tmp_path / "outside").iterdir())


async def test_a_time_that_this_machine_does_not_have_is_a_failure_of_its_folder(served, local, make_context):
    for name in ("early", "late"):
        (served / name).mkdir()
    entries = [Entry("early", "directory", 0, 7), Entry("late", "directory", 0, 2**100)]
    async with client_of_listing(served, make_context, entries) as client:
        report = await client.fetch_tree("/", local / "copy")
    assert [name for name, _ in report.failures] == [str(local / "copy" / "late")]
    assert "cannot have the server's time" in str(report.failures[0][1])
    assert (local / "copy" / "early").stat().st_mtime_ns == 7


async def test_files_and_folders_may_be_from_the_time_after_2262(served, local, make_context):
    late = 2**63 + 1_000_000_000
    (served / "folder").mkdir()
    (served / "folder" / "small").touch()
    for name in ("folder/small", "folder"):
        os.utime(served / name, ns=(late, late))
    if (served / "folder").stat().st_mtime_ns != late:
        pytest.skip("this file system has no such times")
    async with client_for(served, make_context) as client:
        report = await client.fetch_tree("/", local / "copy")
        assert (report.files, report.failures) == (1, [])
        assert (await client.sync("/", local / "copy")).unchanged == 1
        await client.fetch("/folder/small", local / "verified", verify=True)
        async with client.open("/folder/small") as file:
            assert file.mtime_ns == late
    for name in ("copy/folder/small", "copy/folder", "verified"):
        assert (local / name).stat().st_mtime_ns == late


@pytest.mark.parametrize("time", [2**64, -(2**63) - 1])
async def test_what_has_a_time_that_no_argument_can_be_is_sent_with_the_nearest(make_context, time):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:  # holds any time
        served, local = Path(directory, "served"), Path(directory, "local")
        for path in (served, local, local / "folder"):
            path.mkdir()
        (local / "folder" / "file").write_bytes(b"content")
        for path in (local / "folder" / "file", local / "folder", local):
            os.utime(path, ns=(time, time))
        async with client_for(served, make_context) as client:
            assert not (await client.sync(local, "/copy")).failures
            assert (await client.sync(local, "/copy")).files == 0
        nearest = min(max(time, -(2**63)), 2**64 - 1)
        for name in ("copy", "copy/folder", "copy/folder/file"):
            assert (served / name).stat().st_mtime_ns == nearest
