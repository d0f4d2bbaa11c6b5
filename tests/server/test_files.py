"""The file server and its client, over real connections, on every loop and lane."""

import contextlib
import hashlib
import os
import random
from pathlib import Path

import anyio
import pytest

import zcserver
from zcserver import ErrorCode, StreamResetError
from zcserver.client import Address, Client, Progress, UrlError, VerificationError, local_path, parse_url
from zcserver.errors import ConnectionLostError, TransferError
from zcserver.file_protocol import DIGEST, GET, LIST, NOT_A_FILE, PAGE_ENTRIES, STAT, Page, escape
from zcserver.server import FileServer, Root
from zcserver.server.paths import OpenFile
from zcserver.server.roots import Roots

pytestmark = pytest.mark.anyio
MIB = 1 << 20
EVERY_NAME = [b"plain", "ünï".encode(), b"100%", b"\xff\xfe", b"new\nline", b" a?b#c&", b"-rf"]


def filled(path, nbytes, seed=1):
    path.write_bytes(random.Random(seed).randbytes(nbytes))
    return path


@contextlib.asynccontextmanager
async def client_of(handler, make_context):
    """A client of ``handler``, with a deadline around everything."""
    with anyio.fail_after(60):
        async with (
            zcserver.serve(handler, port=0, context=make_context()) as server,
            zcserver.connect(port=server.port, context=make_context()) as connection,
        ):
            yield Client(connection)


@contextlib.asynccontextmanager
async def client_for(directory, make_context):
    with Root(directory) as root:
        async with client_of(FileServer(root).handle, make_context) as client:
            yield client


class OnFirstPiece(Progress):
    """Does something when the first bytes of a file have arrived; most of it is still to be sent then."""

    def __init__(self, action):
        self.action = action

    def moved(self, path, nbytes):
        action, self.action = self.action, lambda: None
        action()


def nothing_in(directory):
    return not list(directory.iterdir())


@pytest.mark.parametrize("nbytes", [0, 1, 4095, 300 * 1024, 9 * MIB + 17])
async def test_a_file_arrives_with_its_content_time_and_digest(served, local, make_context, nbytes):
    source = filled(served / "file", nbytes)
    os.utime(source, ns=(1_600_000_000_123_456_789, 1_600_000_000_123_456_789))
    async with client_for(served, make_context) as client:
        done = await client.fetch("/file", local / "copy", verify=True)
    assert (local / "copy").read_bytes() == source.read_bytes()
    assert (local / "copy").stat().st_mtime_ns == source.stat().st_mtime_ns
    assert (done.nbytes, done.digest) == (nbytes, hashlib.sha256(source.read_bytes()).hexdigest())
    assert [path.name for path in local.iterdir()] == ["copy"]


async def test_a_file_goes_without_being_copied_by_the_server(served, local, make_context):
    filled(served / "file", 4 * MIB)
    server_context = make_context()
    with Root(served) as root, anyio.fail_after(60):
        files = FileServer(root)
        async with (
            zcserver.serve(files.handle, port=0, context=server_context) as server,
            zcserver.connect(port=server.port, context=make_context()) as connection,
        ):
            await Client(connection).fetch("/file", local / "copy")
    totals = files.totals.as_dict()
    assert (totals["connections"], totals["file_bytes"], totals["copied_bytes"]) == (1, 4 * MIB, 0)
    assert server_context.pipes.file_pipes == 0


async def test_the_target_keeps_the_permissions_that_the_user_asks_for_new_files(served, local, make_context):
    filled(served / "file", 10)
    before = os.umask(0o027)
    try:
        async with client_for(served, make_context) as client:
            await client.fetch("/file", local / "copy")
    finally:
        os.umask(before)
    assert (local / "copy").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("path", "code"),
    [("/none", ErrorCode.NOT_FOUND), ("/folder", NOT_A_FILE), ("/../x", ErrorCode.FORBIDDEN)],
)
async def test_a_refused_file_leaves_nothing_behind(served, local, make_context, path, code):
    (served / "folder").mkdir()
    async with client_for(served, make_context) as client:
        with pytest.raises(StreamResetError) as caught:
            await client.fetch(path, local / "copy")
        assert caught.value.code == code
    assert nothing_in(local)


