"""``pub`` and ``sub``: their options and help; the module of that name carries each out."""

from typing import Annotated

import typer

from zcserver.topic_protocol import COMMITTED, EARLIEST, LATEST, MAX_SEQUENCE, Policy

from .exits import CommandError, ExitCode
from .loop import run
from .options import LanesOption, QuietOption, lanes_of, number, parse_output
from .pieces import AS_IT_COMES, LINES, WHOLE, parse_form

TopicArgument = Annotated[str, typer.Argument(metavar="URL", help="zc://host[:port]/topic")]


def _policy(text: str) -> Policy:
    try:
        return Policy(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(Policy)}") from None


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("pub", short_help="Publish to a topic.")(_pub)
    app.command("sub", short_help="Get the messages of a topic.")(_sub)


def _pub(
    url: TopicArgument,
    source: Annotated[str, typer.Argument(metavar="FILE", help="What to publish; '-': stdin.")] = "-",
    lines: Annotated[bool, typer.Option("--lines", help="Each line is a message.")] = False,
    chunk: Annotated[
        str, typer.Option("--chunk", metavar="SIZE", help="Messages of this size; the last may be shorter.")
    ] = "",
    frame: Annotated[bool, typer.Option("--frame", help="All of it is one message.")] = False,
    key: Annotated[str, typer.Option("--key", metavar="TEXT", help="A key for the messages.")] = "",
    content_type: Annotated[
        str, typer.Option("--type", metavar="TYPE", help="Their content type, e.g. image/png.")
    ] = "",
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Who publishes, known over restarts.")
    ] = "",
    quiet: QuietOption = False,
    lanes: LanesOption = "",
) -> None:
    """Publish standard input, or a file, to a topic of a server started with --topics.

    Messages are cut as the input comes, unless --lines, --chunk or --frame says otherwise. It ends when the
    server has everything. A lost connection is made again; nothing is lost or sent twice by that.

    \b
    Examples:
      zcserver pub zc://hub/camera --frame --type image/jpeg still.jpg
      tail -f app.log | zcserver pub zc://hub/log --lines
      ffmpeg -i in.mp4 -f mpegts - | zcserver pub zc://hub/tv --chunk 64K
    """
    from .pub import PubSettings, publish

    if lines + frame + bool(chunk) > 1:
        raise CommandError("of --lines, --chunk and --frame, give one", ExitCode.USAGE)
    form = LINES if lines else WHOLE if frame else parse_form(chunk) if chunk else AS_IT_COMES
    settings = PubSettings(form, key, content_type, name, quiet, lanes_of(lanes))
    raise typer.Exit(run(publish, url, source, settings))


def _sub(
    url: TopicArgument,
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            callback=parse_output,
            help="A file for each message; '-': all on stdout.",
        ),
    ] = "-",
    start: Annotated[
        str,
        typer.Option("--from", metavar="START", help="latest, earliest, committed, or a sequence number."),
    ] = LATEST,
    policy: Annotated[
        Policy,
        typer.Option(
            "--policy", parser=_policy, metavar="POLICY", help="drop-oldest, latest, disconnect, or block."
        ),
    ] = Policy.DROP_OLDEST,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Commit what was written, under this name.")
    ] = "",
    count: Annotated[
        int | None, typer.Option("--count", parser=number(1), metavar="N", help="End after N messages.")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Get the messages of a topic, from now on or from where --from says, until Ctrl-C or --count.

    POLICY is for when this end is slower than the publisher: miss the oldest messages, get only the newest,
    be disconnected, or have the publisher wait (where the server allows it). What is missed is told on
    stderr. A lost connection is made again, and goes on where it was.

    With -o, files are called EPOCH-SEQUENCE, with an ending for the type, and sort as the messages came. A
    server that was restarted counts from 1 again, in another epoch: no message takes another one's file.

    With --name, --from committed goes on behind the last message that was written.

    \b
    Examples:
      zcserver sub zc://hub/tv | ffplay -
      zcserver sub zc://hub/log --from earliest | grep ERROR
      zcserver sub zc://hub/camera -o stills --count 10
    """
    from .sub import SubSettings, subscribe

    if start == COMMITTED and not name:
        raise CommandError("--from committed needs --name: who has committed", ExitCode.USAGE)
    settings = SubSettings(output, _start(start), policy.value, name, count or 0, quiet)
    raise typer.Exit(run(subscribe, url, settings))


def _start(text: str) -> str | int:
    if text in (LATEST, EARLIEST, COMMITTED):
        return text
    if not (text.isdecimal() and len(text) < 20 and 1 <= int(text) <= MAX_SEQUENCE):
        raise CommandError(
            f"--from: {text!r} is none of latest, earliest, committed, nor a number from 1 to {MAX_SEQUENCE}",
            ExitCode.USAGE,
        )
    return int(text)
