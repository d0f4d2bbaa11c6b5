"""A local directory as a listing, and whether a file is the one that a listing tells of."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from zcserver.file_protocol import STAGING, mtime_of

from .partial import is_temporary
from .place import Place
from .selection import Selection


@dataclass(frozen=True, slots=True)
class LocalEntry:
    """``path`` is relative to the top. ``error``: a folder whose content cannot be read.

    ``left_out``: excluded, or a server's own; what is below it is not looked at.
    """

    path: str
    type: str
    size: int = 0
    mtime_ns: int = 0
    error: OSError | None = None
    left_out: bool = False


def walk(place: Place, select: Selection, everything: bool = False, folder: str = "") -> Iterator[LocalEntry]:
    """All entries below its top but the excluded ones; a directory comes right before its content.

    It may be served, or hold what is: servers' own directories are left out, and so are partial downloads.
    ``everything`` names those and the excluded ones, too. With ``folder``, which is relative to the top, only
    what is below that one. Blocks: in a thread. OSError when the top, or the folder, itself cannot be read.
    """
    waiting = list(reversed(_below(place, folder, select, everything)))
    while waiting:
        entry = waiting.pop()
        if entry.type == "directory" and not entry.left_out:
            try:
                below = _below(place, entry.path, select, everything)
            except FileNotFoundError:
                continue
            except OSError as error:
                yield LocalEntry(entry.path, "directory", error=error)
                continue
            waiting += reversed(below)
        yield entry


def _below(place: Place, folder: str, select: Selection, everything: bool) -> list[LocalEntry]:
    found: list[LocalEntry] = []
    with place.scan(folder) as entries:
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            left_out = entry.name == STAGING or select.excludes(path)
            if not everything and (left_out or is_temporary(entry.name)):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            found.append(
                LocalEntry(
                    path,
                    type_of(status.st_mode),
                    status.st_size,
                    mtime_of(status),
                    left_out=left_out,
                )
            )
    found.sort(key=lambda entry: os.fsencode(entry.path))
    return found


def type_of(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    return "directory" if stat.S_ISDIR(mode) else "link" if stat.S_ISLNK(mode) else "other"


def parents(path: str) -> Iterator[str]:
    """The folders that hold what is at a relative path, innermost first, without the top."""
    while path := os.path.dirname(path):
        yield path


def differs(status: os.stat_result | None, size: int, mtime_ns: int) -> bool:
    """Whether this is not a regular file of that size and time."""
    return (
        status is None
        or not stat.S_ISREG(status.st_mode)
        or (status.st_size, status.st_mtime_ns) != (size, mtime_ns)
    )
