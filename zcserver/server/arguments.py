"""What a request carries besides its path, checked: a peer may have put anything there."""

from zcserver.errors import StreamResetError
from zcserver.stream import Stream
from zcserver_protocol.control import MAX_INTEGER
from zcserver_protocol.errors import ErrorCode


def number(stream: Stream, name: str, least: int = 0) -> int | None:
    """A whole number from ``least`` on, None if it is not given; StreamResetError for anything else."""
    value = stream.args.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_INTEGER:
        raise _wrong(stream, name, f"a whole number from {least} on")
    return value


def flag(stream: Stream, name: str) -> bool:
    """True or False, False if it is not given; StreamResetError for anything else."""
    value = stream.args.get(name, False)
    if not isinstance(value, bool):
        raise _wrong(stream, name, "true or false")
    return value


def text(stream: Stream, name: str) -> str | None:
    """A text, None if it is not given; StreamResetError for anything else."""
    value = stream.args.get(name)
    if value is not None and not isinstance(value, str):
        raise _wrong(stream, name, "a text")
    return value


def _wrong(stream: Stream, name: str, wanted: str) -> StreamResetError:
    return StreamResetError(ErrorCode.REFUSED, f"{stream.method}: the argument {name!r} must be {wanted}")
