"""Permissions of what a download leaves behind: of the file it replaces, and of its beginning."""

import os
import stat

import pytest

from tests.client.connected import MIB, AbandonedError, AfterBytes, abandon, client_for, filled
from zcserver.client.partial import Origin, PartialFile

pytestmark = pytest.mark.anyio


def permissions(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


async def test_a_replaced_file_hands_its_permissions_on_and_a_new_one_has_the_usual(
    served, local, make_context
):
    content = filled(served / "small", 10), filled(served / "large", 3 * MIB)
    modes = {"program": 0o755, "secret": 0o600, "read-only": 0o444, "odd": 0o070, "for all": 0o777}
    for name, mode in modes.items():
        (local / name).touch()
        (local / name).chmod(mode | stat.S_ISUID | stat.S_ISGID)
    async with client_for(served, make_context) as client:
        for source, size in (("/small", 10), ("/large", 3 * MIB)):
            for name in (*modes, f"new{source[1:]}"):
                await client.fetch(source, local / name)
                assert (local / name).stat().st_size == size
                assert permissions(local / name) == modes.get(name, 0o644), name
        await client.fetch_tree("/", local)
        (local / "small").chmod(0o750)
        await client.fetch_tree("/", local)
    assert permissions(local / "small") == 0o750
    assert ((local / "small").read_bytes(), (local / "large").read_bytes()) == content


@pytest.mark.parametrize("mode", [0o444, 0o400, 0o440])
async def test_what_replaces_a_read_only_file_can_be_gone_on_with(served, local, make_context, mode):
    content = filled(served / "file", 12 * MIB)
    (local / "copy").touch()
    (local / "copy").chmod(mode)
    async with client_for(served, make_context) as client:
        with pytest.raises(AbandonedError):
            await client.fetch("/file", local / "copy", progress=AfterBytes(6 * MIB, abandon))
        assert permissions(local / ".copy.zcpart") == 0o600
        assert (await client.fetch("/file", local / "copy")).resumed
    assert (local / "copy").read_bytes() == content
    assert permissions(local / "copy") == mode


def test_a_beginning_is_closed_to_those_to_whom_the_file_is_by_now(tmp_path):
    origin = Origin("/file", "v", 10)
    partial = PartialFile(tmp_path / "file")
    partial.find()
    partial.open(origin)
    partial.write([memoryview(b"secret")])
    partial.keep()
    (tmp_path / "file").touch(mode=0o600)
    partial = PartialFile(tmp_path / "file")
    assert partial.find().nbytes == 6
    partial.open(origin, 6)
    assert permissions(tmp_path / ".file.zcpart") == 0o600
    partial.discard()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another group")
async def test_the_group_whose_permissions_they_are_stays_with_them(served, local, make_context):
    filled(served / "file", 10)
    (local / "copy").touch()
    os.chown(local / "copy", -1, 4711)
    (local / "copy").chmod(0o660)
    async with client_for(served, make_context) as client:
        await client.fetch("/file", local / "copy")
    status = (local / "copy").stat()
    assert (status.st_size, status.st_gid, permissions(local / "copy")) == (10, 4711, 0o660)
