"""A wrong argument is refused at once, and nothing has changed."""

import gc
import tempfile
from pathlib import Path

import numpy
import pytest

import zcserver
from tests.raw_peer import joined

pytestmark = pytest.mark.anyio
REFUSED = (TypeError, zcserver.MisuseError)


@pytest.mark.parametrize("where", [(1.5,), (0, 10.5), (0, 10.0), ("1",), (-1,), (0, 1001)])
async def test_of_a_place_in_a_file(make_context, where):
    async with joined(make_context()) as ends:
        ours, theirs = await ends.stream()
        with tempfile.TemporaryFile() as file:
            file.write(b"x" * 1000)
            file.flush()
            with pytest.raises(REFUSED):
                await ours.send_file(file, *where)
            await ours.send_file(file, 0, 10, end=True)
        assert bytes(await theirs.receive()) == b"x" * 10


@pytest.mark.parametrize("why", [(-1,), (1 << 32,), ("x",), (1.5,), (5, None), (5, b"y")])
async def test_of_a_reset(make_context, why):
    async with joined(make_context()) as ends:
        ours, theirs = await ends.stream()
        with pytest.raises(REFUSED):
            ours.reset(*why)
        await ours.send(b"it lives")
        assert bytes(await theirs.receive()) == b"it lives"
        ours.reset(5, "y" * 100_000)
        with pytest.raises(zcserver.StreamResetError, match="yyy") as caught:
            await theirs.receive()
        assert caught.value.code == 5


@pytest.mark.parametrize("words", [("ECHO", Path("/x")), (b"ECHO", "/x"), ("ECHO", None)])
async def test_of_a_stream_to_be_opened(make_context, words):
    async with joined(make_context()) as ends:
        with pytest.raises(zcserver.MisuseError, match="give texts"):
            await ends.client.open(*words)
        _ = await ends.stream()


async def test_numpys_truth_is_none(make_context):
    """Whatever is true ends a stream, numpy's truth, too."""
    async with joined(make_context()) as ends:
        ours, theirs = await ends.stream()
        await ours.send(b"x", end=numpy.bool_(False), allow_views=0)
        await ours.send(b"y", end=numpy.bool_(True))
        assert [bytes(message) async for message in theirs] == [b"x", b"y"]


@pytest.mark.parametrize("kind", [zcserver.Buffer, zcserver.Stream])
async def test_of_an_object_that_only_zcserver_makes(kind):
    """Its finalizer says nothing. (A compiled one would crash on what is not set.)"""
    with pytest.raises(TypeError):
        kind()
    gc.collect()


@pytest.mark.parametrize("count", ["x", 0.0])
async def test_of_a_commit(make_context, count):
    async with joined(make_context()) as ends:
        ours, theirs = await ends.stream()
        await ours.send(b"x")
        await theirs.receive()
        with pytest.raises(REFUSED):
            await theirs.commit(count)
        await theirs.commit(1)
        await ours.wait_committed(1)
