"""``zcserver ls``, ``stat``, ``rm``, ``mv`` and ``mkdir``: looking at a server's files and arranging them.

Names are printed as they stand in URLs (``%XX`` for what is not printable), so each can be used again. What a
server says in another form loses its control characters, except in JSON, which has none.
"""

import contextlib
import json
from collections.abc import AsyncGenerator, Iterator
from datetime import datetime
from typing import Any, Final

import msgspec

from zcserver.client import Address, Client, Status, is_url, parse_url
from zcserver.client.tree import unlisted
from zcserver.errors import MisuseError, StreamResetError, TransferError, printable
from zcserver.file_protocol import NOT_A_DIRECTORY, Entry, escape_undecodable, unescape

from .exits import CommandError, ExitCode, explain
from .session import appearing, by_server, talking
from .standard import printing

_LETTER: Final = {"file": "-", "directory": "d", "link": "l"}
_MARK: Final = {"directory": "/", "link": "@", "other": "?"}


async def list_directory(url: str, long: bool, recursive: bool, as_json: bool) -> ExitCode:
    """Print the entries of a directory, a line each."""
    address = parse_url(url)
    incomplete: list[Entry] = []

    async def work(client: Client) -> None:
        listing = contextlib.aclosing(_pages(client, address.path, recursive))
        with printing() as show:
            async with listing as pages:
                async for page in pages:
                    await show(_line_of(entry, long, as_json) for entry in page)
                    incomplete.extend(entry for entry in page if entry.error)

    await talking(address, work)
    if incomplete:
        raise unlisted(incomplete[0].path, incomplete[0])
    return ExitCode.OK


async def _pages(client: Client, path: str, recursive: bool) -> AsyncGenerator[tuple[Entry, ...], None]:
    """Of a directory; what is none is an entry by itself."""
    try:
        async with contextlib.aclosing(client.pages(path, recursive)) as pages:
            async for page in pages:
                yield page
    except StreamResetError as error:
        if error.code != NOT_A_DIRECTORY:
            raise
        status = await client.stat(path)
        kind: Any = status.type
        yield (Entry(path, kind, status.size, status.mtime_ns),)


def _line_of(entry: Entry, long: bool, as_json: bool) -> str:
    if as_json:
        return json.dumps(msgspec.to_builtins(entry), separators=(",", ":"))
    name = entry.path + _MARK.get(entry.type, "")
    if not long:
        return printable(name)
    letter = _LETTER.get(entry.type, "?")
    return printable(f"{letter} {entry.size:>15,} {_local_time(entry.mtime_ns)} {name}")


def _local_time(mtime_ns: int) -> str:
    try:
        return datetime.fromtimestamp(mtime_ns // 10**9).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # before year 1, after 9999
        return f"{mtime_ns // 10**9:>19}"


async def show_status(urls: list[str], as_json: bool) -> ExitCode:
    """Print what the server says about each."""

    async def work(client: Client, address: Address) -> None:
        status = await client.stat(address.path)
        with printing() as show:
            await show(_lines_of(address.path, status, as_json))

    return await _for_each(urls, work)


def _lines_of(path: str, status: Status, as_json: bool) -> Iterator[str]:
    if as_json:
        yield json.dumps({"path": path, **msgspec.structs.asdict(status)})
        return
    yield f"path       {printable(path)}"
    yield f"type       {printable(status.type)}"
    yield f"size       {status.size:,} bytes"
    yield f"modified   {_local_time(status.mtime_ns)}.{status.mtime_ns % 10**9:09}"
    if status.validator:
        yield f"validator  {printable(status.validator)}"


async def remove(urls: list[str], recursive: bool) -> ExitCode:
    """Remove files and directories."""

    async def work(client: Client, address: Address) -> None:
        await client.remove(address.path, recursive=recursive)

    return await _for_each(urls, work)


async def make_directories(urls: list[str], parents: bool) -> ExitCode:
    """Make directories. One that exists is an error, unless ``parents``."""

    async def work(client: Client, address: Address) -> None:
        if parents:
            await client.mkdir(address.path, parents=True)
            return
        async with appearing(client, address.path):
            made = await client.mkdir(address.path)
        if not made:
            raise CommandError(f"{address.path} exists already (-p accepts that)", ExitCode.EXISTS)

    return await _for_each(urls, work)


async def move(url: str, to: str, replace: bool) -> ExitCode:
    """Rename; ``to`` is a URL of the same server, or a path on it."""
    address = parse_url(url)
    target = escape_undecodable(to)
    if is_url(to):
        (group, *others) = by_server([url, to])
        if others:
            raise MisuseError("mv works within one server: use get and put between two")
        target = group[1].path
    elif not to.startswith("/"):
        raise MisuseError(f"{to!r} is neither a URL nor a path on the server, which begins with a slash")

    if target.endswith("/"):  # a directory to move it into, as for put
        target += address.path.rstrip("/").rpartition("/")[2]
    if unescape(target).startswith(unescape(address.path).rstrip(b"/") + b"/"):
        raise MisuseError(f"{address.path} cannot be moved into itself, to {target}: name another place")

    async def work(client: Client) -> None:
        async with appearing(client, target):
            await client.rename(address.path, target, replace=replace)

    await talking(address, work)
    return ExitCode.OK


async def _for_each(urls: list[str], work: Any) -> ExitCode:
    """Do ``work`` for each URL, over one connection for each server; go on after a refusal."""
    failures: list[tuple[str, ExitCode]] = []

    async def work_off(client: Client, group: list[Address]) -> None:
        for address in group:
            try:
                await work(client, address)
            except StreamResetError as error:
                failures.append(explain(error))
            except CommandError as error:
                failures.append((error.line, error.code))

    for group in by_server(urls):

        async def all_of(client: Client, group: list[Address] = group) -> None:
            await work_off(client, group)

        try:
            await talking(group[0], all_of)
        except BrokenPipeError:
            raise
        except (TransferError, OSError) as error:
            failures.append(explain(error))
    if failures:
        raise CommandError("\nzcserver: ".join(line for line, _ in failures), failures[0][1])
    return ExitCode.OK
