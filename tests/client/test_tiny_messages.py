"""A small file in far more messages than its bytes need: what the client keeps of it stays as small."""

from hashlib import sha256

import pytest

from tests.client.connected import client_of
from zcserver.client.partial import PartialFile

pytestmark = pytest.mark.anyio

COUNT = 5000


@pytest.fixture
def written(monkeypatch):
    """How many pieces each write of a file had."""
    counts = []
    write = PartialFile.write

    def noting(self, pieces):
        counts.append(len(pieces))
        write(self, pieces)

    monkeypatch.setattr(PartialFile, "write", noting)
    return counts


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(("message", "most"), [(b"", 1), (b"x", COUNT // 512 + 512)])
async def test_tiny_messages_are_not_kept_one_by_one(tmp_path, make_context, written, message, most, verify):
    content = message * COUNT + b"y"

    async def handle(stream):
        if stream.method == "DIGEST":
            await stream.reply(validator="v", algorithm="sha256", digest=sha256(content).hexdigest())
            await stream.end()
            return
        size = len(content)
        await stream.reply(size=size, mtime_ns=0, validator="v", offset=0, length=size)
        for _ in range(COUNT):
            await stream.send(message)
        await stream.send(b"y", end=True)

    async with client_of(handle, make_context) as client:
        await client.fetch("/file", tmp_path / "file", verify=verify)
    assert (tmp_path / "file").read_bytes() == content
    assert sum(written) <= most
