"""What is given as memory, or as an open file, and is none: misuse, before anything is sent."""

import io
import os

import numpy
import pytest

from tests.client.connected import client_for, filled
from zcserver.client.request import finished
from zcserver.errors import MisuseError
from zcserver.file_protocol import PUT

pytestmark = pytest.mark.anyio
DATES = numpy.zeros(4, "datetime64[s]")


@pytest.mark.parametrize("data", [3.5, None, [1, 2], numpy.arange(1000)[::2], DATES])
async def test_put_sends_only_memory_in_one_piece(served, make_context, data):
    async with client_for(served, make_context) as client:
        with pytest.raises(MisuseError, match="memory"):
            await client.put(data, "/file")
        await client.put(numpy.arange(6, dtype="uint16").reshape(2, 3), "/array")
        await client.put(numpy.zeros((0, 3)), "/empty")
    assert not (served / "file").exists()
    assert (served / "array").stat().st_size == 12
    assert (served / "empty").read_bytes() == b""


async def test_what_has_no_bytes_to_write_to_is_not_read_into(served, make_context):
    filled(served / "file", 100)
    async with client_for(served, make_context) as client:
        with pytest.raises(MisuseError, match="cannot read into ndarray"):
            await client.read_into("/file", DATES.copy())


async def test_send_file_takes_only_open_regular_files(served, local, make_context):
    content = filled(local / "file", 100)
    closed = (local / "file").open("rb")
    closed.close()
    folder = os.open(local, os.O_RDONLY)
    async with client_for(served, make_context) as client:
        stream = await client.connection.open(PUT, "/file", size=100)
        for what in ("file", local / "file", None, io.BytesIO(content), closed, folder):
            with pytest.raises(MisuseError, match="give an open file"):
                await stream.send_file(what)
        with (local / "file").open("rb") as file:
            await (await stream.send_file(file, end=True))
        await finished(stream)
    assert (served / "file").read_bytes() == content
    os.close(folder)
