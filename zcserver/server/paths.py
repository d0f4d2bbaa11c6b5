"""Opening what a peer names beneath one directory, and nothing else.

The kernel itself keeps the way inside (``openat2`` with RESOLVE_BENEATH): symbolic links are followed as
long as they stay within, or not at all if that is the policy. Where a sandbox or an old kernel refuses that
call, the path is walked part by part and no symbolic link is followed.

What changes a directory opens the parent in the same way and names only the last part, relative to it.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Literal

from zcserver.errors import MisuseError, StreamResetError
from zcserver.file_protocol import NOT_A_FILE, STAGING, hides_its_size, mtime_of, unescape, validator_of
from zcserver.kernel.beneath import BENEATH, open_beneath
from zcserver.kernel.calls import (
    DEFAULT,
    RESOLVE_CACHED,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    Kernel,
)
from zcserver.sending.files import close_elsewhere
from zcserver_protocol.errors import ErrorCode

from .disk import file_system_of
from .refusals import missing, not_a_directory, not_a_file, refusals, shown

# O_NONBLOCK: opening a FIFO does not wait for a writer. O_NOCTTY: a terminal does not become ours.
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PATH: Final = os.O_PATH | os.O_CLOEXEC
_STAGING: Final = os.fsencode(STAGING)
_OWN_NAME: Final = b"../" + _STAGING  # seen from an open directory: itself, if that is its name

# File systems that have what they open and stat in memory once the name is cached (statfs(2), Linux magic.h):
# ext2 to ext4, XFS, Btrfs, F2FS, tmpfs, overlayfs. Others, on a network above all, may ask somebody.
_LOCAL: Final = {0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0x01021994, 0x794C7630}

LinkPolicy = Literal["follow", "refuse"]


class NotCachedError(Exception):
    """The answer may have to wait for the disk: ask again in a thread."""


class OpenFile:
    """An open regular file: ``fd``, and ``size`` (bytes), ``mtime_ns``, ``validator`` from its opening."""

    __slots__ = ("_relative", "_root", "fd", "mtime_ns", "size", "validator")

    def __init__(self, fd: int, status: os.stat_result, root: "Root", relative: bytes) -> None:
        self.fd = fd
        self.size = status.st_size
        self.mtime_ns = mtime_of(status)
        self.validator = validator_of(status)
        self._root = root
        self._relative = relative

    def read(self, offset: int, nbytes: int, cached: bool = False) -> bytes | bytearray:
        """So many bytes, fewer only at the end; OSError. ``cached``: NotCachedError if the disk is needed."""
        if not cached:
            return os.pread(self.fd, nbytes, offset)
        data = bytearray(nbytes)
        try:
            count = os.preadv(self.fd, (data,), offset, os.RWF_NOWAIT)
        except OSError:
            raise NotCachedError from None
        if count < nbytes:
            raise NotCachedError
        return data

    def rewritten(self) -> bool:
        """Whether somebody has written to it since it was opened, or made it shorter."""
        return validator_of(os.fstat(self.fd)) != self.validator

    def unchanged(self, cached: bool = False) -> bool:
        """Whether its path still names it, and it is what it was when it was opened. It may be closed by now.

        ``cached``: NotCachedError if the disk is needed to tell.
        """
        try:
            return validator_of(self._root.stat(self._relative, cached)) == self.validator
        except OSError:
            return False

    def close(self) -> None:
        """Never waits for the disk."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            (os.close if self._root.local else close_elsewhere)(fd)


