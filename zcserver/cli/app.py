"""The commands and their options; each is carried out in the module of its name."""

import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any, Final, NoReturn

import typer

from zcserver.connection import DEFAULT_PORT
from zcserver.errors import MisuseError, TransferError

from . import exits
from .exits import CommandError, ExitCode, explain
from .loop import run
from .options import LanesOption, lanes_of, parse_size

# click's UsageError, which typer depends on or carries with it, by version, and does not export.
_UsageError: type[Any] = typer.BadParameter.__mro__[1]

_HELP: Final = f"""
Move files and memory between Linux machines without copying them.

\b
  zcserver serve /data                  offer a directory on this machine
  zcserver get zc://127.0.0.1/big.bin   fetch a file from it
  zcserver demo                         see both at work, with the numbers

Both ends run zcserver; browsers and curl cannot connect to it.

\b
Exit codes:
{exits.table()}
"""

app = typer.Typer(
    help=_HELP,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"zcserver {version('zcserver')}")
        raise typer.Exit


@app.callback()
def _common(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


@app.command("serve", short_help="Offer a directory, read-only.")
def _serve(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="The directory to offer, read-only.")],
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="0: any free one.")
    ] = DEFAULT_PORT,
    pool_size: Annotated[
        int, typer.Option(parser=parse_size, metavar="SIZE", help="Memory for sending.")
    ] = "64M",  # type: ignore[assignment]  # typer parses defaults, too
    lanes: LanesOption = "",
    grace: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="For running transfers after Ctrl-C or SIGTERM.")
    ] = 30.0,
    summary: Annotated[bool, typer.Option("--summary", help="At the end, print the totals as JSON.")] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="A line on stderr for each request.")
    ] = False,
) -> None:
    """Offer a directory to `zcserver get`, read-only.

    Prints one line with the URL, then runs until Ctrl-C (exit code 130) or SIGTERM (0), which let running
    transfers finish. Nothing outside DIR can be reached. There is no authentication yet: with an ADDRESS
    beyond loopback, anyone who reaches the port can read DIR.

    \b
    Examples:
      zcserver serve /data
      zcserver serve . --host 0.0.0.0 --port 7000 -v
    """
    from .serve import ServeSettings, serve_directory

    settings = ServeSettings(directory, host, port, pool_size, lanes_of(lanes), grace, summary, verbose)
    raise typer.Exit(run(serve_directory, settings))


@app.command("get", short_help="Fetch a file, or a directory with -r.")
def _get(
    url: Annotated[str, typer.Argument(metavar="URL", help="zc://host[:port]/path")],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="PATH", help="Where to put it. Default: its own name, here."),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("-r", "--recursive", help="Fetch a directory with its content.")
    ] = False,
    verify: Annotated[bool, typer.Option(help="Compare the SHA-256 with the server's.")] = True,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
    lanes: LanesOption = "",
) -> None:
    """Fetch a file, or a directory with -r, from `zcserver serve`.

    The file gets its name when it is complete and right; before that, or after a failure, nothing changes.
    Symbolic links and special files in a directory are left out. In URLs write %25 for a percent sign.

    \b
    Examples:
      zcserver get zc://127.0.0.1/big.bin
      zcserver get zc://storage:7000/runs/ -r -o ./runs
      zcserver get zc://127.0.0.1/big.bin -o /mnt/big.bin --no-verify
    """
    from .get import GetSettings, get

    raise typer.Exit(run(get, GetSettings(url, output, recursive, verify, quiet, lanes_of(lanes))))


@app.command("doctor", short_help="Find out what works on this machine.")
def _doctor(as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False) -> None:
    """Find out what this machine can do: which ways to send work here, and why not.

    \b
    Examples:
      zcserver doctor
      zcserver doctor --json | jq .lanes
    """
    from .doctor import examine

    raise typer.Exit(examine(as_json))


@app.command("demo", short_help="See it at work, verified, with numbers.")
def _demo(
    size: Annotated[int, typer.Option(parser=parse_size, metavar="SIZE", help="Of the large file.")] = "1G",  # type: ignore[assignment]
    stream: Annotated[
        int, typer.Option(parser=parse_size, metavar="SIZE", help="How much memory to stream.")
    ] = "4G",  # type: ignore[assignment]
    ring: Annotated[
        int, typer.Option(parser=parse_size, metavar="SIZE", help="The pool it goes through.")
    ] = "16M",  # type: ignore[assignment]
    directory: Annotated[
        str, typer.Option("--dir", metavar="PATH", help="Where to put the files (removed afterwards).")
    ] = ".demo",
    lanes: LanesOption = "",
) -> None:
    """See it at work: serve and fetch files, then stream memory, everything verified, with the numbers.

    Takes about a minute and twice SIZE of disk. The exit code is not 0 if a single byte differs.

    \b
    Examples:
      zcserver demo
      zcserver demo --size 64M --stream 256M --dir /tmp
    """
    from .demo import DemoSettings, demonstrate

    raise typer.Exit(demonstrate(DemoSettings(size, stream, ring, directory, lanes)))


def main() -> NoReturn:
    """Run the command line and exit. A user's error is one line on stderr, never a traceback."""
    guarded(
        lambda arguments: app(arguments, prog_name="zcserver", standalone_mode=False),
        sys.argv[1:] or ["--help"],
    )


def guarded(command: Callable[[list[str]], int | None], arguments: list[str]) -> NoReturn:
    """Run ``command`` and exit with its code, or with that of its error after the line for that."""
    line, code = _outcome(command, arguments)
    if line:
        print(f"zcserver: {line}", file=sys.stderr)
    sys.exit(code)


def _outcome(command: Callable[[list[str]], int | None], arguments: list[str]) -> tuple[str, int]:
    try:
        code = command(arguments)
        sys.stdout.flush()
    except CommandError as error:
        return error.line, error.code
    except BrokenPipeError:
        # The reader has gone (`zcserver doctor | head`): what is left must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return "", ExitCode.FAILED
    except (TransferError, MisuseError, OSError) as error:
        return explain(error)
    except _UsageError as error:
        words = error.format_message()
        context = error.ctx
        shown = context.command_path if context is not None else "zcserver"
        return f"{exits.printable(words)} Try `{shown} --help`.", ExitCode.USAGE
    except (KeyboardInterrupt, typer.Abort):
        return "interrupted", ExitCode.INTERRUPTED
    return "", int(code or 0)
