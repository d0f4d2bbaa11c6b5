"""What several commands share: sizes and lanes on the command line, amounts in the output."""

import re
from collections.abc import Callable
from typing import Annotated, Final

import typer

# (Python reads no more than 4300 digits.)
_SIZE: Final = re.compile(r"([0-9]{1,999})(?:\.([0-9]{1,999}))?\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_POWERS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_MOST: Final = (1 << 63) - 1  # what the kernel takes for an offset
_ADDRESSABLE: Final = 64 << 40  # half of what a process has on most machines
_LANES: Final = ("vmsplice", "file", "copy")


def parse_size(text: str) -> int:
    """Bytes from ``64M``, ``1.5GiB`` or ``4096``, rounded down; units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no size; write 4096, 64M or 1.5G")
    whole, fraction, unit = match.groups("")
    digits = int(whole + fraction)
    nbytes: int = digits * 1024 ** _POWERS[unit.upper()] // 10 ** len(fraction)
    if nbytes > _MOST:
        raise typer.BadParameter(f"{text!r} is too large; sizes end at {_MOST} bytes")
    if digits and not nbytes:
        raise typer.BadParameter(f"{text!r} is less than a byte; write 1 or more, or 0")
    return nbytes


def parse_memory(text: str) -> int:
    """As :func:`parse_size`, for memory of this process."""
    nbytes = parse_size(text)
    if nbytes > _ADDRESSABLE:
        raise typer.BadParameter(f"{text!r} is more memory than a process can have; write 64T at most")
    return nbytes


def number(least: int, most: int = _MOST) -> Callable[[str | int], int]:
    """A parser of whole numbers from ``least`` to ``most``, which takes defaults, too."""

    def parse(text: str | int) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            numbers = f"from {least} on" if most == _MOST else f"from {least} to {most}"
            raise typer.BadParameter(f"{text!r} is no whole number {numbers}")
        return value

    return parse


def parse_output(text: str | None) -> str | None:
    """Check where something is to be put."""
    if text == "":
        raise typer.BadParameter("'' is no name; write '.' for this directory, or leave it out")
    return text


def parse_lanes(text: str) -> str:
    """Check a comma-separated list of lanes."""
    unknown = set(text.replace(" ", "").split(",")) - set(_LANES) - {""}
    if unknown:
        raise typer.BadParameter(f"no such lane: {', '.join(sorted(unknown))}; there are {', '.join(_LANES)}")
    return text


def lanes_of(text: str) -> tuple[str, ...] | None:
    """The lanes for a ``Context``; None (nothing given) leaves the choice to it."""
    return tuple(lane for lane in text.replace(" ", "").split(",") if lane) or None


LanesOption = Annotated[
    str,
    typer.Option(
        "--lanes",
        metavar="LANES",
        envvar="ZCSERVER_LANES",
        show_envvar=False,
        callback=parse_lanes,
        help="Use only these ways to send, e.g. 'file,copy'.",
    ),
]
# Hidden: the help would show no more than their Python types. The prose says what they are.
UrlArgument = Annotated[str, typer.Argument(hidden=True, metavar="URL", help="zc://host[:port]/path")]
UrlsArgument = Annotated[list[str], typer.Argument(hidden=True, metavar="URL", help="zc://host[:port]/path")]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--output",
        metavar="PATH",
        callback=parse_output,
        help="Where to put it; '-': on stdout. Default: its own name.",
    ),
]
RecursiveOption = Annotated[
    bool, typer.Option("-r", "--recursive", help="Directories, with all that is in them.")
]
StableOption = Annotated[
    bool, typer.Option("--stable", help="For files being written to: the server hashes what it sends.")
]
OffsetOption = Annotated[
    int | None,
    typer.Option("--offset", parser=parse_size, metavar="SIZE", help="With -o -: begin there."),
]
LengthOption = Annotated[
    int | None,
    typer.Option("--length", parser=parse_size, metavar="SIZE", help="With -o -: at most so many bytes."),
]
JobsOption = Annotated[
    int, typer.Option("-j", "--jobs", parser=number(1, 64), metavar="N", help="How many files at once.")
]
IncludeOption = Annotated[
    list[str] | None,
    typer.Option("--include", metavar="GLOB", help="Only files that match (repeatable)."),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="GLOB", help="Not what matches (repeatable)."),
]
VerifyOption = Annotated[
    bool,
    typer.Option("--verify", help="Compare the SHA-256 of both ends, too; costs time."),
]
RestartOption = Annotated[bool, typer.Option("--restart", help="Begin anew; do not resume earlier tries.")]
LimitRateOption = Annotated[
    int,
    typer.Option(
        "--limit-rate",
        parser=parse_size,
        metavar="SIZE",
        show_default=False,
        help="At most so many bytes per second, e.g. 10M.",
    ),
]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON, for scripts.")]


def amount(nbytes: float) -> str:
    """Bytes as people read them: ``1.50 GiB``."""
    for unit in ("bytes", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} bytes" if unit == "bytes" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} GiB"


def rate(nbytes: int, seconds: float) -> str:
    """``2.31 GiB/s``; slower ones in MiB/s."""
    per_second = nbytes / max(seconds, 1e-9)
    if per_second < 1 << 30:
        return f"{per_second / (1 << 20):.1f} MiB/s"
    return f"{per_second / (1 << 30):.2f} GiB/s"
