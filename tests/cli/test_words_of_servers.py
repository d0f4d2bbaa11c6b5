"""What a server says reaches the terminal without control characters, and a listing has a line per entry."""

import contextlib
import json

import pytest

import zcserver
from tests.raw_peer import deadline
from zcserver.cli.remote import list_directory, show_status
from zcserver.file_protocol import LIST, NOT_A_DIRECTORY

pytestmark = pytest.mark.anyio

NAME = "a\x1b]0;owned\x07\x1b[31mRED\nforged"
CLEAN = "a?]0;owned??[31mRED?forged"


async def lie(stream):
    """Listings of a file, and the status of one, in words that no terminal should get."""
    if stream.method == LIST and stream.path == "/file":
        raise zcserver.StreamResetError(NOT_A_DIRECTORY, "")
    if stream.method == LIST:
        entry = {"path": NAME, "type": "file", "size": 3}
        await stream.send(json.dumps({"entries": [entry], "more": False}).encode(), end=True)
    else:
        await stream.reply(type="weird\x1b[2J", size=3, mtime_ns=0, validator="v\nforged")
        await stream.end()


@pytest.fixture
def anyio_backend():
    return "asyncio"  # the commands catch signals by it


@pytest.fixture
async def lying(make_context):
    """The URL of a server that says such things."""

    @contextlib.asynccontextmanager
    async def serving():
        with deadline():
            async with zcserver.serve(lie, port=0, context=make_context()) as server:
                yield f"zc://127.0.0.1:{server.port}"

    return serving


@pytest.mark.parametrize("long", [False, True])
async def test_a_name_in_a_listing(lying, capfd, long):
    async with lying() as url:
        await list_directory(url + "/", long, False, False)
    (line,) = capfd.readouterr().out.splitlines()
    assert line.endswith(CLEAN)
    assert line.isprintable()


async def test_a_name_in_a_listing_for_scripts(lying, capfd):
    async with lying() as url:
        await list_directory(url + "/", False, False, True)
    (line,) = capfd.readouterr().out.splitlines()
    assert line.isprintable()
    assert json.loads(line)["path"] == NAME


async def test_a_kind_of_entry_that_is_unknown(lying, capfd):
    async with lying() as url:
        await list_directory(url + "/file", True, False, False)
    (line,) = capfd.readouterr().out.splitlines()
    assert line.startswith("? ")


async def test_a_status(lying, capfd):
    async with lying() as url:
        await show_status([url + "/file"], False)
    lines = capfd.readouterr().out.splitlines()
    assert lines[1] == "type       weird?[2J"
    assert lines[4:] == ["validator  v?forged"]
