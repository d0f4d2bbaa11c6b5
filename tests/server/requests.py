"""Requests in the words of the file protocol, so that the server is tested without its client."""

import contextlib
import json
import os
from typing import Any

import anyio
import pytest

import zcserver
from zcserver import StreamResetError
from zcserver.file_protocol import GET, LIST, PUT
from zcserver.server import FileServer

MIB = 1 << 20


@contextlib.asynccontextmanager
async def connected(files: FileServer, make_context: Any, **settings: Any) -> Any:
    """A connection to a server of ``files``, with a deadline around everything."""
    with anyio.fail_after(60):
        async with (
            zcserver.serve(files.handle, port=0, context=make_context(**settings)) as server,
            zcserver.connect(port=server.port, context=make_context()) as connection,
        ):
            yield connection
    files.close()


async def ask(connection: Any, method: str, path: str, **arguments: Any) -> dict[str, Any]:
    """A request without messages: its reply, after the stream has ended well."""
    stream = await connection.open(method, path, **arguments)
    reply: dict[str, Any] = await stream.response()
    async for _ in stream:
        raise AssertionError("a message where none was due")
    return reply


async def get(connection: Any, path: str, **arguments: Any) -> tuple[dict[str, Any], bytes]:
    """The reply and all bytes of the messages, after the stream has ended well."""
    stream = await connection.open(GET, path, **arguments)
    reply = await stream.response()
    content = b"".join([bytes(piece) async for piece in stream.chunks()])
    return reply, content


async def put(connection: Any, path: str, content: bytes, *, piece: int = 64 * 1024, **arguments: Any) -> int:
    """Send ``content`` in pieces; what was committed, after the stream has ended well."""
    arguments.setdefault("size", len(content))
    stream = await connection.open(PUT, path, **arguments)
    await stream.response()
    for start in range(0, len(content) or 1, piece):
        await stream.send(content[start : start + piece])
    await stream.end()
    with pytest.raises(anyio.EndOfStream):
        await stream.receive()
    return int(stream.committed)


async def entries(connection: Any, path: str, recursive: bool = False) -> list[dict[str, Any]]:
    stream = await connection.open(LIST, path, recursive=recursive)
    found: list[dict[str, Any]] = []
    async for message in stream:
        found += json.loads(bytes(message))["entries"]
    return found


async def names(connection: Any, path: str, recursive: bool = False) -> list[str]:
    return [entry["path"] for entry in await entries(connection, path, recursive)]


def descriptors_of(path: Any) -> int:
    """How many descriptors this process has of the file at ``path``."""
    held = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            held += os.readlink(f"/proc/self/fd/{fd}") == str(path)
    return held


@contextlib.contextmanager
def refused(code: int, words: str = "") -> Any:
    """The body ends in a reset with this code, and one line that holds ``words``."""
    with pytest.raises(StreamResetError, match=words or None) as caught:
        yield caught
    assert caught.value.code == code, caught.value
    assert "\n" not in caught.value.reason


def content_of(top: Any) -> dict[str, bytes | None]:
    """All files below a directory with their content, directories with None; without the server's own."""
    found: dict[str, bytes | None] = {}
    for directory, folders, files in os.walk(top):
        if ".zcserver" in folders:
            folders.remove(".zcserver")
        where = os.path.relpath(directory, top)
        found.update({os.path.normpath(os.path.join(where, folder)): None for folder in folders})
        for name in files:
            with open(os.path.join(directory, name), "rb") as file:
                found[os.path.normpath(os.path.join(where, name))] = file.read()
    return found
