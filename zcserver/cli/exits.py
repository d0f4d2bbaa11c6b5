"""Every way a command can end: its exit code, and the one line an error gets on stderr."""

import errno
from enum import IntEnum, unique
from typing import Final

from zcserver.client import UrlError, VerificationError
from zcserver.errors import (
    ConnectionLostError,
    HandshakeError,
    MisuseError,
    StreamResetError,
    TransferError,
)
from zcserver.file_protocol import NOT_A_FILE
from zcserver_protocol.errors import ErrorCode


@unique
class ExitCode(IntEnum):
    """The exit codes of all commands, with what each means."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> "ExitCode":
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    OK = 0, "done"
    FAILED = 1, "anything that has no code of its own"
    USAGE = 2, "wrong command line or setting"
    NOT_FOUND = 3, "no such file or directory"
    NOT_A_FILE = 4, "a directory, device or FIFO where a file is due"
    FORBIDDEN = 5, "permission denied, here or by the server"
    UNREACHABLE = 6, "nobody listens there, or the name is unknown"
    NOT_A_PEER = 7, "what listens there does not speak ZCP/1"
    CANNOT_LISTEN = 8, "the port is taken or may not be used"
    LOST = 9, "the connection broke, or the server stopped"
    CHANGED = 10, "the file was changed while it was sent"
    MISMATCH = 11, "what arrived is not what was sent"
    NO_SPACE = 12, "disk full, quota or file size limit reached"
    INTERRUPTED = 130, "ended by Ctrl-C"
    TERMINATED = 143, "ended by SIGTERM"


class CommandError(Exception):
    """A command cannot go on: one line for stderr, and the exit code."""

    def __init__(self, line: str, code: ExitCode) -> None:
        super().__init__(line)
        self.line = line
        self.code = code


_BY_ERRNO: Final = {
    errno.ENOENT: (ExitCode.NOT_FOUND, "check the path"),
    errno.ENOTDIR: (ExitCode.NOT_A_FILE, "check the path"),
    errno.EISDIR: (ExitCode.NOT_A_FILE, "name a file, not a directory"),
    errno.EEXIST: (ExitCode.NOT_A_FILE, "choose another name"),
    errno.EACCES: (ExitCode.FORBIDDEN, "check the permissions"),
    errno.EPERM: (ExitCode.FORBIDDEN, "check the permissions"),
    errno.EROFS: (ExitCode.FORBIDDEN, "choose a place that can be written to"),
    errno.ENOSPC: (ExitCode.NO_SPACE, "free some space, or choose another place"),
    errno.EDQUOT: (ExitCode.NO_SPACE, "free some of your quota, or choose another place"),
    errno.EFBIG: (ExitCode.NO_SPACE, "raise the file size limit (ulimit -f), or choose another place"),
}
_BY_RESET: Final[dict[int, ExitCode]] = {
    ErrorCode.NOT_FOUND: ExitCode.NOT_FOUND,
    ErrorCode.FORBIDDEN: ExitCode.FORBIDDEN,
    ErrorCode.CHANGED: ExitCode.CHANGED,
    ErrorCode.CANCELLED: ExitCode.LOST,
    NOT_A_FILE: ExitCode.NOT_A_FILE,
}


def explain(error: TransferError | MisuseError | OSError) -> tuple[str, ExitCode]:
    """The line for stderr and the exit code of an error that a user can meet."""
    match error:
        case UrlError() | MisuseError():
            return printable(str(error)), ExitCode.USAGE
        case VerificationError():
            return printable(str(error)), ExitCode.MISMATCH
        case StreamResetError():
            return printable(error.reason or str(error)), _BY_RESET.get(error.code, ExitCode.FAILED)
        case HandshakeError():
            return printable(f"{error} (is this the right port?)"), ExitCode.NOT_A_PEER
        case ConnectionLostError() if isinstance(error.__cause__, OSError):
            return printable(f"{error} (is `zcserver serve` running there?)"), ExitCode.UNREACHABLE
        case ConnectionLostError():
            return printable(f"{error} (try again)"), ExitCode.LOST
        case OSError(errno=int(number)):
            code, advice = _BY_ERRNO.get(number, (ExitCode.FAILED, ""))
            where = f"{error.filename}: " if error.filename is not None else ""
            return printable(f"{where}{error.strerror}{advice and f' ({advice})'}"), code
        case _:
            return printable(str(error)), ExitCode.FAILED


def printable(text: str) -> str:
    """One line without control characters: part of it may come from a server."""
    return "".join(character if character.isprintable() else "?" for character in text)


def table() -> str:
    """All codes and meanings, a line each, for the help."""
    return "\n".join(f"  {code.value:3}  {code.meaning}" for code in ExitCode)
