"""A download on its way: under a temporary name beside its target, which it replaces when it is whole."""

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import Any, Final

from .file_protocol import ALGORITHM

_CREATE: Final = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_NAME_BYTES: Final = 200  # of the target's name in the temporary one; 255 is the limit for the whole
SUFFIX: Final = ".zcpart"


class PartialFile:
    """Call ``write`` with pieces in order, then ``commit``; ``discard`` at any time instead.

    All methods block on the disk: call them in a thread, one at a time. They raise OSError with the file's
    name. With ``hashing``, ``digest`` (hexadecimal) tells what was written.
    """

    def __init__(self, target: Path, hashing: bool) -> None:
        self.target = target
        self.written = 0
        self._hasher: Any = hashlib.new(ALGORITHM) if hashing else None
        self._temporary: Path | None = None
        self._fd = -1

    @property
    def digest(self) -> str:
        return str(self._hasher.hexdigest()) if self._hasher is not None else ""

    def open(self) -> None:
        """Create the temporary file. Refuses what a rename would destroy: directory, device, FIFO."""
        # Through symbolic links, so that a link stays and what it names is replaced.
        self.target = target = Path(os.path.realpath(self.target))
        with contextlib.suppress(FileNotFoundError):
            mode = os.stat(target).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
            if not stat.S_ISREG(mode):
                raise FileExistsError(errno.EEXIST, "exists and is no regular file", str(target))
        start = os.fsdecode(os.fsencode(target.name)[:_NAME_BYTES])
        self._temporary = target.with_name(f".{start}.{secrets.token_hex(4)}{SUFFIX}")
        try:
            self._fd = os.open(self._temporary, _CREATE, 0o666)
        except OSError as error:
            self._temporary = None
            raise OSError(error.errno, error.strerror, str(target)) from None

    def write(self, pieces: list[memoryview]) -> None:
        """Append the pieces (at most 1024) and empty the list, so that their memory can go back."""
        if self._fd < 0:
            self.open()
        left = pieces
        if self._hasher is not None:
            for piece in pieces:
                self._hasher.update(piece)
        try:
            while left:
                count = os.pwritev(self._fd, left, self.written)
                self.written += count
                left = _after(left, count)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.target)) from None
        finally:
            pieces.clear()

    def commit(self, mtime_ns: int) -> None:
        """The content is whole and right: give it its name, replacing what had it."""
        assert self._temporary is not None
        os.utime(self._fd, ns=(mtime_ns, mtime_ns))
        fd, self._fd = self._fd, -1
        os.close(fd)
        try:
            os.replace(self._temporary, self.target)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.target)) from None
        self._temporary = None

    def discard(self) -> None:
        """Remove the temporary file, if there is one. Harmless after ``commit``."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        temporary, self._temporary = self._temporary, None
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _after(pieces: list[memoryview], count: int) -> list[memoryview]:
    """What is left of the pieces after a write of ``count`` bytes."""
    for index, piece in enumerate(pieces):
        if count < len(piece):
            return [piece[count:], *pieces[index + 1 :]]
        count -= len(piece)
    return []
