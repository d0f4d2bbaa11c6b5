"""What a file server and its clients agree on, above ZCP/1: methods, codes, names, validators, entries.

``docs/file-protocol.md`` says what each method does, with its arguments and replies.
"""

import os
import re
import stat
from typing import Annotated, Final, Literal
from urllib.parse import unquote_to_bytes

import msgspec

from zcserver.errors import RESET_NAMES
from zcserver_protocol.control import MAX_INTEGER, MIN_INTEGER

STAT: Final = "STAT"
LIST: Final = "LIST"
GET: Final = "GET"
DIGEST: Final = "DIGEST"
PUT: Final = "PUT"
MKDIR: Final = "MKDIR"
RENAME: Final = "RENAME"
REMOVE: Final = "REMOVE"
WRITING: Final = frozenset({PUT, MKDIR, RENAME, REMOVE})
"""The methods that only a server started writable carries out."""
ALGORITHM: Final = "sha256"

# Reset codes beside those of the protocol.
NOT_A_FILE: Final = 0x100
"""There is something at that path, but no regular file."""
EXISTS: Final = 0x101
READ_ONLY: Final = 0x102
"""The server was not started writable."""
NO_SPACE: Final = 0x103
MISMATCH: Final = 0x104
"""What arrived is not what was announced: length or digest differ."""
NOT_EMPTY: Final = 0x105
NOT_A_DIRECTORY: Final = 0x106
IO_ERROR: Final = 0x107
"""The server's disk failed, or cannot do this."""
UNKNOWN_METHOD: Final = 0x108
"""This server does not offer that: it serves only topics, or only files."""

RESET_NAMES.update(
    {
        NOT_A_FILE: "NOT_A_FILE",
        EXISTS: "EXISTS",
        READ_ONLY: "READ_ONLY",
        NO_SPACE: "NO_SPACE",
        MISMATCH: "MISMATCH",
        NOT_EMPTY: "NOT_EMPTY",
        NOT_A_DIRECTORY: "NOT_A_DIRECTORY",
        IO_ERROR: "IO_ERROR",
        UNKNOWN_METHOD: "UNKNOWN_METHOD",
    }
)

STAGING: Final = ".zcserver"
"""In the top of a writable root: uploads on their way. A name that is never listed, read or written through
the protocol, at whatever depth: one root may lie inside another."""

PAGE_ENTRIES: Final = 500
PAGE_BYTES: Final = 8 << 20
"""No page is longer, even where all its entries have the longest of paths with every byte escaped."""

_ESCAPED_PATH: Final = 16 << 10  # characters, 3 for a byte at most; 4095 bytes, a slash and 255 bytes can be

EntryType = Literal["file", "directory", "link", "other"]

_ALWAYS_ESCAPED: Final = re.compile("[%\x00-\x1f\x7f-\x9f\udc80-\udcff]")
_NOT_UTF8: Final = re.compile("[\udc80-\udcff]")


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a listing. ``path`` is relative to the listed directory; sizes are bytes.

    ``error`` says why the content of a directory is missing from a recursive listing.
    """

    path: Annotated[str, msgspec.Meta(max_length=_ESCAPED_PATH)]
    type: EntryType
    size: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    mtime_ns: int = 0
    validator: str = ""
    error: str = ""


class Page(msgspec.Struct, frozen=True):
    """Up to 500 entries. A listing whose last page says ``more`` was cut off."""

    entries: Annotated[list[Entry], msgspec.Meta(max_length=PAGE_ENTRIES)]
    more: bool


def escape(path: bytes) -> str:
    """A name from the file system as it goes over the wire."""
    return _ALWAYS_ESCAPED.sub(_percent, path.decode("utf-8", "surrogateescape"))


def escape_undecodable(text: str) -> str:
    """As :func:`escape`, for text that is already escaped but came through ``os.fsdecode`` (argv)."""
    return _NOT_UTF8.sub(_percent, text)


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))


def unescape(path: str) -> bytes:
    """The file system's name for a path from the wire: escapes are resolved once, here and nowhere else."""
    return unquote_to_bytes(path)


def validator_of(status: os.stat_result) -> str:
    """A text that changes when a file is replaced, rewritten or resized: ``inode-mtime_ns-size``.

    Two writes within one tick of the file system's clock (up to 4 ms before Linux 6.13) and writes through
    ``mmap`` can go unnoticed.
    """
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


def mtime_of(status: os.stat_result) -> int:
    """Nanoseconds since 1970; of times before 1677 or after 2554 the nearest that an argument can be."""
    return min(max(status.st_mtime_ns, MIN_INTEGER), MAX_INTEGER)


def hides_its_size(fd: int) -> bool:
    """Whether an open file that was of size 0 has content all the same, as those of /proc have.

    Reads from the disk. A file that has grown meanwhile says so.
    """
    return bool(os.pread(fd, 1, 0)) and not os.fstat(fd).st_size


def entry_of(path: bytes, status: os.stat_result) -> Entry:
    """The line of a listing for ``path`` with what ``lstat`` said about it."""
    mode = status.st_mode
    if stat.S_ISREG(mode):
        return Entry(escape(path), "file", status.st_size, mtime_of(status), validator_of(status))
    kind: EntryType = "directory" if stat.S_ISDIR(mode) else "link" if stat.S_ISLNK(mode) else "other"
    return Entry(escape(path), kind, 0, mtime_of(status))
