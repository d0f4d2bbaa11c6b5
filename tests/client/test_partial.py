"""What lies where a download keeps its record and its first bytes: left by an earlier try, or by others."""

import json
import os

import pytest

from tests.client.connected import client_for, filled
from zcserver.client import ChangedError
from zcserver.client.partial import Origin, PartialFile

pytestmark = pytest.mark.anyio


def record_of(size, **more):
    return json.dumps({"path": "/file", "validator": "v", "size": size, **more})


def a_fifo(path):
    os.mkfifo(path)


def an_endless_device(path):
    path.symlink_to("/dev/zero")


def a_link_to_a_record(path):
    path.with_name("elsewhere").write_text(record_of(100))
    path.symlink_to("elsewhere")


def a_folder(path):
    path.mkdir()


def a_long_text(path):
    path.write_text(record_of(100, padding="x" * (64 << 10)))


@pytest.mark.parametrize("make", [a_fifo, an_endless_device, a_link_to_a_record, a_folder, a_long_text])
def test_what_is_no_record_tells_nothing(tmp_path, make):
    make(tmp_path / ".file.zcfrom")
    (tmp_path / ".file.zcpart").write_bytes(b"beginning")
    assert PartialFile(tmp_path / "file").find() is None


async def test_a_fifo_for_a_record_does_not_stop_a_download(served, local, make_context):
    content = filled(served / "file", 1000)
    os.mkfifo(local / ".file.zcfrom")
    async with client_for(served, make_context) as client:
        await client.fetch("/file", local / "file", verify=True)
    assert (local / "file").read_bytes() == content
    assert os.listdir(local) == ["file"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
async def test_what_another_user_began_is_not_continued(served, local, make_context):
    content = filled(served / "file", 1000)
    async with client_for(served, make_context) as client:
        validator = (await client.stat("/file")).validator
        for theirs in (".file.zcfrom", ".file.zcpart"):
            (local / ".file.zcfrom").write_text(record_of(1000, validator=validator))
            (local / ".file.zcpart").write_bytes(b"their bytes")
            os.chown(local / theirs, 12345, -1)
            if theirs == ".file.zcpart":
                with pytest.raises(FileExistsError, match=r"\.file\.zcpart is in the way: remove it"):
                    await client.fetch("/file", local / "file")
                assert (local / theirs).read_bytes() == b"their bytes"
            else:
                await client.fetch("/file", local / "file")
                assert (local / "file").read_bytes() == content


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
async def test_an_empty_file_of_another_user_is_not_written_to(served, local, make_context):
    filled(served / "file", 1000)
    (local / ".file.zcpart").touch()
    os.chown(local / ".file.zcpart", 12345, -1)
    async with client_for(served, make_context) as client:
        with pytest.raises(FileExistsError, match=r"\.file\.zcpart is in the way: remove it"):
            await client.fetch("/file", local / "file")
    assert (local / ".file.zcpart").stat().st_size == 0


async def test_the_same_file_by_another_path_is_gone_on_with(served, local, make_context):
    content = filled(served / "file", 1000)
    (served / "link").hardlink_to(served / "file")
    async with client_for(served, make_context) as client:
        validator = (await client.stat("/file")).validator
        for path in ("//file", "/f%69le", "/link", "/moved"):
            if path == "/moved":
                (served / "file").rename(served / "moved")
            (local / ".file.zcfrom").write_text(record_of(1000, validator=validator))
            (local / ".file.zcpart").write_bytes(content[:400])
            assert (await client.fetch(path, local / "file")).resumed == 400
            assert (local / "file").read_bytes() == content
            assert os.listdir(local) == ["file"]


async def test_of_another_path_it_is_not_said_that_the_file_has_changed(served, local, make_context):
    filled(served / "another", 1000)
    (local / ".copy.zcfrom").write_text(record_of(1000))
    (local / ".copy.zcpart").write_bytes(b"beginning")
    async with client_for(served, make_context) as client:
        with pytest.raises(ChangedError, match=r"they are of /file, or that has changed there: .*--restart"):
            await client.fetch("/another", local / "copy")
    assert (local / ".copy.zcpart").read_bytes() == b"beginning"


def test_what_lies_behind_the_beginning_is_cut_off(tmp_path):
    (tmp_path / ".file.zcfrom").write_text(record_of(10))
    (tmp_path / ".file.zcpart").write_bytes(b"01234")
    partial = PartialFile(tmp_path / "file")
    beginning = partial.find()
    (tmp_path / ".file.zcpart").write_bytes(b"01234" + bytes(20))
    partial.open(beginning.origin, beginning.nbytes)
    partial.write([memoryview(b"56789")])
    partial.commit(0)
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_a_file_that_has_another_name_besides_is_not_written_to(tmp_path):
    (tmp_path / "mine").write_bytes(b"precious")
    (tmp_path / ".file.zcpart").hardlink_to(tmp_path / "mine")
    partial = PartialFile(tmp_path / "file")
    partial.find()
    with pytest.raises(FileExistsError, match=r"\.file\.zcpart is in the way: remove it"):
        partial.open(None)
    assert (tmp_path / "mine").read_bytes() == b"precious"


async def test_a_sync_begins_anew_where_an_older_state_was_begun(served, local, make_context):
    content = filled(served / "file", 1000)
    (local / ".file.zcfrom").write_text(record_of(1000, validator="older"))
    (local / ".file.zcpart").write_bytes(b"beginning")
    async with client_for(served, make_context) as client:
        assert (await client.sync("/", local)).failures == []
    assert (local / "file").read_bytes() == content
    assert os.listdir(local) == ["file"]


@pytest.mark.parametrize(("now", "there"), [("w", b"0123456789"), ("v", b"0123")])
def test_what_another_download_has_put_there_meanwhile_is_left_alone(tmp_path, now, there):
    (tmp_path / ".file.zcfrom").write_text(record_of(100))
    (tmp_path / ".file.zcpart").write_bytes(b"beginning")
    partial = PartialFile(tmp_path / "file")
    beginning = partial.find()
    (tmp_path / ".file.zcfrom").write_text(record_of(100, validator=now))
    (tmp_path / ".file.zcpart").write_bytes(there)
    with pytest.raises(OSError, match="another download has touched it"):
        partial.open(Origin("/file", "v", 100), beginning.nbytes)
    partial.keep()
    partial.discard()
    assert (tmp_path / ".file.zcpart").read_bytes() == there
    assert (tmp_path / ".file.zcfrom").exists()
