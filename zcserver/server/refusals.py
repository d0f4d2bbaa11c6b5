"""What the system says about a path, as the peer is told: a reset code and one sentence, nothing of ours."""

import errno
import os
import stat
from types import TracebackType
from typing import Final

from zcserver.errors import StreamResetError, TransferError
from zcserver.file_protocol import (
    EXISTS,
    IO_ERROR,
    NO_SPACE,
    NOT_A_DIRECTORY,
    NOT_A_FILE,
    NOT_EMPTY,
)
from zcserver_protocol.errors import ErrorCode

_SHOWN: Final = 200
# The sentence may use {path}, {doing} (read, write, ...) and {why} (the system's words).
_BY_ERRNO: Final[dict[int, tuple[int, str]]] = {
    errno.ENOENT: (ErrorCode.NOT_FOUND, "no such file: {path}"),
    errno.ENOTDIR: (ErrorCode.NOT_FOUND, "no such file: {path}"),
    errno.ENAMETOOLONG: (ErrorCode.NOT_FOUND, "the path is too long: {path}"),
    errno.EACCES: (ErrorCode.FORBIDDEN, "the server may not {doing} {path}"),
    errno.EPERM: (ErrorCode.FORBIDDEN, "the server may not {doing} {path}"),
    errno.EROFS: (ErrorCode.FORBIDDEN, "the server may not {doing} {path}: its file system is read-only"),
    errno.ELOOP: (
        ErrorCode.FORBIDDEN,
        "{path} is a symbolic link that is not followed: by this server's policy, or it leads in a circle",
    ),
    errno.EXDEV: (ErrorCode.FORBIDDEN, "{path} is a symbolic link that is not followed: it leads out"),
    errno.ENXIO: (NOT_A_FILE, "{path} is a socket or device, not a file"),
    errno.ENODEV: (NOT_A_FILE, "{path} is a socket or device, not a file"),
    errno.EISDIR: (NOT_A_FILE, "{path} is a directory, not a file"),
    errno.EEXIST: (EXISTS, "{path} exists already"),
    errno.ENOTEMPTY: (NOT_EMPTY, "{path} is a directory that is not empty"),
    errno.EBUSY: (ErrorCode.FORBIDDEN, "{path} is in use by the server's system (a mount point?)"),
    errno.ENOSPC: (NO_SPACE, "the server's disk is full: {path}"),
    errno.EDQUOT: (NO_SPACE, "the server's disk quota is used up: {path}"),
    errno.EFBIG: (NO_SPACE, "too large for the server's file system or limits: {path}"),
    errno.EMFILE: (ErrorCode.LIMIT, "the server has too many files open: try {path} again later"),
    errno.ENFILE: (ErrorCode.LIMIT, "the server has too many files open: try {path} again later"),
    errno.ENOMEM: (ErrorCode.LIMIT, "the server is out of memory: try {path} again later"),
    errno.EAGAIN: (ErrorCode.LIMIT, "the server cannot {doing} {path} now: {why}"),
}
_OTHERWISE: Final = (IO_ERROR, "the server's disk failed to {doing} {path}: {why}")


class refusals:  # noqa: N801 – used like a function: ``with refusals(path): …``
    """Turn an OSError about ``path`` (as it came over the wire) into a StreamResetError for the peer."""

    # (A class, since a generator's context costs three times as much, and there are some for each file.)
    __slots__ = ("_doing", "_path")

    def __init__(self, path: str, doing: str = "read") -> None:
        self._path = path
        self._doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, TransferError):
            code, words = _BY_ERRNO.get(error.errno or 0, _OTHERWISE)
            why = error.strerror or type(error).__name__
            reason = words.format(path=shown(self._path), doing=self._doing, why=why)
            raise StreamResetError(code, reason) from error


def missing(path: str) -> StreamResetError:
    return StreamResetError(ErrorCode.NOT_FOUND, f"no such file: {shown(path)}")


def changed(path: str, why: str = "was changed while it was read: fetch it again") -> StreamResetError:
    return StreamResetError(ErrorCode.CHANGED, f"{shown(path)} {why}")


def not_a_directory(path: str) -> StreamResetError:
    return StreamResetError(NOT_A_DIRECTORY, f"{shown(path)} is not a directory")


def not_a_file(path: str, mode: int) -> StreamResetError:
    """The refusal of what stands at ``path``, by its ``st_mode``."""
    return StreamResetError(NOT_A_FILE, f"{shown(path)} is a {_kind(mode)}, not a file")


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "symbolic link"
    if stat.S_ISFIFO(mode):
        return "FIFO"
    if stat.S_ISSOCK(mode):
        return "socket"
    return "directory" if stat.S_ISDIR(mode) else "device"


def shown(path: str) -> str:
    """A peer's path for logs and messages: printable, and not longer than need be."""
    text = "".join(character if character.isprintable() else "?" for character in path[: _SHOWN + 1])
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def words_of(error: OSError) -> str:
    """What the system says, for a listing's line."""
    return os.strerror(error.errno or errno.EIO)
