"""Uploads on their way: under names of their own in ``.zcserver/`` of the root, until they are whole.

Nothing is ever written under its final name. What a killed server leaves behind lies here, and the next
one that starts on the same root throws it away.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
import threading
from dataclasses import dataclass
from typing import Any, Final

from zcserver.errors import StreamResetError
from zcserver.file_protocol import (
    ALGORITHM,
    IO_ERROR,
    MISMATCH,
    NO_SPACE,
    NOT_A_FILE,
    STAGING,
    validator_of,
)
from zcserver.permissions import keep_permissions, permissions_of
from zcserver_protocol.errors import ErrorCode

from .disk import Disk, status_of
from .paths import DIRECTORY, Root
from .refusals import changed, not_a_file, refusals, shown

_NAME: Final = os.fsencode(STAGING)


class Staging:
    """The staging directory of one root, made and emptied. Blocks on the disk.

    ``lock`` is held while a target is looked at and replaced. Raises OSError with its path when the directory
    cannot be made or used, BlockingIOError when another server has it. Close it at the end.
    """

    def __init__(self, root: Root, disk: Disk) -> None:
        self.lock = threading.Lock()
        self.disk = disk
        self._root = root
        try:
            self.fd = _made(root)
        except OSError as error:
            place = os.path.join(root.directory, STAGING)
            raise OSError(error.errno, error.strerror, place) from error

    def create(self, name: bytes) -> int:
        """A new temporary file, open for writing; where somebody has removed the directory, in a new one."""
        try:
            return self.disk.create(name, self.fd)
        except FileNotFoundError:
            self._make_anew()
            return self.disk.create(name, self.fd)

    def _make_anew(self) -> None:
        with self.lock:
            present = status_of(_NAME, self._root.fd)
            if present is not None and os.path.samestat(present, os.fstat(self.fd)):
                return  # another upload was first
            fd = _made(self._root)
            # In the old one's place: uploads that were in it find at their end that they are gone.
            os.dup2(fd, self.fd, inheritable=False)
            os.close(fd)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _made(root: Root) -> int:
    """The staging directory, ours alone and empty; OSError if that fails.

    One that others may enter is replaced, since what is in it must be nobody else's before it has its name.
    """
    try:
        os.mkdir(_NAME, 0o700, dir_fd=root.fd)
    except FileExistsError:
        fd = _emptied(root)
        status = os.fstat(fd)
        if status.st_uid == os.geteuid() and not status.st_mode & 0o077:
            return fd
        os.close(fd)
        os.rmdir(_NAME, dir_fd=root.fd)
        os.mkdir(_NAME, 0o700, dir_fd=root.fd)
    return _emptied(root)


def _emptied(root: Root) -> int:
    """The staging directory that is there, with nothing in it, and locked."""
    fd = os.open(_NAME, DIRECTORY | os.O_NOFOLLOW, dir_fd=root.fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in os.listdir(fd):
            try:
                os.unlink(name, dir_fd=fd)
            except IsADirectoryError:  # not ours, but in the way all the same
                shutil.rmtree(name, dir_fd=fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the peer said about its upload; ``size`` in bytes, None where it said nothing.

    ``validator``: the file to be replaced must have it. ``create``: there must be none. ``digest``: the
    SHA-256 that the content must have, hexadecimal. ``resume``: the client's name for this very content; an
    upload that loses its client is kept under all of these for one that goes on.
    """

    path: str
    size: int | None = None
    mtime_ns: int | None = None
    validator: str | None = None
    create: bool = False
    digest: str | None = None
    resume: str | None = None


