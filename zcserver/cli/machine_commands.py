"""``serve``, ``doctor`` and ``demo``: their options and help; the module of that name carries each out."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .exits import CommandError, ExitCode
from .loop import run
from .options import LanesOption, number, parse_memory, parse_size
from .serve_options import (
    AccessLogOption,
    AllowBlockOption,
    BindOption,
    ConfigOption,
    GraceOption,
    HiddenOption,
    LimitRateOption,
    LinksOption,
    LogFormatOption,
    PoolSizeOption,
    PortOption,
    RetainCountOption,
    RetainOption,
    RetainSecondsOption,
    RootsArgument,
    ServeLanesOption,
    StdinAsOption,
    StdinOption,
    SummaryOption,
    TopicsOption,
    VerboseOption,
    WritableOption,
)


def add_serve(app: typer.Typer) -> None:
    """Register ``serve``, which comes first."""
    app.command("serve", short_help="Offer a directory, or topics.")(_serve)


def add_others(app: typer.Typer) -> None:
    """Register the rest."""
    app.command("doctor", short_help="Find out what works on this machine.")(_doctor)
    app.command("demo", short_help="See it at work, verified, with numbers.")(_demo)


def _serve(
    roots: RootsArgument = None,
    bind: BindOption = None,
    port: PortOption = None,
    writable: WritableOption = None,
    hidden: HiddenOption = None,
    links: LinksOption = None,
    topics: TopicsOption = None,
    stdin: StdinOption = None,
    stdin_as: StdinAsOption = None,
    retain: RetainOption = None,
    retain_count: RetainCountOption = None,
    retain_seconds: RetainSecondsOption = None,
    allow_block: AllowBlockOption = None,
    pool_size: PoolSizeOption = None,
    limit_rate: LimitRateOption = None,
    lanes: ServeLanesOption = None,
    grace: GraceOption = None,
    access_log: AccessLogOption = None,
    log_format: LogFormatOption = None,
    config: ConfigOption = None,
    summary: SummaryOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Offer a directory, read-only unless --writable, or topics.

    Several directories are offered by name, each as NAME=DIR. Prints a line with the URL, then runs until
    Ctrl-C (exit code 130), SIGTERM (0) or SIGHUP (129), which let running transfers finish. Nothing outside
    DIR can be reached. It listens on 127.0.0.1:7420 by default, and opens as many files and connections as
    the hard limit (ulimit -Hn) allows. There is no authentication yet: beyond loopback, anyone who reaches
    the port can read DIR, and change it with --writable.

    With --topics, clients publish and subscribe (pub, sub) beside that, or without any DIR. A topic is made
    when it is first used, and kept in memory only.

    Each option is also an environment variable (ZCSERVER_PORT) and a key of the TOML file (port); the
    command line goes before the environment, that before the file.

    \b
    Examples:
      zcserver serve /data
      zcserver serve . --bind '*' --port 7000 -v
      zcserver serve photos=/srv/photos runs=/mnt/runs --writable
      zcserver serve /data --bind unix:/run/zc.sock --bind '[::1]'
      zcserver serve --topics --retain 256M --pool-size 1G
      tail -f app.log | zcserver serve --stdin log --stdin-as lines
    """
    # Every other parameter is a setting of the same name.
    given: dict[str, Any] = {
        name: value for name, value in locals().items() if name not in ("config", "verbose")
    }
    given["access_log"] = access_log or ("-" if verbose else None)
    from .serve import serve_directory
    from .settings import serve_settings

    settings = serve_settings(given, config=config)
    raise typer.Exit(run(serve_directory, settings))


def _doctor(as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False) -> None:
    """Find out what this machine can do: which ways to send work here, and why not.

    \b
    Examples:
      zcserver doctor
      zcserver doctor --json | jq .lanes
    """
    from .doctor import examine

    raise typer.Exit(examine(as_json))


def _demo(
    url: Annotated[
        str | None, typer.Argument(metavar="URL", help="Of a demo --serve elsewhere: fetch from that.")
    ] = None,
    size: Annotated[int, typer.Option(parser=parse_size, metavar="SIZE", help="Of the large file.")] = "1G",  # type: ignore[assignment]  # typer parses defaults, too
    stream: Annotated[
        int, typer.Option(parser=parse_size, metavar="SIZE", help="How much memory to stream.")
    ] = "4G",  # type: ignore[assignment]
    ring: Annotated[
        int, typer.Option(parser=parse_memory, metavar="SIZE", help="The pool it goes through.")
    ] = "16M",  # type: ignore[assignment]
    directory: Annotated[
        str, typer.Option("--dir", metavar="PATH", help="Where to put the files (removed afterwards).")
    ] = ".demo",
    lanes: LanesOption = "",
    subscribers: Annotated[
        int,
        typer.Option(
            "--subscribers", metavar="N", parser=number(0), help="Publish as much to N of them, too."
        ),
    ] = 0,
    serve: Annotated[
        str | None,
        typer.Option(
            "--serve", metavar="WHERE", help="Only serve, for a demo URL elsewhere: ADDRESS:PORT, *."
        ),
    ] = None,
) -> None:
    """See it at work: serve and fetch files, then stream memory, everything verified, with the numbers.

    Takes about a minute, and of disk twice SIZE and 64M. The exit code is not 0 if a single byte differs.

    With --serve and a URL the two halves run on two machines, or in two containers. --size, --ring and
    --lanes are the server's, --stream and --subscribers the client's.

    \b
    Examples:
      zcserver demo
      zcserver demo --size 64M --stream 256M --dir /tmp
      zcserver demo --serve '*'
      zcserver demo zc://that-machine/
    """
    from . import demo

    place = Path(directory)
    if serve is not None and url is not None:
        raise CommandError("either --serve or a URL: each is one half of the demo", ExitCode.USAGE)
    if serve is not None:
        code = demo.serve(serve, place, size, ring, lanes)
    elif url is not None:
        code = demo.fetch(url, place, stream, subscribers)
    else:
        code = demo.demonstrate(place, size, stream, ring, lanes, subscribers)
    raise typer.Exit(code)
