"""``ls``, ``stat``, ``rm``, ``mv`` and ``mkdir``: their options and help; ``remote`` carries them out."""

from typing import Annotated

import typer

from .loop import run
from .options import UrlArgument, UrlsArgument


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("ls", short_help="List a directory of a server.")(_ls)
    app.command("stat", short_help="Show size, time and validator.")(_stat)
    app.command("rm", short_help="Remove files of a server.")(_rm)
    app.command("mv", short_help="Rename a file of a server.")(_mv)
    app.command("mkdir", short_help="Make directories on a server.")(_mkdir)


def _ls(
    url: UrlArgument,
    long: Annotated[bool, typer.Option("-l", "--long", help="With type, size and time.")] = False,
    recursive: Annotated[
        bool, typer.Option("-r", "--recursive", help="With all that is in directories.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line, for scripts.")] = False,
) -> None:
    """List a directory, sorted, in the form that URLs need.

    Directories are marked with /, symbolic links with @. Sizes are bytes.

    \b
    Examples:
      zcserver ls zc://127.0.0.1/
      zcserver ls -l zc://storage:7000/runs
      zcserver ls -r --json zc://storage/ | jq -r .path
    """
    from .remote import list_directory

    raise typer.Exit(run(list_directory, url, long, recursive, as_json))


def _stat(
    urls: UrlsArgument,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line, for scripts.")] = False,
) -> None:
    """Show type, size, modification time and validator.

    \b
    Examples:
      zcserver stat zc://127.0.0.1/big.bin
      zcserver stat --json zc://storage/a zc://storage/b
    """
    from .remote import show_status

    raise typer.Exit(run(show_status, urls, as_json))


def _rm(
    urls: UrlsArgument,
    recursive: Annotated[
        bool, typer.Option("-r", "--recursive", help="Directories with all that is in them, too.")
    ] = False,
) -> None:
    """Remove files and empty directories from a server started with --writable.

    \b
    Examples:
      zcserver rm zc://storage/old.bin
      zcserver rm -r zc://storage/runs/17
    """
    from .remote import remove

    raise typer.Exit(run(remove, urls, recursive))


def _mv(
    url: UrlArgument,
    to: Annotated[str, typer.Argument(hidden=True, metavar="TO", help="The new URL, or the new path: /path")],
    replace: Annotated[
        bool, typer.Option("-f", "--replace", help="Replace what has that name already.")
    ] = False,
) -> None:
    """Rename a file or directory of a server started with --writable.

    TO is the new URL, or only the new path: /path. With a slash at its end it is the directory to move to.

    \b
    Examples:
      zcserver mv zc://storage/new.bin /current.bin --replace
    """
    from .remote import move

    raise typer.Exit(run(move, url, to, replace))


def _mkdir(
    urls: UrlsArgument,
    parents: Annotated[
        bool, typer.Option("-p", "--parents", help="Make parents as needed; it may exist already.")
    ] = False,
) -> None:
    """Make directories on a server started with --writable.

    \b
    Examples:
      zcserver mkdir zc://storage/runs
      zcserver mkdir -p zc://storage/runs/17/logs
    """
    from .remote import make_directories

    raise typer.Exit(run(make_directories, urls, parents))
