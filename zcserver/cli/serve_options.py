"""The options of ``zcserver serve``, which are also settings (``settings``): here, how each is written."""

from typing import Annotated

import typer

RootsArgument = Annotated[
    list[str] | None,
    typer.Argument(hidden=True, metavar="DIR", help="What to offer; several by name: NAME=DIR."),
]
BindOption = Annotated[
    list[str] | None,
    typer.Option("--bind", metavar="WHERE", help="ADDRESS, ADDRESS:PORT, * or unix:PATH (repeatable)."),
]
PortOption = Annotated[
    str | None, typer.Option("--port", metavar="PORT", help="Default: 7420. 0: any free one.")
]
WritableOption = Annotated[
    bool | None, typer.Option("--writable/--read-only", help="Allow put, mkdir, mv, rm.")
]
HiddenOption = Annotated[
    bool | None, typer.Option("--hidden/--no-hidden", help="Names that begin with a dot, too. Default: yes.")
]
LinksOption = Annotated[
    str | None, typer.Option("--links", metavar="POLICY", help="'follow' within DIR (default), or 'refuse'.")
]
PoolSizeOption = Annotated[
    str | None, typer.Option("--pool-size", metavar="SIZE", help="Memory for sending. Default: 64M.")
]
LimitRateOption = Annotated[
    str | None,
    typer.Option("--limit-rate", metavar="SIZE", help="Bytes per second and connection, e.g. 10M."),
]
ServeLanesOption = Annotated[
    str | None,
    typer.Option("--lanes", metavar="LANES", help="Use only these ways to send, e.g. 'file,copy'."),
]
GraceOption = Annotated[
    str | None,
    typer.Option("--grace", metavar="SECONDS", help="For running transfers at the end. Default: 30."),
]
AccessLogOption = Annotated[
    str | None, typer.Option("--access-log", metavar="PATH", help="A line per request; '-': on stderr.")
]
LogFormatOption = Annotated[
    str | None, typer.Option("--log-format", metavar="FORM", help="'text' (default) or 'json'.")
]
ConfigOption = Annotated[
    str | None, typer.Option("--config", metavar="PATH", help="A TOML file with these options.")
]
SummaryOption = Annotated[
    bool | None, typer.Option("--summary/--no-summary", help="At the end, the totals as JSON.")
]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="The same as --access-log -.")]
TopicsOption = Annotated[
    bool | None, typer.Option("--topics/--no-topics", help="Let clients publish to topics, and subscribe.")
]
StdinOption = Annotated[
    str | None, typer.Option("--stdin", metavar="TOPIC", help="Publish standard input to this topic.")
]
StdinAsOption = Annotated[
    str | None, typer.Option("--stdin-as", metavar="FORM", help="Cut into 'lines', one 'frame', or SIZE.")
]
RetainOption = Annotated[
    str | None, typer.Option("--retain", metavar="SIZE", help="Kept of each topic. Default: 16M.")
]
RetainCountOption = Annotated[
    str | None, typer.Option("--retain-count", metavar="N", help="Messages of it at most. Default: 1024.")
]
RetainSecondsOption = Annotated[
    str | None, typer.Option("--retain-seconds", metavar="SECONDS", help="For so long at most.")
]
AllowBlockOption = Annotated[
    bool | None, typer.Option("--allow-block/--no-block", help="Subscribers may have publishers wait.")
]
