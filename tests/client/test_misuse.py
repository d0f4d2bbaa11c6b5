"""What a program gets wrong is said before anything is done."""

import os

import pytest

from tests.client.connected import AbandonedError, AfterBytes, abandon, client_for, filled
from zcserver import Client
from zcserver.errors import MisuseError

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize("pattern", ["*.log", b"*.log", ""])
async def test_a_single_pattern_is_not_taken_for_a_list_of_them(served, local, make_context, option, pattern):
    filled(served / "l", 1)
    filled(local / "o", 1)
    async with client_for(served, make_context) as client:
        with pytest.raises(MisuseError, match="lists of patterns"):
            await client.sync("/", local, delete=True, **{option: pattern})
    assert os.listdir(local) == ["o"]


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize("pattern", [3, b"*.log", None])
async def test_what_is_no_pattern_is_refused(served, local, make_context, option, pattern):
    filled(served / "file", 1)
    async with client_for(served, make_context) as client:
        with pytest.raises(MisuseError, match="is no pattern: include and exclude are lists of str"):
            await client.fetch_tree("/", local, **{option: ["*.txt", pattern]})
    assert os.listdir(local) == []


async def test_an_error_of_the_progress_comes_out_of_trees_as_it_does_of_files(served, local, make_context):
    filled(served / "file", 1)
    (local / "tree").mkdir()
    filled(local / "tree" / "file", 1)
    async with client_for(served, make_context) as client:
        for transfer in (
            client.fetch("/file", local / "copy", progress=AfterBytes(1, abandon)),
            client.fetch_tree("/", local / "copies", progress=AfterBytes(1, abandon)),
            client.put_tree(local / "tree", "/there", progress=AfterBytes(1, abandon)),
        ):
            with pytest.raises(AbandonedError):
                await transfer


@pytest.mark.parametrize("jobs", [0, -1])
async def test_no_job_at_a_time_is_refused(served, local, make_context, jobs):
    filled(served / "file", 1)
    async with client_for(served, make_context) as client:
        with pytest.raises(MisuseError, match="at least one file"):
            await client.sync("/", local, jobs=jobs)
        with pytest.raises(MisuseError, match="at least one file"):
            await client.put_tree(local, "/there", jobs=jobs)
    assert os.listdir(local) == []
    assert not (served / "there").exists()


@pytest.mark.parametrize("option", ["delete", "dry_run", "update"])
async def test_what_only_a_sync_does_is_not_done_by_anything_else(served, local, make_context, option):
    filled(local / "file", 1)
    async with client_for(served, make_context) as client:
        with pytest.raises(MisuseError, match=f"^{option}: only sync"):
            await client.fetch_tree("/", local, **{option: True})
        with pytest.raises(MisuseError, match=f"^{option}: only sync"):
            await client.put_tree(local, "/there", **{option: True})
    assert os.listdir(local) == ["file"]
    assert not (served / "there").exists()


async def test_a_client_that_is_not_connected_says_so_for_trees_as_for_files(local):
    client = Client("zc://127.0.0.1/")
    for work in (
        client.fetch_tree("/", local / "copy"),
        client.put_tree(local, "/there"),
        client.sync("/", local / "copy"),
    ):
        with pytest.raises(MisuseError, match="not connected"):
            await work


async def test_a_file_that_is_not_open_is_not_read(served, make_context):
    content = filled(served / "file", 100)
    async with client_for(served, make_context) as client:
        file = client.open("/file")
        with pytest.raises(MisuseError, match="/file is not open"):
            await file.read()
        async with file:
            assert await file.read(10) == content[:10]
        for read in (file.read(10), file.readinto(bytearray(10)), anext(aiter(file))):
            with pytest.raises(MisuseError, match="/file is not open"):
                await read


async def test_a_negative_length_is_not_taken_for_all_the_rest(served, make_context):
    filled(served / "file", 100)
    async with client_for(served, make_context) as client:
        with pytest.raises(MisuseError, match=r"length=-5: .*None for all the rest"):
            await client.read("/file", 0, -5)


async def test_a_local_path_may_be_a_text(served, local, make_context):
    content = filled(served / "file", 100)
    async with client_for(served, make_context) as client:
        await client.fetch("/file", str(local / "file"))
        await client.put_tree(str(local), "/there")
        await client.fetch_tree("/there", str(local / "back"))
    assert (local / "back" / "file").read_bytes() == content
