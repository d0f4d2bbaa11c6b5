"""Hashing what is large ends when nobody waits for it any more."""

import hashlib
import types

import anyio
import anyio.from_thread
import pytest

from tests.client.connected import MIB, client_for, filled
from tests.client.test_partial import record_of
from zcserver.client import hashing, partial, upload

pytestmark = pytest.mark.anyio


@pytest.fixture
def hashed(monkeypatch):
    """The pieces that have been hashed; ``scope`` of it is cancelled with the first one."""
    seen = types.SimpleNamespace(pieces=0, scope=None)

    class Hasher:
        def update(self, piece):
            seen.pieces += 1
            if seen.pieces == 1:
                anyio.from_thread.run_sync(seen.scope.cancel)

    for module in (partial, upload):
        monkeypatch.setattr(module, "hashlib", types.SimpleNamespace(new=lambda name: Hasher()))
    return seen


@pytest.mark.parametrize("source", ["file", "memory"])
async def test_a_cancelled_upload_is_not_hashed_to_its_end(served, local, make_context, hashed, source):
    content = filled(local / "file", 8 * MIB)
    async with client_for(served, make_context) as client:
        with anyio.CancelScope() as hashed.scope:
            await client.put(local / "file" if source == "file" else content, "/there", verify=True)
    assert hashed.scope.cancelled_caught
    assert hashed.pieces == 1
    assert not (served / "there").exists()


async def test_the_beginning_of_a_cancelled_download_is_not_hashed_to_its_end_and_stays(
    served, local, make_context, hashed
):
    content = filled(served / "file", 8 * MIB)
    async with client_for(served, make_context) as client:
        validator = (await client.stat("/file")).validator
        (local / ".file.zcfrom").write_text(record_of(8 * MIB, validator=validator))
        (local / ".file.zcpart").write_bytes(content[: 6 * MIB])
        with anyio.CancelScope() as hashed.scope:
            await client.fetch("/file", local / "file", verify=True)
    assert hashed.scope.cancelled_caught
    assert hashed.pieces == 1
    assert (local / ".file.zcpart").read_bytes() == content[: 6 * MIB]
    assert (local / ".file.zcfrom").exists()


async def test_what_is_hashed_in_pieces_has_the_digest_of_the_whole(tmp_path):
    content = filled(tmp_path / "file", 3 * MIB + 7)
    of_file, of_memory = hashlib.sha256(), hashlib.sha256()
    with (tmp_path / "file").open("rb") as file:
        await anyio.to_thread.run_sync(hashing.hash_file, of_file, file.fileno(), len(content) - 5)
    await anyio.to_thread.run_sync(hashing.hash_memory, of_memory, memoryview(content))
    assert of_file.hexdigest() == hashlib.sha256(content[:-5]).hexdigest()
    assert of_memory.hexdigest() == hashlib.sha256(content).hexdigest()
