"""``zcserver ls``, ``stat``, ``rm``, ``mv`` and ``mkdir``: looking at a server's files and arranging them.

Names are printed as they stand in URLs (``%XX`` for what is not printable), so each can be used again.
"""

import contextlib
import json
from datetime import datetime
from typing import Any, Final

import msgspec

from zcserver.client import Address, Client, Status, is_url, parse_url
from zcserver.errors import MisuseError, StreamResetError, TransferError
from zcserver.file_protocol import NOT_A_DIRECTORY, Entry, unescape

from .exits import CommandError, ExitCode, explain
from .session import by_server, talking

_LETTER: Final = {"file": "-", "directory": "d", "link": "l", "other": "?"}
_MARK: Final = {"directory": "/", "link": "@", "other": "?"}


async def list_directory(url: str, long: bool, recursive: bool, as_json: bool) -> ExitCode:
    """Print the entries of a directory, a line each."""
    address = parse_url(url)
    incomplete: list[str] = []

    async def work(client: Client) -> None:
        try:
            async with contextlib.aclosing(client.list(address.path, recursive)) as entries:
                async for entry in entries:
                    _print_entry(entry, long, as_json)
                    if entry.error:
                        incomplete.append(f"{entry.path}: the server cannot list it: {entry.error}")
        except StreamResetError as error:
            if error.code != NOT_A_DIRECTORY:
                raise
            status = await client.stat(address.path)
            kind: Any = status.type
            _print_entry(Entry(address.path, kind, status.size, status.mtime_ns), long, as_json)

    await talking(address, work)
    if incomplete:
        raise CommandError(explain(TransferError(incomplete[0]))[0], ExitCode.FORBIDDEN)
    return ExitCode.OK


def _print_entry(entry: Entry, long: bool, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(entry).decode())
        return
    name = entry.path + _MARK.get(entry.type, "")
    print(f"{_LETTER[entry.type]} {entry.size:>15,} {_local_time(entry.mtime_ns)} {name}" if long else name)


def _local_time(mtime_ns: int) -> str:
    try:
        return datetime.fromtimestamp(mtime_ns // 10**9).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # before year 1, after 9999
        return f"{mtime_ns // 10**9:>19}"


async def show_status(urls: list[str], as_json: bool) -> ExitCode:
    """Print what the server says about each."""

    async def work(client: Client, address: Address) -> None:
        _print_status(address.path, await client.stat(address.path), as_json)

    return await _for_each(urls, work)


def _print_status(path: str, status: Status, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"path": path, **msgspec.structs.asdict(status)}))
        return
    print(f"path       {path}")
    print(f"type       {status.type}")
    print(f"size       {status.size:,} bytes")
    print(f"modified   {_local_time(status.mtime_ns)}.{status.mtime_ns % 10**9:09}")
    if status.validator:
        print(f"validator  {status.validator}")


async def remove(urls: list[str], recursive: bool) -> ExitCode:
    """Remove files and directories."""

    async def work(client: Client, address: Address) -> None:
        await client.remove(address.path, recursive=recursive)

    return await _for_each(urls, work)


async def make_directories(urls: list[str], parents: bool) -> ExitCode:
    """Make directories. One that exists is an error, unless ``parents``."""

    async def work(client: Client, address: Address) -> None:
        if not await client.mkdir(address.path, parents=parents) and not parents:
            raise CommandError(f"{address.path} exists already (-p accepts that)", ExitCode.EXISTS)

    return await _for_each(urls, work)


async def move(url: str, to: str, replace: bool) -> ExitCode:
    """Rename; ``to`` is a URL of the same server, or a path on it."""
    address = parse_url(url)
    target = to
    if is_url(to):
        (group, *others) = by_server([url, to])
        if others:
            raise MisuseError("mv works within one server: use get and put between two")
        target = group[1].path
    elif not to.startswith("/"):
        raise MisuseError(f"{to!r} is neither a URL nor a path on the server, which begins with a slash")

    if unescape(target).startswith(unescape(address.path).rstrip(b"/") + b"/"):
        raise MisuseError(f"{address.path} cannot be moved into itself, to {target}: name another place")

    async def work(client: Client) -> None:
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

        await talking(group[0], all_of)
    if failures:
        raise CommandError("\nzcserver: ".join(line for line, _ in failures), failures[0][1])
    return ExitCode.OK
