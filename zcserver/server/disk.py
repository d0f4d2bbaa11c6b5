"""The calls that change a served directory, behind one class: a test can record, fail or end at any."""

import errno
import os
from typing import Any, Final

import cffi

from zcserver.permissions import Attributes

_RENAME_NOREPLACE: Final = 1  # include/uapi/linux/fs.h
# This kernel, file system, sandbox or C library cannot do it.
_UNSUPPORTED: Final = {errno.EINVAL, errno.ENOSYS, errno.EPERM}

_ffi: Final = cffi.FFI()
_ffi.cdef(
    "int renameat2(int source, const char *old, int target, const char *new, unsigned int flags);"
    "int fstatfs(int fd, long *buffer);"
)
_libc: Final[Any] = _ffi.dlopen(None)
_fstatfs: Final[Any] = _libc.fstatfs


class Disk(Attributes):
    """The real calls; OSError as the system says. Names are relative to the open directories given."""

    def create(self, name: bytes, directory: int) -> int:
        """A new file that was not there, open for writing."""
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, 0o666, dir_fd=directory)

    def write(self, fd: int, pieces: list[memoryview], offset: int) -> int:
        """Write at most 1024 pieces one behind the other; return the bytes written, perhaps fewer."""
        return os.pwritev(fd, pieces, offset)

    def set_mtime(self, fd: int, mtime_ns: int) -> None:
        os.utime(fd, ns=(mtime_ns, mtime_ns))

    def sync(self, fd: int) -> None:
        """File or directory: return when it would survive a power cut."""
        os.fsync(fd)

    def rename(self, source: bytes, source_directory: int, target: bytes, target_directory: int) -> None:
        """Replaces the target in one step."""
        os.rename(source, target, src_dir_fd=source_directory, dst_dir_fd=target_directory)

    def rename_new(self, source: bytes, source_directory: int, target: bytes, target_directory: int) -> None:
        """As ``rename``, but FileExistsError when there is a target.

        Where the file system cannot do that in one step, somebody else's file that appears in between is
        replaced.
        """
        try:
            moved = _libc.renameat2(source_directory, source, target_directory, target, _RENAME_NOREPLACE)
            number = _ffi.errno if moved < 0 else 0
        except AttributeError:  # an old C library
            number = errno.ENOSYS
        if not number:
            return
        if number not in _UNSUPPORTED:
            raise OSError(number, os.strerror(number))
        if status_of(target, target_directory) is not None:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        self.rename(source, source_directory, target, target_directory)

    def make_directory(self, name: bytes, directory: int) -> None:
        os.mkdir(name, dir_fd=directory)

    def remove(self, name: bytes, directory: int) -> None:
        """Anything but a directory."""
        os.unlink(name, dir_fd=directory)

    def remove_directory(self, name: bytes, directory: int) -> None:
        """An empty one."""
        os.rmdir(name, dir_fd=directory)


def status_of(name: bytes, directory: int) -> os.stat_result | None:
    """``lstat`` of an entry, None if there is none."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def file_system_of(fd: int) -> int:
    """The magic number of the file system on which an open file or directory is (statfs(2)), 0 if unknown."""
    buffer = _ffi.new("long[64]")  # struct statfs, of 120 bytes or less, begins with it
    return int(buffer[0]) if _fstatfs(fd, buffer) == 0 else 0
