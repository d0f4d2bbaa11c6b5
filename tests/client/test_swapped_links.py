"""Symbolic links put into a tree while it is fetched, sent or cleared: nothing is reached through them."""

import errno
import os

import anyio
import msgspec
import pytest

from tests.client.connected import AfterBytes, client_for, client_of, filled
from zcserver.client import Progress
from zcserver.file_protocol import LIST, Entry, Page
from zcserver.kernel.calls import Kernel
from zcserver.server import FileServer, Root

pytestmark = pytest.mark.anyio
MIB = 1 << 20


@pytest.fixture(params=[None, errno.ENOSYS], ids=["openat2", "ENOSYS"], autouse=True)
def kind_of_kernel(request, monkeypatch):
    def missing(*_):
        raise OSError(request.param, os.strerror(request.param))

    if request.param is not None:
        monkeypatch.setattr(Kernel, "openat2", missing)


@pytest.fixture
def outside(tmp_path):
    directory = tmp_path / "outside"
    directory.mkdir()
    return directory


def swap(path, outside):
    """Put a link to ``outside`` where a folder, or a file, was."""
    path.rename(path.with_name("gone"))
    path.symlink_to(outside)


def words_of(report):
    return {name: str(error) for name, error in report.failures}


def tell_of_links(words):
    """(The walk without openat2 sees only that they are no folders.)"""
    return all("symbolic link" in text or "Not a directory" in text for text in words.values())


class AfterFile(Progress):
    def __init__(self, path, action):
        self.path = path
        self.action = action

    def finished(self, path):
        if path == self.path:
            self.action()


async def test_a_folder_that_becomes_a_link_between_two_pages(served, local, outside, make_context):
    (served / "sub").mkdir()
    for name in ("sub/a", "sub/b"):
        filled(served / name, 1000)
    first_is_here = anyio.Event()
    with Root(served) as root:
        files = FileServer(root)

        async def handle(stream):
            if stream.method != LIST:
                await files.handle(stream)
                return
            folder = [Entry("sub", "directory"), Entry("sub/a", "file", 1000)]
            await stream.send(msgspec.json.encode(Page(folder, True)))
            await first_is_here.wait()
            swap(local / "sub", outside)
            more = [Entry("sub/b", "file", 1000), Entry("sub/inner", "directory")]
            await stream.send(msgspec.json.encode(Page(more, False)), end=True)

        async with client_of(handle, make_context) as client:
            progress = AfterFile("/sub/a", first_is_here.set)
            report = await client.fetch_tree("/", local, progress=progress)
        files.close()
    words = words_of(report)
    assert report.transferred == ["/sub/a"]
    assert {"/sub/b", "/sub/inner"} <= words.keys()
    assert tell_of_links(words)
    assert os.listdir(outside) == []


@pytest.mark.parametrize("name", ["sub", "sub/inner"])
async def test_a_folder_that_becomes_a_link_while_a_file_is_fetched(
    served, local, outside, make_context, name
):
    (served / "sub" / "inner").mkdir(parents=True)
    content = filled(served / "sub" / "inner" / "file", 8 * MIB)
    (outside / "inner").mkdir()
    async with client_for(served, make_context) as client:
        progress = AfterBytes(MIB, lambda: swap(local / name, outside))
        report = await client.fetch_tree("/", local, progress=progress)
        words = words_of(report)
        assert (report.files, words.keys() >= {"/sub/inner/file"}) == (0, True)
        assert tell_of_links(words)
        assert (os.listdir(outside), os.listdir(outside / "inner")) == (["inner"], [])
        (local / name).unlink()
        (local / "sub" / "gone" if "/" in name else local / "gone").rename(local / name)
        assert (await client.sync("/", local)).failures == []
    assert (local / "sub" / "inner" / "file").read_bytes() == content


async def test_a_link_that_takes_the_name_of_a_file_is_replaced_itself(served, local, outside, make_context):
    content = filled(served / "file", 4 * MIB)
    filled(outside / "file", 10)
    async with client_for(served, make_context) as client:
        progress = AfterBytes(MIB, lambda: (local / "file").symlink_to(outside / "file"))
        assert (await client.fetch_tree("/", local, progress=progress)).failures == []
    assert not (local / "file").is_symlink()
    assert (local / "file").read_bytes() == content
    assert (outside / "file").stat().st_size == 10


async def test_nothing_is_removed_through_a_folder_that_becomes_a_link(
    served, local, outside, make_context, monkeypatch
):
    (local / "sub").mkdir()
    for path in (local / "sub" / "a", local / "sub" / "b", outside / "a", outside / "b"):
        filled(path, 10)
    unlink = os.unlink

    def swapping(path, **named):
        if not (local / "sub").is_symlink():
            swap(local / "sub", outside)
        unlink(path, **named)

    async with client_for(served, make_context) as client:
        with monkeypatch.context() as patched:
            patched.setattr(os, "unlink", swapping)
            report = await client.sync("/", local, delete=True)
    assert sorted(os.listdir(outside)) == ["a", "b"]
    assert os.listdir(local / "gone") == ["a"]  # the folder that was open when it was renamed
    assert report.deleted[:1] == [str(local / "sub" / "b")]
    assert str(local / "sub" / "a") in words_of(report)


async def test_what_becomes_a_link_after_it_was_seen_is_not_sent(served, local, outside, make_context):
    (local / "sub").mkdir()
    for name in ("a", "b", "c", "sub/secret"):
        filled(local / name, 10)
    filled(outside / "secret", 20)
    filled(outside / "new", 30)

    def interfere():
        (local / "b").unlink()
        (local / "b").symlink_to(outside / "secret")
        (outside / "new").rename(local / "c")  # as editors save: that is no link
        swap(local / "sub", outside)

    async with client_for(served, make_context) as client:
        report = await client.put_tree(local, "/copy", jobs=1, progress=AfterFile("/copy/a", interfere))
    words = words_of(report)
    assert words.keys() == {"/copy/b", "/copy/sub/secret"}
    assert tell_of_links(words)
    assert sorted(os.listdir(served / "copy")) == ["a", "c", "sub"]
    assert os.listdir(served / "copy" / "sub") == []
    assert (served / "copy" / "c").stat().st_size == report.nbytes - 10 == 30


async def test_no_descriptor_of_a_tree_stays_open(served, local, make_context):
    (served / "sub").mkdir()
    filled(served / "sub" / "file", 10)
    async with client_for(served, make_context) as client:
        await client.stat("/")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            await client.sync("/", local / "copy", delete=True)
            await client.sync(local / "copy", "/other")
            with pytest.raises(NotADirectoryError):
                await client.put_tree(local / "copy" / "sub" / "file", "/other")
        await client.stat("/")
        assert len(os.listdir("/proc/self/fd")) <= before + 2  # (a pipe)