class Upload:
    """Call ``begin``, ``write`` with pieces in order, then ``commit``; ``discard`` at any time instead.

    ``written`` counts its bytes so far, ``shortfall`` those that the disk had too few at ``begin``. While it
    is ``unfinished``, one may ``begin`` again and go on behind them. All block on the disk: call them in a
    thread, one at a time; StreamResetError is for the peer.
    """

    def __init__(self, root: Root, staging: Staging, wanted: Wanted) -> None:
        self.written = 0
        self.shortfall = 0
        self.wanted = wanted
        self._root = root
        self._staging = staging
        self._disk = staging.disk
        self._path = wanted.path
        self._hasher: Any = None
        self._name = b""
        self._fd = -1
        self._sound = False  # what is written is known, and hashed

    def begin(self) -> None:
        """Refuse what would be refused at the end, then make the temporary file where there is none yet."""
        if self._path.endswith("/"):
            raise StreamResetError(
                NOT_A_FILE, f"{shown(self._path)}: no file has a name with a slash at the end"
            )
        with self._root.parent_of(self._path) as (directory, name):
            self._admit(status_of(name, directory))
            self._check_directory(directory)
            self._check_space()
            if self._fd >= 0 and not self._is_in_place():
                self.discard()
            if self._fd < 0:
                self._name = secrets.token_hex(16).encode()
                self._fd = self._staging.create(self._name)
                self._hasher = hashlib.new(ALGORITHM) if self.wanted.digest is not None else None
                self.written = 0
                self._sound = True

    @property
    def unfinished(self) -> bool:
        """Something is written, all of it well, and it was neither committed nor discarded."""
        return self._fd >= 0 and self.written > 0 and self._sound

    def _check_directory(self, directory: int) -> None:
        """Refuse a parent directory to which nothing can be renamed."""
        if os.fstat(directory).st_dev != os.fstat(self._staging.fd).st_dev:
            raise self._elsewhere()
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=directory):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def _check_space(self) -> None:
        room = os.fstatvfs(self._staging.fd)
        missing = (self.wanted.size or 0) - self.written
        self.shortfall = max(0, missing - room.f_bavail * room.f_frsize)
        if self.shortfall:
            reason = f"the server's disk has no {missing} bytes left for {shown(self._path)}"
            raise StreamResetError(NO_SPACE, reason)

    def _admit(self, present: os.stat_result | None) -> None:
        """Refuse to put a file where ``present`` is now."""
        wanted = self.wanted
        if present is None:
            if wanted.validator is not None:
                raise changed(self._path, "is not there any more: it was to be replaced")
            return
        if wanted.create:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        if not stat.S_ISREG(present.st_mode):
            raise not_a_file(self._path, present.st_mode)
        if wanted.validator is not None and validator_of(present) != wanted.validator:
            raise changed(self._path, "was changed on the server since: it was not replaced")

    def write(self, pieces: list[memoryview]) -> None:
        """Append the pieces (at most 1024) and empty the list, so that their memory can go back."""
        left = pieces
        self._sound = False
        if self._hasher is not None:
            for piece in pieces:
                self._hasher.update(piece)
        try:
            with refusals(self._path, "write"):
                while left:
                    count = self._disk.write(self._fd, left, self.written)
                    self.written += count
                    left = _after(left, count)
        finally:
            pieces.clear()
        self._sound = True

    def commit(self) -> None:
        """The content is whole: make it survive a power cut, give it its name, make that survive, too."""
        self._check_content()
        disk = self._disk
        self._sound = False  # a second fsync would not tell what the first has told
        with self._root.parent_of(self._path) as (directory, name):
            self._set_attributes(name, directory)
            disk.sync(self._fd)
            with self._staging.lock:
                self._admit(status_of(name, directory))
                if not self._is_in_place():
                    raise self._misplaced()
                rename = disk.rename_new if self.wanted.create else disk.rename
                try:
                    rename(self._name, self._staging.fd, name, directory)
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                    raise self._elsewhere() from error
            self._name = b""
            disk.sync(directory)
        self.discard()

    def _set_attributes(self, name: bytes, directory: int) -> None:
        """What a file of that name has in an open directory."""
        disk = self._disk
        present, parent = status_of(name, directory), os.fstat(directory)
        if present is not None:
            place = f"/proc/self/fd/{directory}/".encode() + name
            keep_permissions(self._fd, permissions_of(present, place), disk)
        # The file was made in another directory, from which it may have another group. That of a directory
        # with S_ISGID goes to what is made in it (inode(7)), if we are allowed to give it.
        elif parent.st_mode & stat.S_ISGID and os.fstat(self._fd).st_gid != parent.st_gid:
            with contextlib.suppress(OSError):
                disk.set_group(self._fd, parent.st_gid)
        if self.wanted.mtime_ns is not None:
            disk.set_mtime(self._fd, self.wanted.mtime_ns)

    def _elsewhere(self) -> StreamResetError:
        words = "is on another file system than the served directory, where uploads cannot be put"
        return StreamResetError(ErrorCode.REFUSED, f"{shown(self._path)} {words}: serve that one by itself")

    def _check_content(self) -> None:
        wanted = self.wanted
        if wanted.size is not None and self.written != wanted.size:
            reason = f"{shown(self._path)}: {self.written} bytes came, {wanted.size} were announced"
            raise StreamResetError(MISMATCH, reason)
        if self._hasher is not None and self._hasher.hexdigest() != wanted.digest:
            reason = (
                f"{shown(self._path)}: the SHA-256 of what arrived is not the announced one: send it again"
            )
            raise StreamResetError(MISMATCH, reason)

    def _is_in_place(self) -> bool:
        """Whether nobody has removed the temporary file, or put another one in its place."""
        staged = status_of(self._name, self._staging.fd)
        return staged is not None and os.path.samestat(staged, os.fstat(self._fd))

    def _misplaced(self) -> StreamResetError:
        reason = f"somebody removed or replaced the unfinished {shown(self._path)} on the server's disk"
        return StreamResetError(IO_ERROR, f"{reason}: send it again")

    def discard(self) -> None:
        """Remove the temporary file, if there is one. Harmless after ``commit``."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        with contextlib.suppress(OSError):  # of a network's disk, which tells what no longer matters
            os.close(fd)
        if self._name:
            with contextlib.suppress(OSError):  # somebody else has done so, or put a directory there
                self._disk.remove(self._name, self._staging.fd)


def _after(pieces: list[memoryview], count: int) -> list[memoryview]:
    """What is left of the pieces after a write of ``count`` bytes."""
    for index, piece in enumerate(pieces):
        if count < len(piece):
            return [piece[count:], *pieces[index + 1 :]]
        count -= len(piece)
    return []