@pytest.mark.parametrize("verify", [True, False])
async def test_a_file_cut_short_while_it_is_sent_is_an_error_and_no_file(served, local, make_context, verify):
    source = served / "file"
    source.touch()
    os.truncate(source, 64 * MIB)
    async with client_for(served, make_context) as client:
        with pytest.raises(StreamResetError) as caught:
            await client.fetch(
                "/file",
                local / "copy",
                verify=verify,
                progress=OnFirstPiece(lambda: os.truncate(source, MIB)),
            )
        assert caught.value.code == ErrorCode.CHANGED
        assert "file" in caught.value.reason
        # The connection has survived, and the framing too.
        await client.fetch("/file", local / "copy")
    assert (local / "copy").read_bytes() == bytes(MIB)


async def test_a_file_rewritten_while_it_is_sent_is_an_error_and_keeps_the_old_copy(
    served, local, make_context
):
    source = served / "file"
    source.touch()
    os.truncate(source, 32 * MIB)
    (local / "copy").write_bytes(b"the old copy")
    async with client_for(served, make_context) as client:
        with pytest.raises(StreamResetError) as caught:
            await client.fetch(
                "/file",
                local / "copy",
                progress=OnFirstPiece(lambda: os.utime(source, ns=(1, 1))),
            )
    assert caught.value.code == ErrorCode.CHANGED
    assert (local / "copy").read_bytes() == b"the old copy"
    assert len(list(local.iterdir())) == 1


async def test_a_file_that_changes_while_it_is_hashed_has_no_digest(served, make_context, monkeypatch):
    filled(served / "file", 100)
    monkeypatch.setattr(OpenFile, "unchanged", lambda self: False)
    async with client_for(served, make_context) as client:
        with pytest.raises(StreamResetError) as caught:
            await client.digest("/file")
    assert caught.value.code == ErrorCode.CHANGED


async def test_the_digest_is_that_of_the_file(served, make_context):
    source = filled(served / "file", 3 * MIB + 1)
    async with client_for(served, make_context) as client:
        assert await client.digest("/file") == hashlib.sha256(source.read_bytes()).hexdigest()


async def test_an_unknown_method_is_refused_by_name(served, make_context):
    async with client_for(served, make_context) as client:
        stream = await client.connection.open("DELETE", "/file")
        with pytest.raises(StreamResetError, match="not DELETE"):
            await stream.response()


# -- a server that does not keep its word -----------------------------------------------------------


def lying(content, size, digest=""):
    """A handler that announces ``size``, sends ``content`` and claims ``digest``."""

    async def handler(stream):
        if stream.method == GET:
            await stream.reply(size=size, mtime_ns=0, validator="v")
            await stream.send(content, end=True)
        elif stream.method == DIGEST:
            await stream.reply(algorithm="sha256", digest=digest, size=size, validator="v")

    return handler


async def test_content_that_differs_from_the_digest_is_not_kept(local, make_context):
    digest = hashlib.sha256(b"other").hexdigest()
    async with client_of(lying(b"bytes", 5, digest), make_context) as client:
        with pytest.raises(VerificationError, match="SHA-256"):
            await client.fetch("/file", local / "copy", verify=True)
    assert nothing_in(local)


@pytest.mark.parametrize("size", [4, 6])
async def test_content_of_another_length_than_announced_is_not_kept(local, make_context, size):
    async with client_of(lying(b"bytes", size), make_context) as client:
        with pytest.raises(VerificationError, match=f"5 bytes came, {size}"):
            await client.fetch("/file", local / "copy")
    assert nothing_in(local)


async def test_a_reply_without_sense_is_an_error_in_words(local, make_context):
    for size in (-1, "many", None, 2**63):
        async with client_of(lying(b"bytes", size), make_context) as client:
            with pytest.raises(TransferError, match="file server"):
                await client.fetch("/file", local / "copy")
    assert nothing_in(local)


