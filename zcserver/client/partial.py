"""A download on its way: under a temporary name beside its target, which it replaces when it is whole.

``.NAME.zcpart`` holds the bytes and is only ever appended to, so that its length says how many there are,
whenever the process is killed. (That is also why its space is not allocated beforehand.) ``.NAME.zcfrom``
says which state of which file they are the beginning of; it is written before the first byte. Without it,
or if it makes no sense, the bytes are worth nothing and the next download overwrites them.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from zcserver.file_protocol import ALGORITHM
from zcserver.permissions import Permissions, keep_permissions, permissions_of

from .hashing import hash_file

_OPEN: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NEW: Final = _OPEN | os.O_CREAT | os.O_EXCL
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_RECORD_MOST: Final = 64 << 10  # bytes
_NAME_BYTES: Final = 200  # of the target's name in the temporary ones; 255 is the limit for the whole
_IOVECS_AT_MOST: Final = 1024
_NO_LOCKS: Final = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
_CREATE: Final = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
Folder = Callable[[], contextlib.AbstractContextManager[int | None]]
DATA: Final = ".zcpart"
RECORD: Final = ".zcfrom"


class Origin(msgspec.Struct, frozen=True):
    """Which state of which file on the server the bytes of a partial download come from.

    ``path`` is the one by which it was begun: they may be gone on with by another one of the same file.
    """

    path: str
    validator: str
    size: int


@dataclass(frozen=True, slots=True)
class Beginning:
    """``nbytes`` of ``origin`` are here already."""

    origin: Origin
    nbytes: int


class PartialFile:
    """Call ``find``, then ``write`` with pieces in order, then ``commit``; ``keep`` or ``discard`` instead.

    All methods block on the disk: call them in a thread, one at a time. They raise OSError with the
    target's name. With ``hashing``, ``digest`` (hexadecimal) tells what the file holds. ``folder`` opens the
    target's directory, for each of the calls anew: nothing is then reached by another way, or through a link.
    """

    def __init__(self, target: Path, hashing: bool = False, folder: Folder | None = None) -> None:
        self.target = target
        self._within = folder is not None
        self._folder: Folder = folder or contextlib.nullcontext
        self.written = 0
        self._hasher: Any = hashlib.new(ALGORITHM) if hashing else None
        self._fd = -1
        self._recorded = False

    @property
    def digest(self) -> str:
        return str(self._hasher.hexdigest()) if self._hasher is not None else ""

    def find(self) -> Beginning | None:
        """What an earlier try left. Refuses what a rename would destroy: directory, device, FIFO."""
        self.target = self.target.absolute()
        self._replaced: Permissions | None = None
        with self._naming_target(), contextlib.suppress(FileNotFoundError), self._folder() as folder:
            name = self._called(self.target)
            status = os.stat(name, dir_fd=folder, follow_symlinks=not self._within)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(status.st_mode):
                words = "exists and is no regular file: choose another name, or - for standard output"
                raise FileExistsError(errno.EEXIST, words)
            self._replaced = permissions_of(
                status, name if folder is None else f"/proc/self/fd/{folder}/{name}"
            )
        if not self._within and self.target.is_symlink():  # so that it stays, and what it names is replaced
            self.target = Path(os.path.realpath(self.target))
        self._name = self._called(self.target)
        self._data, self._record = map(self._called, temporaries_of(self.target))
        missing = contextlib.suppress(FileNotFoundError, NotADirectoryError)
        with self._naming_target(), missing, self._folder() as folder:
            origin = self._read_record(folder)
            status = os.lstat(self._data, dir_fd=folder)
            if origin is not None and _is_ours(status) and 0 < status.st_size <= origin.size:
                return Beginning(origin, status.st_size)
        return None

    def _called(self, path: Path) -> str:
        """What a file beside the target is called, for calls with ``dir_fd``."""
        return path.name if self._within else str(path)

    def _read_record(self, folder: int | None) -> Origin | None:
        """What the record says; None unless it is a small regular file of this user's that makes sense."""
        try:
            fd = os.open(self._record, _READ, dir_fd=folder)
        except OSError:
            return None
        try:
            if _is_ours(os.fstat(fd)):
                return msgspec.json.decode(os.read(fd, _RECORD_MOST), type=Origin)
        except (OSError, msgspec.DecodeError):
            pass
        finally:
            os.close(fd)
        return None

    def open(self, origin: Origin | None, offset: int = 0) -> None:
        """Begin to write at ``offset``. ``origin`` None: not worth resuming, so nothing is recorded."""
        with self._naming_target(), self._folder() as folder:
            self._fd, size = self._opened(folder)
            if offset:
                if not _same_state(self._read_record(folder), origin) or size < offset:
                    self._close()  # what is there now is not ours to remove
                    raise OSError(errno.ESTALE, "another download has touched it: fetch it again")
                self._recorded, self.written = True, offset
                os.ftruncate(self._fd, offset)
                if self._hasher is not None:
                    hash_file(self._hasher, self._fd, offset)
            else:
                # In this order: bytes of one file must never stand beside the record of another.
                if size:
                    os.ftruncate(self._fd, 0)
                _remove(self._record, folder)
                if origin is not None:
                    fd = os.open(self._record, _CREATE, 0o666, dir_fd=folder)
                    with open(fd, "wb") as file:
                        file.write(msgspec.json.encode(origin))
                self._recorded, self.written = origin is not None, 0

    def _opened(self, folder: int | None) -> tuple[int, int]:
        """The data file and its size, held exclusively: two downloads to one target must not mix."""
        name = os.path.basename(self._data)
        # What it replaces may be closed to anybody; the next try must be able to write to it.
        allowed = 0o666 if self._replaced is None else 0o600
        while True:
            try:
                fd, made = _opened_or_made(self._data, allowed, folder)
            except (FileNotFoundError, NotADirectoryError):  # the folder's
                raise
            except OSError as error:
                raise OSError(error.errno, f"cannot open {name}: {error.strerror}") from None
            try:
                self._lock(fd)
                status = os.fstat(fd)
                # A new one may seem to be another's where root's files are given to somebody else (NFS). One
                # that was there is no better for being empty: its owner could still write to it.
                if not (made or _is_ours(status)) or status.st_nlink > 1:
                    raise FileExistsError(errno.EEXIST, f"{name} is in the way: remove it")
                # The one who held the lock may have given the file its final name meanwhile.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(status, os.lstat(self._data, dir_fd=folder)):
                        if status.st_mode & 0o666 & ~allowed:  # left by a try that had nothing to replace
                            os.fchmod(fd, status.st_mode & allowed)
                        return fd, status.st_size
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _lock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(errno.EBUSY, "another download to this name is running") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise

    def write(self, pieces: list[memoryview]) -> None:
        """Append the pieces and empty the list, so that their memory can go back."""
        left = pieces
        try:
            if self._hasher is not None:
                for piece in pieces:
                    self._hasher.update(piece)
            with self._naming_target():
                while left:
                    count = os.pwritev(self._fd, left[:_IOVECS_AT_MOST], self.written)
                    self.written += count
                    left = _after(left, count)
        finally:
            pieces.clear()

    def commit(self, mtime_ns: int) -> None:
        """The content is whole and right: give it its name, replacing what had it but for the permissions."""
        with self._naming_target(), self._folder() as folder:
            if self._replaced is not None:
                keep_permissions(self._fd, self._replaced)
            os.utime(self._fd, ns=(mtime_ns, mtime_ns))
            os.replace(self._data, self._name, src_dir_fd=folder, dst_dir_fd=folder)
            self._close()
            if self._recorded:
                _remove(self._record, folder)

    def store(self, pieces: list[memoryview], mtime_ns: int) -> None:
        """The whole of a small file at once."""
        self.open(None)
        self.write(pieces)
        self.commit(mtime_ns)

    def keep(self) -> None:
        """Leave what is there for the next try, if it is worth anything. Harmless after ``commit``."""
        if self._fd >= 0 and not (self._recorded and self.written):
            self.discard()
        self._close()

    def discard(self) -> None:
        """Remove what is there. Harmless after ``commit``."""
        if self._fd >= 0:
            with contextlib.suppress(FileNotFoundError), self._folder() as folder:
                _remove(self._data, folder)
                _remove(self._record, folder)
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @contextlib.contextmanager
    def _naming_target(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.target)) from None


