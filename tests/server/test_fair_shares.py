"""What one connection may cost the others: listings and digests wait at its own expense."""

import contextlib
import os
import tracemalloc

import anyio
import pytest

import zcserver
from tests.raw_peer import deadline, until
from tests.server.requests import MIB, ask, descriptors_of, names, refused
from zcserver import ErrorCode
from zcserver.file_protocol import DIGEST, GET, LIST, PAGE_ENTRIES
from zcserver.server import FileServer, Root
from zcserver.server.listing import Listing
from zcserver.server.roots import Roots
from zcserver.server.turns import DIGESTS, LISTINGS

pytestmark = pytest.mark.anyio
MANY = 6 * PAGE_ENTRIES + 1


class CountingRoot(Root):
    """Counts how often a directory or a file was opened for a request."""

    opened = 0

    def open_directory(self, path):
        self.opened += 1
        return super().open_directory(path)

    def open_file(self, path, cached=False):
        self.opened += 1
        return super().open_file(path, cached)


@pytest.fixture
def root(served):
    with CountingRoot(served) as root:
        yield root


@contextlib.asynccontextmanager
async def two_clients(root, make_context):
    """A server, and connections of two clients, the first of which takes next to nothing that it is sent."""
    files = FileServer(root)
    with deadline():
        async with (
            zcserver.serve(files.handle, port=0, context=make_context()) as server,
            zcserver.connect(port=server.port, context=make_context(stream_window=64 << 10)) as idle,
            zcserver.connect(port=server.port, context=make_context()) as other,
        ):
            yield files, idle, other
    files.close()


@pytest.fixture
def crowded(served):
    """A directory whose listing has several pages."""
    for number in range(MANY):
        (served / f"entry-{number:06}").symlink_to("nowhere")


def test_a_listing_that_nobody_reads_on_holds_little_more_than_the_names(root, crowded):
    tracemalloc.start()
    try:
        listing = Listing(Roots([root]), "/", recursive=True)
        assert listing.next_page().more
        assert tracemalloc.get_traced_memory()[0] < MANY * 64
    finally:
        tracemalloc.stop()


def test_a_listing_holds_no_descriptor_between_its_pages(root, crowded, served):
    (served / "entry-000000").unlink()
    (served / "entry-000000").mkdir()
    before = os.listdir("/proc/self/fd")
    listing = Listing(Roots([root]), "/", recursive=True)
    assert listing.next_page().more
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_what_goes_while_it_is_listed_is_left_out(root, crowded, served):
    listing = Listing(Roots([root]), "/", recursive=False)
    begun = listing.next_page().entries
    for number in range(PAGE_ENTRIES + 1, MANY):
        (served / f"entry-{number:06}").unlink()
    assert [entry.path for entry in begun + listing.next_page().entries] == [
        f"entry-{number:06}" for number in range(PAGE_ENTRIES + 1)
    ]


async def test_listings_that_a_connection_does_not_read_wait_for_each_other(root, crowded, make_context):
    pages = []

    async def read(stream):
        pages.append(len([message async for message in stream]))

    async with two_clients(root, make_context) as (_, idle, other):
        streams = [await idle.open(LIST, "/") for _ in range(2 * LISTINGS)]
        await until(lambda: root.opened == LISTINGS)
        assert len(await names(other, "/")) == MANY
        assert root.opened == LISTINGS + 1
        async with anyio.create_task_group() as tasks:
            for stream in streams:
                tasks.start_soon(read, stream)
        assert pages == [MANY // PAGE_ENTRIES + 1] * len(streams)


async def test_listings_of_all_connections_together_have_a_bound(crowded, root, make_context, monkeypatch):
    monkeypatch.setattr("zcserver.server.reading._LISTINGS", 2)
    async with two_clients(root, make_context) as (files, idle, other):
        first, _second = [await idle.open(LIST, "/") for _ in range(2)]  # (dropped, it would be given up)
        await until(lambda: root.opened == 2)
        with refused(ErrorCode.LIMIT, r"/: .* 2 listings under way, which is the most: try again later"):
            await names(other, "/")
        first.reset()
        await until(lambda: files.active == 1)
        assert len(await names(other, "/")) == MANY


async def test_digests_of_one_connection_do_not_keep_another_s_waiting(served, root, make_context):
    (served / "huge").touch()
    os.truncate(served / "huge", 1 << 40)
    (served / "short").write_bytes(b"short")
    many = 4 * len(os.sched_getaffinity(0)) * DIGESTS
    async with two_clients(root, make_context) as (files, idle, other):
        held = [await idle.open(DIGEST, "/huge") for _ in range(many)]
        await until(lambda: files.active == len(held))
        assert (await ask(other, DIGEST, "/short"))["size"] == 5
        assert root.opened == DIGESTS + 1


async def test_a_get_that_is_not_read_holds_one_descriptor_of_its_file(served, root, make_context):
    (served / "file").write_bytes(bytes(MIB))

    async with two_clients(root, make_context) as (files, idle, _):
        held = [await idle.open(GET, "/file") for _ in range(20)]
        await until(lambda: files.active == len(held))
        await until(lambda: descriptors_of(served / "file") == 20)
