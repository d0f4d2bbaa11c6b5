"""What fetching and sending trees share: options, failures, and several files under way at once."""

import contextlib
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from zcserver.errors import ConnectionLostError, MisuseError, StreamResetError, TransferError, first_of
from zcserver.file_protocol import IO_ERROR, NO_SPACE, READ_ONLY, Entry, unescape
from zcserver_protocol.errors import ErrorCode

from .progress import SILENT, Progress, TreeReport
from .selection import Selection

JOBS: Final = 16
# One such failure and every other file would fail too.
_HOPELESS_HERE: Final = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE}
_HOPELESS_THERE: Final = {NO_SPACE, READ_ONLY}
# A listing has only the system's words for it.
_FORBIDDEN: Final = {os.strerror(number) for number in (errno.EACCES, errno.EPERM)}
_WHAT: Final = {"link": "a symbolic link", "directory": "a directory", "file": "a file"}
_PATH_BYTES: Final = 4095
_NAME_BYTES: Final = 255
_SHOWN: Final = 80  # characters of a path that is too long
Job = TypeVar("Job")


@dataclass(frozen=True, slots=True)
class TreeOptions:
    """See :meth:`Client.sync`. ``update`` skips files of equal size and time."""

    jobs: int = JOBS
    select: Selection = field(default_factory=Selection)
    update: bool = False
    delete: bool = False
    dry_run: bool = False
    verify: bool = False
    restart: bool = False
    stable: bool = False
    progress: Progress = SILENT
    report: TreeReport = field(default_factory=TreeReport)

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise MisuseError(f"jobs={self.jobs}: at least one file must be under way")


def options_of(given: dict[str, Any], **own: Any) -> TreeOptions:
    """What the caller has given, and what the operation itself says."""
    reserved = given.keys() & {"update", "delete", "dry_run"}
    if reserved:
        raise MisuseError(f"{', '.join(sorted(reserved))}: only sync removes, pretends or skips")
    rest = dict(given)
    select = Selection(rest.pop("include", ()), rest.pop("exclude", ()))
    return TreeOptions(select=select, **rest, **own)


@contextlib.contextmanager
def noting_one(report: TreeReport, name: str) -> Iterator[None]:
    """Note a failure and go on; one after which that is pointless is raised. For threads."""
    try:
        yield
    except (TransferError, OSError) as error:
        if _is_hopeless(error):
            raise
        _note(report, name, error)


@contextlib.contextmanager
def noting(report: TreeReport, name: str, everything: anyio.CancelScope) -> Iterator[None]:
    """Note a failure and go on, or cancel everything where going on is pointless."""
    try:
        with noting_one(report, name):
            yield
    except (TransferError, OSError) as error:
        _note(report, name, error)
        everything.cancel()


def _note(report: TreeReport, name: str, error: TransferError | OSError) -> None:
    """Without tracebacks: for as long as the report lives, their frames would keep what was at hand."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = link.__context__ = None
        link = link.__cause__
    report.failures.append((name, error))


def _is_hopeless(error: TransferError | OSError) -> bool:
    if isinstance(error, StreamResetError):
        return error.code in _HOPELESS_THERE
    return isinstance(error, ConnectionLostError) or (
        isinstance(error, OSError) and error.errno in _HOPELESS_HERE
    )


@contextlib.asynccontextmanager
async def workers(
    count: int, work: Callable[[Job], Awaitable[None]]
) -> AsyncIterator[tuple[MemoryObjectSendStream[Job], anyio.CancelScope]]:
    """``count`` tasks that work off what is sent; leaving the block waits until all of it is done.

    What goes wrong comes out as such, and not in a group: a MisuseError before anything else.
    """

    async def work_off(jobs: MemoryObjectReceiveStream[Job]) -> None:
        with jobs:
            async for job in jobs:
                await work(job)

    sender, receiver = anyio.create_memory_object_stream[Job](count)
    try:
        async with anyio.create_task_group() as tasks:
            with receiver:
                for _ in range(count):
                    tasks.start_soon(work_off, receiver.clone())
            async with sender:
                yield sender, tasks.cancel_scope
    except BaseExceptionGroup as group:
        errors = group.subgroup(MisuseError) or group
        if not isinstance(errors, ExceptionGroup):
            raise
        error = first_of(errors)
        raise error from error.__cause__


def in_the_way(kind: str) -> str:
    """The words for something that a file or folder would have to replace."""
    return f"is {_WHAT.get(kind, 'a special file')}: remove it, or sync with --delete"


def holding(path: str) -> str:
    """The words for a folder that would be replaced if ``path`` were not in it."""
    return f"is a directory with {path} in it, which is left out: remove it yourself"


def unlisted(name: str, entry: Entry) -> StreamResetError:
    """What the listing says of a folder whose content the server could not read, as a refusal to list it."""
    code = ErrorCode.FORBIDDEN if entry.error in _FORBIDDEN else IO_ERROR
    return StreamResetError(code, f"{name}: the server cannot list it: {entry.error}")


def local_path(path: str) -> Path:
    """A listed path as a relative local one. TransferError for names that could lead somewhere else.

    And for those that Linux cannot have, since a path may be 4095 bytes long, a name in it 255 bytes.
    """
    raw = unescape(path)
    parts = raw.split(b"/")
    if len(raw) > _PATH_BYTES or max(map(len, parts)) > _NAME_BYTES:
        raise TransferError(
            f"the server lists a path of {len(raw)} bytes, a name in it of {max(map(len, parts))} (at most "
            f"{_PATH_BYTES} and {_NAME_BYTES} are possible): {path[:_SHOWN]!r}…"
        )
    if any(part in (b"", b".", b"..") or b"\0" in part for part in parts):
        raise TransferError(f"the server lists a name that no file below a folder can have: {path!r}")
    return Path(os.fsdecode(raw))
