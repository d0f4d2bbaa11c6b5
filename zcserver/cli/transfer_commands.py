"""``get``, ``put`` and ``sync``: their options and help; each is carried out in the module of its name."""

from typing import Annotated

import typer

from .loop import run_ready
from .options import (
    ExcludeOption,
    IncludeOption,
    JobsOption,
    JsonOption,
    LanesOption,
    LengthOption,
    LimitRateOption,
    OffsetOption,
    OutputOption,
    QuietOption,
    RecursiveOption,
    RestartOption,
    StableOption,
    UrlArgument,
    UrlsArgument,
    VerifyOption,
)
from .session import TransferSettings

_JOBS = 16


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("get", short_help="Fetch files, or directories with -r.")(_get)
    app.command("put", short_help="Send files, or directories with -r.")(_put)
    app.command("sync", short_help="Make one directory like another.")(_sync)


def _get(
    urls: UrlsArgument,
    output: OutputOption = None,
    recursive: RecursiveOption = False,
    jobs: JobsOption = _JOBS,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    verify: VerifyOption = False,
    restart: RestartOption = False,
    stable: StableOption = False,
    offset: OffsetOption = None,
    length: LengthOption = None,
    limit_rate: LimitRateOption = "0",  # type: ignore[assignment]  # typer parses defaults, too
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    lanes: LanesOption = "",
) -> None:
    """Fetch files, or directories with -r.

    A file gets its name when it is complete. Until then it is .NAME.zcpart, from which the next try goes
    on; if the file on the server has changed since, that is refused until you say --restart. The server
    vouches that it sent one state of the file; --verify compares checksums on top of that. A file that is
    written to all the time has no such state: --stable fetches it all the same, from the beginning.

    Times are kept, permissions only of files that are replaced. Symbolic links and special files in
    directories are left out, and nothing is written through a link that lies in the target directory. In a
    GLOB, * and ? stay within a name, ** crosses folders; without a slash it is for names in any folder.

    \b
    Examples:
      zcserver get zc://127.0.0.1/big.bin
      zcserver get zc://127.0.0.1/big.bin -o /mnt/copy.bin --verify
      zcserver get -r zc://storage:7000/runs -o runs --exclude '*.tmp'
      zcserver get zc://storage/log.zst -o - | zstd -d | less
      zcserver get zc://storage/disk.img -o - --offset 1M --length 512 | xxd
    """
    from .get import get

    settings = TransferSettings(
        jobs, include, exclude, verify, restart, stable, limit_rate, quiet, as_json, lanes
    )
    raise typer.Exit(run_ready(get, urls, output, recursive, (offset, length), settings))


def _put(
    sources: Annotated[
        list[str],
        typer.Argument(hidden=True, metavar="PATH", help="Local files, or directories; '-': stdin."),
    ],
    url: UrlArgument,
    recursive: RecursiveOption = False,
    jobs: JobsOption = _JOBS,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    verify: VerifyOption = False,
    limit_rate: LimitRateOption = "0",  # type: ignore[assignment]
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    lanes: LanesOption = "",
) -> None:
    """Send files, or directories with -r, to a server started with --writable.

    PATH is a local file or directory, or - for standard input. A URL that ends with a slash is a directory
    to put them into; else it is the new name. A file appears there when all of it is on the server's disk;
    before that, what had its name stays. Times are kept, permissions only of files that are replaced.
    An interrupted put, said again, goes on where it was, if neither the file nor the server's process is
    another one.

    \b
    Examples:
      zcserver put big.bin zc://storage/
      tar c data | zcserver put - zc://storage/data.tar
      zcserver put report.pdf zc://storage/2025/final.pdf
      zcserver put -r photos zc://storage/photos --exclude .git
    """
    from .put import put

    settings = TransferSettings(
        jobs, include, exclude, verify, limit_rate=limit_rate, quiet=quiet, as_json=as_json, lanes=lanes
    )
    raise typer.Exit(run_ready(put, sources, url, recursive, settings))


def _sync(
    source: Annotated[str, typer.Argument(hidden=True, metavar="SRC", help="A URL, or a local directory.")],
    target: Annotated[str, typer.Argument(hidden=True, metavar="DST", help="The other of them.")],
    delete: Annotated[bool, typer.Option("--delete", help="Remove from DST what SRC does not have.")] = False,
    dry_run: Annotated[bool, typer.Option("-n", "--dry-run", help="Only tell what would be done.")] = False,
    jobs: JobsOption = _JOBS,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    verify: VerifyOption = False,
    limit_rate: LimitRateOption = "0",  # type: ignore[assignment]
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    lanes: LanesOption = "",
) -> None:
    """Make the directory DST like SRC: transfer what is new or changed, keep times.

    One of them is a URL. Files of equal size and modification time are taken for equal. What is excluded,
    or not included, is neither transferred nor removed. Something else that lies in DST where a file or
    directory is due, a symbolic link say, is an error; with --delete it is replaced.

    \b
    Examples:
      zcserver sync zc://storage/photos photos
      zcserver sync photos zc://storage/photos --delete --dry-run
    """
    from .put import sync

    settings = TransferSettings(
        jobs, include, exclude, verify, limit_rate=limit_rate, quiet=quiet, as_json=as_json, lanes=lanes
    )
    raise typer.Exit(run_ready(sync, source, target, delete, dry_run, settings))
