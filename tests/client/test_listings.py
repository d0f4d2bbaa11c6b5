"""What a tree job makes of listings that no honest server sends, and of times that are odd but true."""

import contextlib
import json
import os
import tempfile
from pathlib import Path

import anyio
import msgspec
import pytest

import zcserver
from tests.client.connected import AfterBytes, client_for, client_of, filled
from zcserver import Client, TransferError
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


async def test_what_was_fetched_is_counted_and_not_what_was_listed(served, local, make_context):
    filled(served / "file", 1000)
    async with client_of_listing(served, make_context, [Entry("file", "file", 1 << 60)]) as client:
        assert (await client.sync("/", local / "copy", dry_run=True)).nbytes == 1 << 60
        assert (await client.fetch_tree("/", local / "copy")).nbytes == 1000


async def test_what_was_sent_is_counted_and_not_what_was_seen_before(served, local, make_context):
    for name in ("a", "b"):
        filled(local / name, 1000)
    async with client_for(served, make_context) as client:
        growing = AfterBytes(1, lambda: filled(local / "b", 5000))
        report = await client.put_tree(local, "/copy", jobs=1, progress=growing)
    assert (report.nbytes, report.failures) == (6000, [])


@pytest.mark.parametrize("path", ["..", "folder/file"])
async def test_failures_keep_nothing_alive_but_their_words(served, local, make_context, path):
    (local / "folder").write_text("in the way")
    async with client_of_listing(served, make_context, [Entry(path, "file")]) as client:
        ((_, error),) = (await client.fetch_tree("/", local)).failures
    assert str(error)
    assert (error.__traceback__, error.__context__) == (None, None)


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ({"entries": [{"path": "a", "type": "file"}] * 501}, "length <= 500"),
        ({"entries": [{"path": "a" * 20_000, "type": "file"}]}, "length <= 16384"),
        ({"entries": [{"path": "a", "type": "file", "size": 10**400}]}, "<= 9223372036854775807"),
        ({"entries": [{"path": "a", "type": "file", "size": -1}]}, ">= 0"),
        ({"entries": [], "padding": "x" * (9 << 20)}, "a page of it is over 8388608 bytes"),
    ],
)
async def test_a_page_that_is_out_of_all_bounds_is_a_malformed_listing(local, make_context, page, words):
    async def handle(stream):
        await stream.reply()
        await stream.send(json.dumps({"more": False, **page}).encode(), end=True)

    async with client_of(handle, make_context) as client:
        with pytest.raises(TransferError, match=f"the server sent a malformed listing: .*{words}"):
            async for _ in client.list("/"):
                pass
        report = await client.fetch_tree("/", local / "copy")
    assert len(report.failures) == 1


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
