"""The command line as a whole: its help, and how it ends. The commands are in ``*_commands``."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Final, NoReturn

import typer

from zcserver.errors import MisuseError, TransferError, first_of, printable

from . import exits, file_commands, machine_commands, topic_commands, transfer_commands
from .exits import CommandError, ExitCode, explain
from .standard import part, prepare, say

# click's UsageError, which typer depends on or carries with it, by version, and does not export.
_UsageError: type[Any] = typer.BadParameter.__mro__[1]

_HELP: Final = f"""
Move files between Linux machines without copying them in memory.

\b
  zcserver serve /data                  offer a directory on this machine
  zcserver get zc://127.0.0.1/big.bin   fetch a file from it
  zcserver demo                         see both at work, with the numbers

Both ends run zcserver; browsers and curl cannot connect to it.

\b
URLs:
  zc://host/path                        port 7420
  zc://host:7000/path, zc://[::1]/path
  zc+unix://%2Frun%2Fzc.sock/path       over the Unix socket /run/zc.sock
  %XX stands for any byte; write %25 for a percent sign

\b
Exit codes:
{exits.table()}
"""

app = typer.Typer(
    help=_HELP,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

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


machine_commands.add_serve(app)
transfer_commands.add_to(app)
file_commands.add_to(app)
topic_commands.add_to(app)
machine_commands.add_others(app)


def run() -> NoReturn:
    """What :func:`zcserver.cli.main` does."""
    prepare()
    try:
        line, code = _outcome()
        if line:
            say(f"zcserver: {line}")
    finally:
        part()
    sys.exit(code)


@contextlib.contextmanager
def _singly() -> Iterator[None]:
    """The first of the errors that end a task group, by itself: it has a line and a code."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise first_of(group) from None


def _outcome() -> tuple[str, int]:
    """The line for stderr, if there is one, and the exit code."""
    try:
        with _singly():
            code = app(sys.argv[1:] or ["--help"], prog_name="zcserver", standalone_mode=False)
        sys.stdout.flush()
    except CommandError as error:
        return error.line, error.code
    except BrokenPipeError:  # `zcserver ls | head`
        return "", ExitCode.FAILED
    except (TransferError, MisuseError, OSError) as error:
        return explain(error)
    except UnicodeError as error:  # bytes that are no text, in a key or the name of a host
        return f"an argument is no text that could be sent: {printable(str(error))}", ExitCode.USAGE
    except MemoryError:
        return "out of memory: lower --pool-size or -j, or raise the limit (ulimit -v)", ExitCode.LIMIT
    except _UsageError as error:
        words = error.format_message()
        context = error.ctx
        shown = context.command_path if context is not None else "zcserver"
        return f"{printable(words.removesuffix('.'))}. Try `{shown} --help`.", ExitCode.USAGE
    except typer.Abort:
        return "interrupted", ExitCode.INTERRUPTED
    return "", int(code or 0)
