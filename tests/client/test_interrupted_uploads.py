"""``Client.put`` of a file whose upload was interrupted sends the rest, if it still is the same file."""

import os

import pytest

from tests.client.connected import MIB, AbandonedError, AfterBytes, abandon, client_for, filled

pytestmark = pytest.mark.anyio
SIZE = 6 * MIB
WINDOW = MIB >> 2  # so little is on its way that an interrupted upload has left most of it


class Counting(AfterBytes):
    """Also notes how much was there before, and how much came."""

    def __init__(self, nbytes=0, action=lambda: None):
        super().__init__(nbytes, action)
        self.before = self.came = 0

    def started(self, path, size, done):
        self.before = done

    def moved(self, path, nbytes):
        self.came += nbytes
        super().moved(path, nbytes)


async def interrupted(client, *arguments, **options):
    with pytest.raises(AbandonedError):
        await client.put(*arguments, **options, progress=AfterBytes(SIZE * 2 // 3, abandon))


@pytest.mark.parametrize("verify", [True, False])
async def test_only_the_rest_is_sent(served, local, make_context, verify):
    content = filled(local / "file", SIZE)
    async with client_for(served, make_context, stream_window=WINDOW) as client:
        await interrupted(client, local / "file", "/file", verify=verify)
        assert not (served / "file").exists()
        progress = Counting()
        done = await client.put(local / "file", "/file", verify=verify, progress=progress)
        assert done.resumed == progress.before > 0
        assert progress.came == SIZE - done.resumed
        assert done.nbytes == SIZE
    assert (served / "file").read_bytes() == content
    assert (served / "file").stat().st_mtime_ns == (local / "file").stat().st_mtime_ns
    assert os.listdir(served / ".zcserver") == []


async def test_of_a_file_that_was_changed_all_is_sent(served, local, make_context):
    filled(local / "file", SIZE)
    time = (local / "file").stat().st_mtime_ns
    async with client_for(served, make_context, stream_window=WINDOW) as client:
        await interrupted(client, local / "file", "/file")
        content = filled(local / "file", SIZE, seed=2)
        os.utime(local / "file", ns=(time, time))  # it looks as before, but for the time of its inode
        assert (await client.put(local / "file", "/file")).resumed == 0
    assert (served / "file").read_bytes() == content


async def test_memory_is_sent_whole(served, local, make_context):
    content = filled(local / "file", SIZE)
    async with client_for(served, make_context, stream_window=WINDOW) as client:
        await interrupted(client, content, "/file")
        assert (await client.put(content, "/file")).resumed == 0
    assert (served / "file").read_bytes() == content
