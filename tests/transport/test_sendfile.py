"""The counterpart of loop.sendfile."""

import asyncio
import io
import os

import pytest

import zcserver
from tests.transport.recorders import KIB, MIB, paired, until

pytestmark = pytest.mark.asyncio
CONTENT = bytes(range(256)) * 12 * KIB


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    with path.open("rb") as opened:
        yield opened


async def test_a_file_goes_from_the_page_cache_and_in_its_place_between_writes(pair, file):
    pair.left.write(b"before")
    assert await zcserver.sendfile(pair.left, file) == len(CONTENT)
    assert pair.server.data == b"before" + CONTENT, "it returned before the peer had all of it"
    assert file.tell() == len(CONTENT)
    pair.left.write(b"after")
    await until(lambda: pair.server.data == b"before" + CONTENT + b"after")
    assert pair.left.get_extra_info("stats").file_bytes == len(CONTENT)


async def test_short_files_follow_short_writes(pair, tmp_path):
    path = tmp_path / "page"
    path.write_bytes(b"f" * 5000)
    with path.open("rb") as page:
        for _ in range(2):
            pair.left.write(b"header")
            assert await zcserver.sendfile(pair.left, page, 0) == 5000
    assert pair.server.data == 2 * (b"header" + b"f" * 5000)


@pytest.mark.parametrize(("offset", "count"), [(0, 1000), (1000, 2 * MIB), (MIB, None), (1 << 30, None)])
async def test_a_part_of_a_file(pair, file, offset, count):
    expected = CONTENT[offset:][:count]
    assert await zcserver.sendfile(pair.left, file, offset, count) == len(expected)
    assert pair.server.data == expected
    assert file.tell() == (offset + len(expected) if expected else 0)
    assert await zcserver.sendfile(pair.left, file, 3 * MIB - 5, 100) == 5


async def test_the_loops_own_sendfile_is_refused_so_that_programs_send_the_file_themselves(pair, file):
    with pytest.raises(NotImplementedError):
        await asyncio.get_running_loop().sendfile(pair.left, file)


async def test_what_is_no_file_is_read_and_written_or_refused(pair):
    source = io.BytesIO(CONTENT)
    assert await zcserver.sendfile(pair.left, source, 100, 2 * MIB) == 2 * MIB
    assert pair.server.data == CONTENT[100 : 100 + 2 * MIB]
    with pytest.raises(asyncio.SendfileNotAvailableError):
        await zcserver.sendfile(pair.left, source, fallback=False)


async def test_arguments_are_checked_as_asyncio_does(pair, file, tmp_path):
    with (tmp_path / "file").open() as text, pytest.raises(ValueError, match="binary mode"):
        await zcserver.sendfile(pair.left, text)
    for offset, count, error in (
        (-1, None, ValueError),
        ("0", None, TypeError),
        (0, 0, ValueError),
        (0, 1.5, TypeError),
    ):
        with pytest.raises(error):
            await zcserver.sendfile(pair.left, file, offset, count)
    pair.left.close()
    with pytest.raises(RuntimeError, match="closing"):
        await zcserver.sendfile(pair.left, file)


async def test_a_cancelled_wait_leaves_the_file_behind_what_goes_on_being_sent(make_context, file):
    async with paired(make_context(), make_context(stream_window=256 * KIB)) as pair:
        pair.right.pause_reading()
        sending = asyncio.ensure_future(zcserver.sendfile(pair.left, file))
        await until(lambda: pair.left.get_extra_info("stats").file_bytes)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert file.tell() == len(CONTENT)
        pair.right.resume_reading()
        await until(lambda: pair.server.data == CONTENT)


async def test_a_file_that_becomes_shorter_breaks_the_byte_stream_off(make_context, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(32 * MIB))
    async with paired(make_context(), make_context(stream_window=256 * KIB)) as pair:
        pair.right.pause_reading()
        with path.open("r+b") as file:
            sending = asyncio.ensure_future(zcserver.sendfile(pair.left, file))
            await until(lambda: pair.left.get_extra_info("stats").file_bytes)
            os.truncate(path, 1 * MIB)
            pair.right.resume_reading()
            with pytest.raises(zcserver.TransferError, match="shortened"):
                await sending
            assert 0 < file.tell() < 32 * MIB, "it is not behind what was put on the way"
        await pair.over()
        for protocol in (pair.client, pair.server):
            assert isinstance(protocol.error, ConnectionResetError)
            assert "shortened" in str(protocol.error)
