"""``zcserver get``: files, or trees, to local names or to standard output."""

import sys
from pathlib import Path

import anyio

from zcserver.client import Address, Client, Progress, parse_url

from .exits import CommandError, ExitCode
from .session import (
    Outcome,
    TransferSettings,
    all_different,
    by_server,
    check_patterns,
    own_name,
    transferring,
)
from .standard import standard_output


async def get(
    urls: list[str],
    output: str | None,
    recursive: bool,
    part: tuple[int | None, int | None],
    settings: TransferSettings,
) -> ExitCode:
    """Fetch what the URLs name; ``part`` (offset and length in bytes) is for standard output only.

    CommandError when some of it failed, and the client's errors.
    """
    groups = by_server(urls)
    check_patterns(recursive, settings)
    if output == "-":
        _check_standard_output(recursive, settings)
        return await _get_to_standard_output(groups, part, settings)
    if part != (None, None):
        raise CommandError("--offset and --length need -o -: redirect the output", ExitCode.USAGE)

    def target_of(path: str) -> Path:
        return _target(path, output, len(urls) > 1, recursive)

    all_different(
        [(url, target_of(parse_url(url).path)) for url in urls], "get each by itself, -o gives it a name"
    )
    jobs = [[(address.path, target_of(address.path)) for address in group] for group in groups]
    outcome = Outcome("fetched")
    fetch = _get_trees if recursive else _get_files
    with outcome.told(settings):
        for group, targets in zip(groups, jobs, strict=True):
            paths = [path for path, _ in targets]
            await outcome.attempt(paths, fetch(group[0], targets, outcome, settings))
    return ExitCode.OK


async def _get_to_standard_output(
    groups: list[list[Address]], part: tuple[int | None, int | None], settings: TransferSettings
) -> ExitCode:
    outcome = Outcome("fetched")
    fd = standard_output()
    for group in groups:
        async with transferring(group[0], settings) as (client, progress):
            for address in group:
                outcome.files += 1
                outcome.nbytes += await client.fetch_to(
                    address.path, fd, part[0] or 0, part[1], progress=progress
                )
    return outcome.finish(settings)


def _check_standard_output(recursive: bool, settings: TransferSettings) -> None:
    unsuitable = {
        "-r": recursive,
        "--json": settings.as_json,
        "--verify": settings.verify,
        "--stable": settings.stable,
    }
    for option, given in unsuitable.items():
        if given:
            raise CommandError(f"-o - and {option} do not go together: name a file with -o", ExitCode.USAGE)
    if sys.stdout.isatty():
        raise CommandError("-o - would write to the terminal: redirect it, or pipe it on", ExitCode.USAGE)


def _target(path: str, output: str | None, several: bool, tree: bool) -> Path:
    """As cp does it: into a directory, or with a new name. A tree's PATH is its new name, always."""
    if output is None:
        return Path(own_name(path))
    if several:
        if not Path(output).is_dir():
            raise CommandError(
                f"several URLs need a directory to go to, and {output} is none: make it first", ExitCode.USAGE
            )
        return Path(output, own_name(path))
    if not tree and (output.endswith("/") or Path(output).is_dir()):
        return Path(output, own_name(path))
    return Path(output)


def _for_file(path: str, target: Path) -> Path:
    """Where a file goes that was asked for as a tree might be."""
    return target / own_name(path) if target.is_dir() else target


async def _get_trees(
    address: Address, targets: list[tuple[str, Path]], outcome: Outcome, settings: TransferSettings
) -> None:
    async with transferring(address, settings) as (client, progress):

        async def fetch(path: str, target: Path) -> None:
            if (await client.stat(path)).type == "file":
                done = await client.fetch(path, _for_file(path, target), **settings.of_files(progress))
                outcome.add(done)
                return
            with outcome.tree() as report:
                await client.fetch_tree(path, target, report=report, **settings.of_trees(progress))

        for path, target in targets:
            await outcome.attempt([path], fetch(path, target))


async def _get_files(
    address: Address, targets: list[tuple[str, Path]], outcome: Outcome, settings: TransferSettings
) -> None:
    limiter = anyio.CapacityLimiter(settings.jobs)

    async def fetch(client: Client, progress: Progress, path: str, target: Path) -> None:
        async with limiter:
            outcome.add(await client.fetch(path, target, **settings.of_files(progress)))

    async with transferring(address, settings) as (client, progress), anyio.create_task_group() as tasks:
        for path, target in targets:
            tasks.start_soon(outcome.attempt, [path], fetch(client, progress, path, target))