def _opened_or_made(path: str, mode: int, folder: int | None) -> tuple[int, bool]:
    """An open file, and whether it is a new one, of these permissions."""
    while True:
        with contextlib.suppress(FileExistsError):
            return os.open(path, _NEW, mode, dir_fd=folder), True
        with contextlib.suppress(FileNotFoundError):  # it has its final name by now
            return os.open(path, _OPEN, dir_fd=folder), False


def _same_state(one: Origin | None, other: Origin | None) -> bool:
    """Whether both are of one state of one file, which may have several paths (links, ``%XX``, a rename)."""
    if one is None or other is None:
        return False
    return (one.validator, one.size) == (other.validator, other.size)


def _is_ours(status: os.stat_result) -> bool:
    """Whether it is a regular file of this user's: what others have put there decides nothing."""
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


def is_temporary(name: str) -> bool:
    """Whether a file of this name is a partial download, or the record of one: no content of anybody's."""
    return name.startswith(".") and name.endswith((DATA, RECORD))


def temporaries_of(target: Path) -> tuple[Path, Path]:
    """Where the bytes of a download to ``target`` are until it is complete, and their record."""
    short = _shortened(target.name)
    return target.with_name(f".{short}{DATA}"), target.with_name(f".{short}{RECORD}")


def _shortened(name: str) -> str:
    """``name``, or where the suffixes would make it too long, its beginning and a digest."""
    raw = os.fsencode(name)
    if len(raw) <= _NAME_BYTES:
        return name
    return os.fsdecode(raw[:_NAME_BYTES]) + "." + hashlib.sha256(raw).hexdigest()[:16]


def _remove(path: str, folder: int | None) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path, dir_fd=folder)


def _after(pieces: list[memoryview], count: int) -> list[memoryview]:
    """What is left of the pieces after a write of ``count`` bytes."""
    for index, piece in enumerate(pieces):
        if count < len(piece):
            return [piece[count:], *pieces[index + 1 :]]
        count -= len(piece)
    return []