async def test_a_server_that_never_replies_is_an_error_in_words(local, make_context):
    async def handler(stream):
        await stream.end()  # which replies, with nothing in it, where the handler has not

    async with client_of(handler, make_context) as client:
        with pytest.raises(TransferError, match="is it a zcserver file server"):
            await client.fetch("/file", local / "copy")


@pytest.mark.parametrize("name", ["../evil", "/evil", "a//b", "./a", "", "a/..", "%2e%2e/evil", "a%00b", "."])
def test_names_that_lead_out_of_the_target_are_not_local_paths(name):
    with pytest.raises(TransferError):
        local_path(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a" * 256, "a path of 256 bytes, a name in it of 256"),
        ("%00/" + "ä" * 128, "a path of 258 bytes, a name in it of 256"),
        ("a/" * 2047 + "aa", "a path of 4096 bytes, a name in it of 2"),
    ],
)
def test_names_that_linux_cannot_have_are_not_local_paths(name, words):
    with pytest.raises(TransferError, match=words):
        local_path(name)


def test_names_and_paths_may_be_as_long_as_linux_has_them():
    for name in ("a" * 255, "a/" * 2047 + "a", "%41" * 255):
        assert len(bytes(local_path(name))) in (255, 4095)


async def test_a_hostile_listing_writes_nothing_outside_the_target(local, make_context):
    async def handler(stream):
        if stream.method == LIST:
            entries = (
                b'{"path": "../evil", "type": "file", "size": 5}, {"path": "good", "type": "file", "size": 5}'
            )
            await stream.send(b'{"entries": [' + entries + b'], "more": false}', end=True)
        elif stream.method == STAT:
            await stream.reply(type="directory", size=0, mtime_ns=0, validator="")
        else:
            await lying(b"bytes", 5)(stream)

    async with client_of(handler, make_context) as client:
        tree = await client.fetch_tree("/", local / "tree")
    assert [name for name, _ in tree.failures] == ["/../evil"]
    assert (tree.files, (local / "tree" / "good").read_bytes()) == (1, b"bytes")
    assert [path.name for path in local.iterdir()] == ["tree"]


@pytest.mark.parametrize(
    ("pages", "words"),
    [
        ([b'{"entries": [], "more": true}'], "cut off"),
        ([b"{"], "malformed"),
        ([b'{"entries": 1}'], "malformed"),
    ],
)
async def test_a_broken_listing_is_an_error_not_a_short_one(make_context, pages, words):
    async def handler(stream):
        for page in pages:
            await stream.send(page)

    async with client_of(handler, make_context) as client:
        with pytest.raises(TransferError, match=words):
            await listed(client, "/")


# -- listings and trees -----------------------------------------------------------------------------


async def listed(client, path, recursive=False):
    async with contextlib.aclosing(client.list(path, recursive)) as entries:
        return [entry async for entry in entries]


async def test_a_listing_is_sorted_and_complete_over_several_pages(served, make_context):
    names = [f"{number:04}" for number in range(2 * PAGE_ENTRIES + 1)]
    for name in random.Random(1).sample(names, len(names)):
        (served / name).touch()
    async with client_for(served, make_context) as client:
        assert [entry.path for entry in await listed(client, "/")] == names


@pytest.mark.parametrize("count", [0, 1, PAGE_ENTRIES, PAGE_ENTRIES + 1])
def test_a_listing_ends_with_the_page_that_has_the_last_entry(served, count):
    from zcserver.server.listing import Listing

    for number in range(count):
        (served / f"{number:04}").touch()
    with Root(served) as root:
        listing = Listing(Roots([root]), "/", False)
        pages = [listing.next_page()]
        while pages[-1].more:
            pages.append(listing.next_page())
    assert [len(page.entries) for page in pages] == {0: [0], 1: [1], 500: [500], 501: [500, 1]}[count]
    assert isinstance(pages[0], Page)


