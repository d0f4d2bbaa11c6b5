"""``zcserver get``: one file, or a tree, to a local name."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zcserver.client import Address, Client, FetchedTree, open_client, parse_url, receiving_context
from zcserver.file_protocol import unescape

from .exits import CommandError, ExitCode, explain, printable
from .loop import Interruption
from .options import amount, rate
from .progress import ProgressBar

_FAILURES_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class GetSettings:
    """``output`` None: the last part of the URL's path, in the current directory."""

    url: str
    output: str | None
    recursive: bool
    verify: bool
    quiet: bool
    lanes: tuple[str, ...] | None


async def get(settings: GetSettings) -> ExitCode:
    """Fetch what the URL names. CommandError when some of it failed, and the client's errors."""
    address = parse_url(settings.url)
    target = _target(settings, address)
    shows = not settings.quiet and sys.stderr.isatty()
    with Interruption() as interruption, receiving_context(lanes=settings.lanes) as context:
        with ProgressBar(target.name, shows) as progress, interruption.cancels():
            async with open_client(address, context=context) as client:
                if settings.recursive:
                    summary = await _get_tree(client, address, target, settings.verify, progress)
                else:
                    summary = await _get_file(client, address, target, settings.verify, progress)
        interruption.raise_if_caught()
    if not settings.quiet:
        print(summary, file=sys.stderr)
    return ExitCode.OK


def _target(settings: GetSettings, address: Address) -> Path:
    if settings.output == "-":
        raise CommandError(
            "writing to standard output is not possible yet: name a file with -o", ExitCode.USAGE
        )
    if settings.output is not None:
        return Path(settings.output)
    name = os.fsdecode(unescape(address.path).rstrip(b"/").rpartition(b"/")[2])
    if name in ("", ".", "..") or "\0" in name:
        raise CommandError(f"{settings.url} has no name to save it under: name one with -o", ExitCode.USAGE)
    return Path(name)


async def _get_file(
    client: Client, address: Address, target: Path, verify: bool, progress: ProgressBar
) -> str:
    done = await client.fetch(address.path, target, verify=verify, progress=progress)
    outcome = f"verified (SHA-256 {done.digest[:16]}…)" if verify else "not verified"
    return f"{printable(str(target))}: {_performance(done.nbytes, done.seconds)}, {outcome}"


async def _get_tree(
    client: Client, address: Address, target: Path, verify: bool, progress: ProgressBar
) -> str:
    begin = time.monotonic()
    tree = await client.fetch_tree(address.path, target, verify=verify, progress=progress)
    if tree.failures:
        raise _failed(tree)
    seconds = time.monotonic() - begin
    skipped = f", {len(tree.skipped)} links and special files left out" if tree.skipped else ""
    outcome = "all verified (SHA-256)" if verify else "not verified"
    performance = _performance(tree.nbytes, seconds)
    return f"{printable(str(target))}: {tree.files} files, {performance}, {outcome}{skipped}"


def _failed(tree: FetchedTree) -> CommandError:
    for _, error in tree.failures[1:_FAILURES_SHOWN]:
        print(f"zcserver: {explain(error)[0]}", file=sys.stderr)
    line, code = explain(tree.failures[0][1])
    if len(tree.failures) > 1 or tree.files:
        line += f" ({len(tree.failures)} failures, {tree.files} files fetched)"
    return CommandError(line, code)


def _performance(nbytes: int, seconds: float) -> str:
    return f"{amount(nbytes)} in {seconds:.2f} s, {rate(nbytes, seconds)}"
