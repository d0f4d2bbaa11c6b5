"""Opening what a peer names beneath one directory, and nothing else.

The kernel itself keeps the way inside (``openat2`` with RESOLVE_BENEATH): symbolic links are followed as
long as they stay within. Where a sandbox or an old kernel refuses that call, the path is walked part by
part and no symbolic link is followed at all.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from types import TracebackType
from typing import Final

from zcserver.errors import StreamResetError
from zcserver.file_protocol import NOT_A_FILE, unescape, validator_of
from zcserver.kernel.calls import DEFAULT, RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, Kernel
from zcserver_protocol.errors import ErrorCode

# O_NONBLOCK: opening a FIFO does not wait for a writer. O_NOCTTY: a terminal does not become ours.
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_STEP: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RESOLVE: Final = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
_CALL_MISSING: Final = {errno.ENOSYS, errno.EPERM}
# EAGAIN: a rename somewhere raced with the ".." of a symbolic link, which the kernel then cannot vouch for.
_RACES: Final = 8
_SHOWN: Final = 200


class OpenFile:
    """An open regular file: ``fd``, and ``size`` (bytes), ``mtime_ns``, ``validator`` from its opening."""

    __slots__ = ("fd", "mtime_ns", "size", "validator")

    def __init__(self, fd: int, status: os.stat_result) -> None:
        self.fd = fd
        self.size = status.st_size
        self.mtime_ns = status.st_mtime_ns
        self.validator = validator_of(status)

    def unchanged(self) -> bool:
        """Whether the file still is what it was when it was opened."""
        return validator_of(os.fstat(self.fd)) == self.validator

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class Root:
    """The served directory, held open: renaming or replacing it later changes nothing.

    Its methods block on the disk: call them in a thread. Raises OSError when ``directory`` cannot be
    opened; close it, or use it as a context manager.
    """

    def __init__(self, directory: str | os.PathLike[str], kernel: Kernel = DEFAULT) -> None:
        self._kernel = kernel
        self._fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> "Root":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open_file(self, path: str) -> OpenFile:
        """The regular file at ``path`` (as it came over the wire); StreamResetError says why not."""
        with _refusals(path):
            # A slash at the end asks for a directory, as it does everywhere else.
            fd = self.open(confined(path) + (b"/." if path.endswith("/") else b""), _READ)
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise _not_a_file(path, status.st_mode)
                return OpenFile(fd, status)
            except BaseException:
                os.close(fd)
                raise

    def open_directory(self, path: str) -> int:
        """A descriptor of the directory at ``path`` (as it came over the wire), for ``os.scandir``."""
        with _refusals(path):
            try:
                return self.open(confined(path), _DIRECTORY)
            except NotADirectoryError:
                raise StreamResetError(ErrorCode.REFUSED, f"{shown(path)} is not a directory") from None

    def open_listed(self, path: bytes) -> int:
        """As :meth:`open_directory`, for a relative path that a listing came by; OSError if it fails."""
        return self.open(path, _DIRECTORY | os.O_NOFOLLOW)

    def open(self, path: bytes, flags: int) -> int:
        """A descriptor for a relative path without ``..``, resolved beneath the root; OSError if it fails."""
        path = path.lstrip(b"/") or b"."
        for _ in range(_RACES):
            try:
                return self._kernel.openat2(self._fd, path, flags, 0, _RESOLVE)
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno in _CALL_MISSING:
                    return self._open_by_parts(path, flags)
                raise
        raise OSError(errno.EAGAIN, "renames race with this path; try again", path)

    def _open_by_parts(self, path: bytes, flags: int) -> int:
        *parents, name = path.split(b"/")
        directory = os.dup(self._fd)
        try:
            for part in parents:
                step = os.open(part, _STEP, dir_fd=directory)
                os.close(directory)
                directory = step
            return os.open(name, flags | os.O_NOFOLLOW, dir_fd=directory)
        finally:
            os.close(directory)


def confined(path: str) -> bytes:
    """A peer's path relative to the root, ``b""`` for the root itself; StreamResetError if it has none.

    The kernel guards the way in any case; this makes the refusals readable.
    """
    raw = unescape(path)
    if b"\0" in raw:
        reason = f"no such file: {shown(path)} holds a zero byte, which no name has"
        raise StreamResetError(ErrorCode.NOT_FOUND, reason)
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise StreamResetError(ErrorCode.FORBIDDEN, f"{shown(path)} holds '..': name the path from the root")
    return b"/".join(parts)


@contextlib.contextmanager
def _refusals(path: str) -> Iterator[None]:
    """Turn what the system says about ``path`` into what the peer is told: its own path, nothing of ours."""
    try:
        yield
    except OSError as error:
        match error.errno:
            case errno.ENOENT | errno.ENOTDIR:
                raise StreamResetError(ErrorCode.NOT_FOUND, f"no such file: {shown(path)}") from error
            case errno.EACCES | errno.EPERM:
                raise StreamResetError(
                    ErrorCode.FORBIDDEN, f"the server may not read {shown(path)}"
                ) from error
            case errno.EXDEV | errno.ELOOP:
                reason = (
                    f"{shown(path)} is a symbolic link that is not followed: it leads out, or in a circle"
                )
                raise StreamResetError(ErrorCode.FORBIDDEN, reason) from error
            case errno.ENXIO | errno.ENODEV:
                raise StreamResetError(
                    NOT_A_FILE, f"{shown(path)} is a socket or device, not a file"
                ) from error
            case errno.ENAMETOOLONG:
                raise StreamResetError(ErrorCode.NOT_FOUND, f"the path is too long: {shown(path)}") from error
            case _:
                words = f"{shown(path)} cannot be read: {error.strerror}"
                raise StreamResetError(ErrorCode.REFUSED, words) from error


def _not_a_file(path: str, mode: int) -> StreamResetError:
    if stat.S_ISDIR(mode):
        return StreamResetError(NOT_A_FILE, f"{shown(path)} is a directory: fetch it with -r")
    kind = "FIFO" if stat.S_ISFIFO(mode) else "device"
    return StreamResetError(NOT_A_FILE, f"{shown(path)} is a {kind}, not a file")


def shown(path: str) -> str:
    """A peer's path for logs and messages: printable, and not longer than need be."""
    text = "".join(character if character.isprintable() else "?" for character in path[: _SHOWN + 1])
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