async def test_a_recursive_listing_has_each_folder_before_its_content(served, make_context):
    (served / "b" / "c").mkdir(parents=True)
    for name in ("a", "b/c/1", "b/a", "b-", "z"):
        (served / name).touch()
    (served / "link").symlink_to("b")
    os.mkfifo(served / "pipe")
    async with client_for(served, make_context) as client:
        found = [(entry.path, entry.type) for entry in await listed(client, "/", recursive=True)]
        inner = [entry.path for entry in await listed(client, "/b", recursive=True)]
    assert found == [
        ("a", "file"), ("b", "directory"), ("b/a", "file"), ("b/c", "directory"), ("b/c/1", "file"),
        ("b-", "file"), ("link", "link"), ("pipe", "other"), ("z", "file"),
    ]  # fmt: skip
    assert inner == ["a", "c", "c/1"]


async def test_a_listing_tells_what_get_will_send(served, make_context):
    source = filled(served / "file", 1234)
    async with client_for(served, make_context) as client:
        (entry,) = await listed(client, "/")
        stream = await client.connection.open(GET, "/file")
        reply = await stream.response()
    status = source.stat()
    assert (entry.size, entry.mtime_ns) == (1234, status.st_mtime_ns)
    assert (reply["size"], reply["mtime_ns"], reply["validator"]) == (
        entry.size,
        entry.mtime_ns,
        entry.validator,
    )


async def test_a_folder_that_cannot_be_read_is_told_and_the_rest_listed(
    served, local, make_context, monkeypatch
):
    (served / "closed").mkdir()
    (served / "open").touch()
    original = Root.open_listed

    def refuse(self, path):
        if path.endswith(b"closed"):
            raise PermissionError(13, "Permission denied")
        return original(self, path)

    monkeypatch.setattr(Root, "open_listed", refuse)
    async with client_for(served, make_context) as client:
        found = {entry.path: entry.error for entry in await listed(client, "/", recursive=True)}
        tree = await client.fetch_tree("/", local / "tree")
    assert found == {"closed": "Permission denied", "open": ""}
    assert [name for name, _ in tree.failures] == ["/closed"]
    assert (local / "tree" / "open").exists()


async def test_a_file_is_not_listed_like_a_folder(served, make_context):
    (served / "file").touch()
    async with client_for(served, make_context) as client:
        with pytest.raises(StreamResetError, match="not a directory"):
            await listed(client, "/file")


async def test_a_tree_arrives_whole_with_odd_names_and_empty_folders(served, local, make_context):
    for number, name in enumerate(EVERY_NAME):
        folder = os.path.join(os.fsencode(served), b"in " + name)
        os.mkdir(folder)
        filled(Path(os.fsdecode(os.path.join(folder, name))), number * 50_000, number)
    (served / "empty").mkdir()
    (served / "link").symlink_to("plain")
    async with client_for(served, make_context) as client:
        tree = await client.fetch_tree("/", local / "tree")
    assert not tree.failures
    assert (tree.files, tree.skipped) == (len(EVERY_NAME), ["/link"])
    (served / "link").unlink()
    assert content_of(local / "tree") == content_of(served)


def content_of(top):
    found = {}
    for directory, folders, files in os.walk(os.fsencode(top)):
        where = os.path.relpath(directory, os.fsencode(top))
        found.update({os.path.join(where, folder): None for folder in folders})
        for name in files:
            with open(os.path.join(directory, name), "rb") as file:
                found[os.path.join(where, name)] = file.read()
    return found


async def test_one_file_that_fails_does_not_stop_the_others(served, local, make_context):
    for number in range(20):
        filled(served / f"{number:02}", 1000, number)
    (local / "tree" / "07").mkdir(parents=True)
    async with client_for(served, make_context) as client:
        tree = await client.fetch_tree("/", local / "tree")
    assert [name for name, _ in tree.failures] == ["/07"]
    assert isinstance(tree.failures[0][1], FileExistsError)
    assert tree.files == 19


