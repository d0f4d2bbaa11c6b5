"""Uploads that one of the two ends gives up."""

import os

import anyio
import pytest

from tests.client.connected import AbandonedError, AfterBytes, abandon, client_for, client_of
from zcserver import StreamResetError
from zcserver.errors import ConnectionLostError, TransferError
from zcserver.file_protocol import NO_SPACE

pytestmark = pytest.mark.anyio


async def test_a_put_from_a_pipe_that_is_given_up_leaves_nothing(served, make_context):
    source, target = os.pipe()
    os.write(target, b"beginning")
    async with client_for(served, make_context) as client:
        with pytest.raises(AbandonedError):  # while the pipe is open, and nobody writes to it
            await client.put(source, "/file", progress=AfterBytes(1, abandon))
        with anyio.CancelScope() as scope:
            os.write(target, b"beginning")
            await client.put(source, "/file", progress=AfterBytes(1, scope.cancel))
    os.close(source)
    os.close(target)
    assert scope.cancelled_caught
    assert not (served / "file").exists()


@pytest.mark.parametrize(
    ("give_up", "expected"),
    [
        (lambda stream: stream.reset(NO_SPACE, "the disk is full"), (StreamResetError, "the disk is full")),
        (lambda stream: None, (TransferError, "of /file without committing it: send it again")),
        (lambda stream: stream.connection.abort(), (ConnectionLostError, None)),
    ],
    ids=["refused", "ended", "lost"],
)
async def test_a_put_from_an_idle_pipe_ends_with_the_server(make_context, give_up, expected):
    kind, words = expected

    async def handle(stream):
        await stream.reply()
        await stream.receive()
        give_up(stream)

    source, target = os.pipe()
    os.write(target, b"beginning")
    async with client_of(handle, make_context) as client:
        with pytest.raises(kind, match=words):
            await client.put(source, "/file")
    os.close(source)
    os.close(target)


@pytest.mark.parametrize("source", ["memory", "descriptor"])
async def test_what_the_server_takes_to_its_end_without_committing_it_is_not_sent(make_context, source):
    async def handle(stream):
        await stream.reply(offset=0)
        async for _ in stream.chunks():
            pass

    readable, writable = os.pipe()
    os.write(writable, b"content")
    os.close(writable)
    async with client_of(handle, make_context) as client:
        with pytest.raises(TransferError, match="of /file without committing it: send it again"):
            await client.put(b"content" if source == "memory" else readable, "/file")
    os.close(readable)
