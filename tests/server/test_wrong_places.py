"""Where nothing can be made: the refusal says what stands there, or where it can be made instead."""

import os

import pytest

from tests.cli.commands import failing, serving
from tests.server.requests import ask, connected, put, refused
from zcserver import ErrorCode
from zcserver.file_protocol import MKDIR, NOT_A_DIRECTORY, REMOVE, RENAME
from zcserver.server import FileServer, Root


@pytest.fixture
def roots(tmp_path):
    for name in ("a", "b c"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.anyio
async def test_below_a_file_nothing_can_be_made_or_removed(files, served, make_context):
    (served / "file").touch()
    (served / "other").touch()
    async with connected(files, make_context) as connection:
        for path in ("/file/new", "/file/new/er"):
            with refused(NOT_A_DIRECTORY, f"^[^/]*{os.path.dirname(path)} is not a directory"):
                await put(connection, path, b"new")
            for method in (MKDIR, REMOVE):
                with refused(NOT_A_DIRECTORY):
                    await ask(connection, method, path)
            with refused(NOT_A_DIRECTORY):
                await ask(connection, RENAME, "/other", to=path)


@pytest.mark.anyio
async def test_beside_the_served_directories_nothing_can_be_made(roots, make_context):
    (roots / "a" / "file").touch()
    with Root(roots / "a", name="a") as a, Root(roots / "b c", name="b c") as b:
        files = FileServer(a, b, writable=True)
        async with connected(files, make_context) as connection:
            for work in (
                put(connection, "/new", b"new"),
                put(connection, "/none/new", b"new"),
                ask(connection, MKDIR, "/new"),
                ask(connection, RENAME, "/a/file", to="/new"),
            ):
                with refused(ErrorCode.FORBIDDEN, "in none of the served directories: .*, /a, /b c$"):
                    await work
            with refused(ErrorCode.NOT_FOUND, "no such file: /new"):
                await ask(connection, REMOVE, "/new")
            with refused(ErrorCode.FORBIDDEN, r"\): / only holds the served directories"):
                await put(connection, "", b"new")


@pytest.mark.anyio
async def test_the_served_directory_itself_has_a_name(files, make_context):
    async with connected(files, make_context) as connection:
        with refused(ErrorCode.FORBIDDEN, r"\): / is the served directory itself"):
            await put(connection, "", b"new")


def test_the_commands_say_so(roots, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (roots / "a" / "file").touch()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file").touch()
    with serving("a=a", "b=b c", "--writable") as server:
        for command in (
            "put new/file URL/", "mkdir URL/new", "mkdir -p URL/new/er", "mv URL/a/file /new",
            "sync new URL/new", "sync new URL/", "put -r new URL/",
        ):  # fmt: skip
            words = command.replace("URL", server.url).split()
            assert "name one of them, /a, /b" in failing(5, *words)
        assert "/a/file is not a directory" in failing(4, "put", "new/file", f"{server.url}/a/file/new")