async def test_a_tree_stops_when_the_connection_is_gone(served, local, make_context):
    for number in range(50):
        filled(served / f"{number:02}", 100_000, number)
    with pytest.raises(ConnectionLostError):  # noqa: PT012 – leaving the client may raise it, too
        async with client_for(served, make_context) as client:
            progress = OnFirstPiece(lambda: client.connection.abort())
            tree = await client.fetch_tree("/", local / "tree", progress=progress)
            assert any(isinstance(error, ConnectionLostError) for _, error in tree.failures)
            assert not list((local / "tree").glob(".*"))
            await client.digest("/00")


# -- trouble at the receiving end -------------------------------------------------------------------


async def test_a_target_that_a_rename_would_destroy_is_refused(served, local, make_context):
    filled(served / "file", 10)
    (local / "folder").mkdir()
    os.mkfifo(local / "fifo")
    async with client_for(served, make_context) as client:
        with pytest.raises(IsADirectoryError):
            await client.fetch("/file", local / "folder")
        with pytest.raises(FileExistsError):
            await client.fetch("/file", local / "fifo")
        with pytest.raises(FileNotFoundError):
            await client.fetch("/file", local / "none" / "file")
    assert sorted(path.name for path in local.iterdir()) == ["fifo", "folder"]


async def test_a_linked_target_is_replaced_where_it_is(served, local, make_context):
    filled(served / "file", 10)
    (local / "real").mkdir()
    (local / "real" / "copy").write_bytes(b"old")
    (local / "link").symlink_to("real/copy")
    async with client_for(served, make_context) as client:
        await client.fetch("/file", local / "link")
    assert (local / "link").is_symlink()
    assert (local / "real" / "copy").read_bytes() == (served / "file").read_bytes()


async def test_a_name_as_long_as_names_may_be_is_fetched(served, local, make_context):
    name = "ü" * 127
    filled(served / name, 10)
    async with client_for(served, make_context) as client:
        await client.fetch(f"/{escape(name.encode())}", local / name)
    assert (local / name).exists()


async def test_abandoned_downloads_leave_no_descriptor_pipe_or_file_behind(served, local, make_context):
    source = served / "file"
    source.touch()
    os.truncate(source, 32 * MIB)

    def give_up():
        raise InterruptedError("enough")

    server_context = make_context()
    with Root(served) as root, anyio.fail_after(60):
        files = FileServer(root)
        async with (
            zcserver.serve(files.handle, port=0, context=server_context) as server,
            zcserver.connect(port=server.port, context=make_context()) as connection,
        ):
            client = Client(connection)
            await client.fetch("/file", local / "copy")  # whatever is opened once is open now
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(10):
                with pytest.raises(InterruptedError):
                    await client.fetch("/file", local / "other", progress=OnFirstPiece(give_up))
            await client.fetch("/file", local / "copy")
            while files.active:
                await anyio.lowlevel.checkpoint()
            assert len(os.listdir("/proc/self/fd")) == before
    assert server_context.pipes.file_pipes == 0
    assert [path.name for path in local.iterdir()] == ["copy"]


# -- URLs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("zc://host", Address("host", 7420, "/")),
        ("zc://host/", Address("host", 7420, "/")),
        ("zc://host:80/a/b", Address("host", 80, "/a/b")),
        ("zc://[::1]:80/a?b#c%20d", Address("::1", 80, "/a?b#c%20d")),
        ("zc://[::1]", Address("::1", 7420, "/")),
        ("zc://h/\udcff", Address("h", 7420, "/%FF")),
        ("zc://h/new\nline", Address("h", 7420, "/new\nline")),
    ],
)
def test_a_url_is_read(url, address):
    assert parse_url(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host/path",
        "http://host/",
        "zc://",
        "zc:///path",
        "zc://h:0/",
        "zc://h:70000/",
        "zc://h:x/",
        "zc://::1/",
    ],
)
def test_what_is_no_url_is_refused_with_an_example(url):
    with pytest.raises(UrlError, match=r"zc://127\.0\.0\.1/data\.bin"):
        parse_url(url)
