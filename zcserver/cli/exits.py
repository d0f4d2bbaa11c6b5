"""Every way a command can end: its exit code, and the one line an error gets on stderr."""

import errno
import os
import socket
from enum import IntEnum, unique
from typing import Final

from zcserver.client import ChangedError, VerificationError
from zcserver.errors import (
    ConnectionLostError,
    HandshakeError,
    MisuseError,
    PoolTimeoutError,
    StreamResetError,
    TransferError,
    printable,
)
from zcserver.file_protocol import (
    EXISTS,
    IO_ERROR,
    MISMATCH,
    NO_SPACE,
    NOT_A_DIRECTORY,
    NOT_A_FILE,
    NOT_EMPTY,
    READ_ONLY,
    UNKNOWN_METHOD,
)
from zcserver_protocol.errors import ErrorCode, RemoteProtocolError


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
    NOT_A_FILE = 4, "a directory or device where a file is due, or the reverse"
    FORBIDDEN = 5, "permission denied, here or by the server"
    UNREACHABLE = 6, "nobody listens there"
    NOT_A_PEER = 7, "what listens there does not speak ZCP/1, or does not offer this"
    CANNOT_LISTEN = 8, "the port is taken or may not be used"
    LOST = 9, "the connection broke, or the server stopped"
    CHANGED = 10, "the file was changed on its way, or since a part was fetched"
    MISMATCH = 11, "what arrived is not what was sent"
    NO_SPACE = 12, "disk full, quota or file size limit reached"
    VERSION = 13, "the other end speaks another version of ZCP"
    UNKNOWN_HOST = 14, "the host's name cannot be resolved"
    READ_ONLY = 15, "the server was not started with --writable"
    EXISTS = 16, "something has that name already, or is in the directory"
    LIMIT = 17, "a limit of this user or machine: open files, memory"
    DISK = 18, "a disk failed, here or at the server"
    HUNG_UP = 129, "ended by SIGHUP: the terminal has gone"
    INTERRUPTED = 130, "ended by Ctrl-C"
    TERMINATED = 143, "ended by SIGTERM"


class CommandError(Exception):
    """A command cannot go on: one line for stderr (none if empty), and the exit code."""

    def __init__(self, line: str, code: ExitCode) -> None:
        super().__init__(line)
        self.line = line
        self.code = code


_OPEN_FILES: Final = "raise the limit on open files (ulimit -n), or use a lower -j"
_BY_ERRNO: Final = {
    errno.ENOENT: (ExitCode.NOT_FOUND, "check the path"),
    errno.ENOTDIR: (ExitCode.NOT_A_FILE, "check the path"),
    errno.EISDIR: (ExitCode.NOT_A_FILE, "name a file, or add -r for directories"),
    errno.EEXIST: (ExitCode.EXISTS, "choose another name"),
    errno.ENOTEMPTY: (ExitCode.EXISTS, "empty it first"),
    errno.EACCES: (ExitCode.FORBIDDEN, "check the permissions"),
    errno.EPERM: (ExitCode.FORBIDDEN, "check the permissions"),
    errno.EROFS: (ExitCode.FORBIDDEN, "choose a place that can be written to"),
    errno.ENOSPC: (ExitCode.NO_SPACE, "free some space, or choose another place"),
    errno.EDQUOT: (ExitCode.NO_SPACE, "free some of your quota, or choose another place"),
    errno.EFBIG: (ExitCode.NO_SPACE, "raise the file size limit (ulimit -f), or choose another place"),
    errno.EMFILE: (ExitCode.LIMIT, _OPEN_FILES),
    errno.ENFILE: (ExitCode.LIMIT, "close other programs' files, or raise fs.file-max"),
    errno.ENOMEM: (ExitCode.LIMIT, "free some memory, or lower --pool-size"),
    errno.EIO: (ExitCode.DISK, "look into the kernel's log (dmesg)"),
}
# Where the words are not the system's but ours, which say what it is.
_BY_ERRNO_OF_OURS: Final = {
    errno.EEXIST: (ExitCode.EXISTS, ""),
    errno.EINVAL: (ExitCode.NOT_A_FILE, "put - URL < FILE"),
}
_BY_RESET: Final[dict[int, tuple[ExitCode, str]]] = {
    ErrorCode.NOT_FOUND: (ExitCode.NOT_FOUND, "zcserver ls shows what there is"),
    ErrorCode.FORBIDDEN: (ExitCode.FORBIDDEN, ""),
    ErrorCode.CHANGED: (ExitCode.CHANGED, ""),
    ErrorCode.CANCELLED: (ExitCode.LOST, "try again"),
    ErrorCode.LIMIT: (ExitCode.LIMIT, "try again later"),
    NOT_A_FILE: (ExitCode.NOT_A_FILE, ""),
    NOT_A_DIRECTORY: (ExitCode.NOT_A_FILE, ""),
    EXISTS: (ExitCode.EXISTS, ""),
    NOT_EMPTY: (ExitCode.EXISTS, ""),
    READ_ONLY: (ExitCode.READ_ONLY, "start it with `zcserver serve --writable`"),
    NO_SPACE: (ExitCode.NO_SPACE, "free some space there"),
    MISMATCH: (ExitCode.MISMATCH, "try again"),
    IO_ERROR: (ExitCode.DISK, "look into the server's log"),
    UNKNOWN_METHOD: (ExitCode.NOT_A_PEER, "is this the right port?"),
}


