"""``zcserver put`` and ``zcserver sync``: local files to a server, and one side made like the other."""

import os
from pathlib import Path
from typing import Final

import anyio

from zcserver.client import Address, Client, Progress, is_url, parse_url
from zcserver.errors import printable
from zcserver.file_protocol import escape

from .exits import CommandError, ExitCode
from .session import (
    WOULD_BE,
    Outcome,
    TransferSettings,
    all_different,
    appearing,
    check_patterns,
    transferring,
)
from .standard import standard_input

_STDIN: Final = "-"


async def put(sources: list[str], url: str, recursive: bool, settings: TransferSettings) -> ExitCode:
    """Send files, or directories with ``recursive``. CommandError when some of it failed."""
    address = parse_url(url)
    outcome = Outcome("sent")
    check_patterns(recursive, settings)
    if sources == [_STDIN]:
        return await _put_standard_input(address, outcome, settings)
    if _STDIN in sources:
        raise CommandError("standard input goes alone: put the files by themselves", ExitCode.USAGE)
    paths = [_target(source, address.path, len(sources) > 1) for source in sources]
    all_different(zip(sources, paths, strict=True), "put each by itself, the URL gives it a name")
    targets = list(zip(map(Path, sources), paths, strict=True))
    with outcome.told(settings):
        await outcome.attempt(paths, _put_all(address, targets, recursive, outcome, settings))
    return ExitCode.OK


async def _put_standard_input(address: Address, outcome: Outcome, settings: TransferSettings) -> ExitCode:
    path = address.path
    if path.endswith("/"):
        raise CommandError("standard input has no name of its own: add one to the URL", ExitCode.USAGE)
    if settings.verify:
        raise CommandError("the checksum of standard input is not known before it is sent", ExitCode.USAGE)
    fd = standard_input()

    async def send() -> None:
        async with transferring(address, settings) as (client, progress), appearing(client, path):
            outcome.add(await client.put(fd, path, progress=progress))

    with outcome.told(settings):
        await outcome.attempt([path], send())
    return ExitCode.OK


def _target(source: str, path: str, several: bool) -> str:
    """As cp does it: the name itself, or with a slash at its end the directory to put it into."""
    if not path.endswith("/"):
        if several:
            raise CommandError(
                f"several files need a directory to go to: end the URL with a slash ({path}/)", ExitCode.USAGE
            )
        return path
    name = os.path.basename(os.path.abspath(source))
    if not name:
        raise CommandError(f"{printable(source)} has no name of its own: add one to the URL", ExitCode.USAGE)
    return path + escape(os.fsencode(name))


async def _put_all(
    address: Address,
    targets: list[tuple[Path, str]],
    recursive: bool,
    outcome: Outcome,
    settings: TransferSettings,
) -> None:
    limiter = anyio.CapacityLimiter(settings.jobs)

    async def send_tree(client: Client, progress: Progress, source: Path, path: str) -> None:
        with outcome.tree() as report:
            await client.put_tree(source, path, report=report, **settings.of_trees(progress))

    async def send(client: Client, progress: Progress, source: Path, path: str) -> None:
        async with limiter, appearing(client, path):
            outcome.add(await client.put(source, path, verify=settings.verify, progress=progress))

    trees = [(source, path) for source, path in targets if recursive and source.is_dir()]
    async with transferring(address, settings) as (client, progress):
        for source, path in trees:
            await outcome.attempt([path], send_tree(client, progress, source, path))
        async with anyio.create_task_group() as tasks:
            for source, path in targets:
                if (source, path) not in trees:
                    tasks.start_soon(outcome.attempt, [path], send(client, progress, source, path))


async def sync(source: str, target: str, delete: bool, dry_run: bool, settings: TransferSettings) -> ExitCode:
    """Make ``target`` like ``source``; one of them is a URL."""
    if is_url(source) == is_url(target):
        raise CommandError("of SRC and DST, one is a URL and the other a local directory", ExitCode.USAGE)
    outcome = Outcome(WOULD_BE if dry_run else "transferred")
    address = parse_url(source if is_url(source) else target)

    async def work() -> None:
        async with transferring(address, settings) as (client, progress):
            with outcome.tree() as report:
                await client.sync(
                    address.path if is_url(source) else Path(source),
                    address.path if is_url(target) else Path(target),
                    delete=delete,
                    dry_run=dry_run,
                    report=report,
                    **settings.of_trees(progress),
                )
        if dry_run and not settings.as_json and not settings.quiet:
            for name in report.transferred:
                print(f"transfer {printable(name)}")
            for name in report.deleted:
                print(f"remove   {printable(name)}")

    with outcome.told(settings):
        await outcome.attempt([address.path], work())
    return ExitCode.OK