class Root:
    """A served directory, held open: renaming or replacing it later changes nothing.

    ``name`` is its name in the virtual directory of a server of several roots, empty for the only one.
    ``hidden`` serves names that begin with a dot; ``links`` tells what becomes of symbolic links that stay
    beneath the directory (those that leave it are never followed).

    ``local`` tells whether its file system has in memory what it has opened.

    Its methods block on the disk: call them in a thread. With ``cached`` some never do, and raise
    NotCachedError where they would have to or nobody can tell. Raises OSError when ``directory`` cannot be
    opened, MisuseError for a name that no directory entry can have; close it, or use it as a context
    manager.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        kernel: Kernel = DEFAULT,
        *,
        name: str = "",
        hidden: bool = True,
        links: LinkPolicy = "follow",
    ) -> None:
        self.directory = os.fspath(directory)
        self.name = os.fsencode(name)
        if b"/" in self.name or b"\0" in self.name or self.name in (b".", b"..", _STAGING):
            words = f"it must be one part of a path, and {STAGING} is the server's own"
            raise MisuseError(f"{name!r} cannot be the name of a root: {words}")
        self.hidden = hidden
        self._kernel = kernel
        self._resolve = BENEATH | (RESOLVE_NO_SYMLINKS if links == "refuse" else 0)
        self.fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.local = file_system_of(self.fd) in _LOCAL

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> "Root":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- by a peer's path -----------------------------------------------------------------------------

    def relative(self, path: str) -> bytes:
        """A peer's path from this directory on, ``b""`` for itself; StreamResetError if it is not served."""
        parts = components(path)
        if self.name:
            if parts[:1] != [self.name]:
                raise missing(path)
            del parts[0]
        if _STAGING in parts:  # at any depth: another root may lie inside this one
            raise _own(path)
        if not self.hidden and any(part.startswith(b".") for part in parts):
            reason = f"{shown(path)}: this server keeps names that begin with a dot to itself"
            raise StreamResetError(ErrorCode.FORBIDDEN, reason)
        return b"/".join(parts)

    def open_file(self, path: str, cached: bool = False) -> OpenFile:
        """The regular file at ``path`` (as it came over the wire); StreamResetError says why not."""
        relative = self.relative(path)
        with refusals(path):
            # A slash at the end asks for a directory, as it does everywhere else.
            fd = self.open(relative + (b"/." if path.endswith("/") else b""), _READ, cached)
            try:
                status = os.fstat(fd)
                if stat.S_ISDIR(status.st_mode):
                    raise StreamResetError(NOT_A_FILE, f"{shown(path)} is a directory: fetch it with -r")
                if not stat.S_ISREG(status.st_mode):
                    raise not_a_file(path, status.st_mode)
                # (File systems that have what is cached in memory, ``_LOCAL``, know their sizes.)
                if not cached and not status.st_size and hides_its_size(fd):
                    words = "has content but says that its size is 0 (as in /proc): it cannot be sent"
                    raise StreamResetError(NOT_A_FILE, f"{shown(path)} {words}")
                return OpenFile(fd, status, self, relative)
            except BaseException:
                os.close(fd)
                raise

    def open_directory(self, path: str) -> int:
        """A descriptor of the directory at ``path`` (as it came over the wire), for ``os.scandir``."""
        relative = self.relative(path)
        with refusals(path):
            try:
                fd = self.open(relative, DIRECTORY)
            except NotADirectoryError:
                raise not_a_directory(path) from None
            return self._not_staging(fd, path)

    @contextlib.contextmanager
    def parent_of(self, path: str) -> Iterator[tuple[int, bytes]]:
        """The open directory in which ``path`` is or will be, and the last part: for calls with ``dir_fd``.

        OSErrors of the body become StreamResetErrors, too.
        """
        relative = self.relative(path)
        if not relative:
            raise StreamResetError(
                ErrorCode.FORBIDDEN, f"{shown(path or '/')} is the served directory itself"
            )
        parent, _, name = relative.rpartition(b"/")
        with refusals(path, "change"):
            try:
                fd = self._not_staging(self.open(parent, DIRECTORY), path)
            except NotADirectoryError:
                raise not_a_directory(path.rstrip("/").rpartition("/")[0]) from None
            try:
                yield fd, name
            finally:
                os.close(fd)

    def _not_staging(self, fd: int, path: str) -> int:
        """``fd``, unless a symbolic link has led to a directory of unfinished uploads."""
        try:
            staging = os.stat(_OWN_NAME, dir_fd=fd, follow_symlinks=False)
            if os.path.samestat(staging, os.fstat(fd)):
                raise _own(path)
        except (FileNotFoundError, PermissionError):  # (nothing is reached in what cannot be searched)
            pass
        except BaseException:
            os.close(fd)
            raise
        return fd

    # -- by a relative path ---------------------------------------------------------------------------

    def serves(self, name: bytes) -> bool:
        """Whether an entry of that name, in whatever directory, is there for the peer."""
        return not name.startswith(b".") or (self.hidden and name != _STAGING)

    def stat(self, path: bytes, cached: bool = False) -> os.stat_result:
        """What is at a relative path, links followed as the policy says; OSError if nothing is."""
        fd = self.open(path, _PATH, cached)
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        if stat.S_ISLNK(status.st_mode):  # (only by the walk in parts; openat2 refuses by itself)
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        return status

    def open_listed(self, path: bytes) -> int:
        """The directory at a relative path that a listing came by; OSError if it fails."""
        return self.open(path, DIRECTORY | os.O_NOFOLLOW)

    def open(self, path: bytes, flags: int, cached: bool = False) -> int:
        """A descriptor for a relative path without ``..``, resolved beneath the root; OSError if it fails."""
        if cached:
            return self._open_cached(path, flags)
        return open_beneath(self._kernel, self.fd, path, flags, self._resolve)

    def _open_cached(self, path: bytes, flags: int) -> int:
        if not self.local:
            raise NotCachedError
        resolve = self._resolve | RESOLVE_NO_XDEV | RESOLVE_CACHED  # the latter since Linux 5.12
        try:
            return self._kernel.openat2(self.fd, path or b".", flags, 0, resolve)
        except OSError:  # of whatever kind: a thread finds out
            raise NotCachedError from None


def _own(path: str) -> StreamResetError:
    return StreamResetError(ErrorCode.FORBIDDEN, f"{shown(path)} is the server's own")


def components(path: str) -> list[bytes]:
    """The parts of a peer's path; StreamResetError if it holds ``..`` or what no name can hold.

    The kernel guards the way in any case; this makes the refusals readable.
    """
    raw = unescape(path)
    if b"\0" in raw:
        reason = f"no such file: {shown(path)} holds a zero byte, which no name has"
        raise StreamResetError(ErrorCode.NOT_FOUND, reason)
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise StreamResetError(ErrorCode.FORBIDDEN, f"{shown(path)} holds '..': name the path from the root")
    return parts