def explain(error: TransferError | MisuseError | OSError) -> tuple[str, ExitCode]:
    """The line for stderr and the exit code of an error that a user can meet."""
    line, advice, code = _explanation(error)
    # A server that gives advice of its own has the last word.
    return printable(f"{line} ({advice})" if advice and advice not in line else line), code


def _explanation(error: TransferError | MisuseError | OSError) -> tuple[str, str, ExitCode]:
    match error:
        case MisuseError():
            return str(error), "", ExitCode.USAGE
        case ChangedError():
            return str(error), "", ExitCode.CHANGED
        case VerificationError():
            return str(error), "", ExitCode.MISMATCH
        case PoolTimeoutError():
            return str(error), "", ExitCode.LIMIT
        case StreamResetError():
            code, advice = _BY_RESET.get(error.code, (ExitCode.FAILED, ""))
            return error.reason or str(error), advice, code
        case HandshakeError() if _is_about_versions(error):
            return str(error), "install the same version of zcserver at both ends", ExitCode.VERSION
        case HandshakeError():
            return str(error), "is this the right port?", ExitCode.NOT_A_PEER
        case ConnectionLostError() if isinstance(error.__cause__, socket.gaierror):
            return str(error), "check the spelling, or use the address", ExitCode.UNKNOWN_HOST
        case ConnectionLostError() if isinstance(error.__cause__, OSError):
            return _unreachable(error, error.__cause__)
        case ConnectionLostError():
            return str(error), "try again: a transfer goes on from what has come", ExitCode.LOST
        case OSError(errno=int(number)):
            known = _BY_ERRNO if error.strerror == os.strerror(number) else _BY_ERRNO | _BY_ERRNO_OF_OURS
            code, advice = known.get(number, (ExitCode.FAILED, ""))
            where = f"{error.filename}: " if error.filename is not None else ""
            return f"{where}{error.strerror}", advice, code
        case _:
            return str(error), "", ExitCode.FAILED


def _is_about_versions(error: HandshakeError) -> bool:
    cause = error.__cause__
    return isinstance(cause, RemoteProtocolError) and cause.code == ErrorCode.VERSION


def _unreachable(error: ConnectionLostError, cause: OSError) -> tuple[str, str, ExitCode]:
    if cause.errno in (errno.EACCES, errno.EPERM):
        return str(error), "check the permissions of the socket, or the firewall", ExitCode.FORBIDDEN
    if cause.errno in (errno.EMFILE, errno.ENFILE):
        return str(error), _OPEN_FILES, ExitCode.LIMIT
    return str(error), "is `zcserver serve` running there?", ExitCode.UNREACHABLE


def table() -> str:
    """All codes and meanings, a line each, for the help."""
    return "\n".join(f"  {code.value:3}  {code.meaning}" for code in ExitCode)
