"""The local directory of a tree job, below which nothing is reached through a symbolic link.

Others may put links there at any time, so that looking first would not do: the kernel refuses them on the way
to a folder (``openat2``), and all that is done in it is done relative to the folder that was opened.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zcserver.kernel.beneath import BENEATH, open_beneath
from zcserver.kernel.calls import DEFAULT, RESOLVE_NO_SYMLINKS, Kernel

_FOLDER: Final = os.O_PATH | os.O_DIRECTORY
_READ_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY
_LINKED: Final = "is or lies behind a symbolic link, which a tree does not go through"


class Place:
    """Call ``open_top`` or ``exists`` first, ``close`` last. All block on the disk; OSErrors name the path.

    ``top`` itself may be a link, since the user named it. It is opened once, and is that directory from then
    on, whatever its name comes to mean. Other paths are relative to it.
    """

    def __init__(self, top: Path, kernel: Kernel = DEFAULT) -> None:
        self.top = top
        self._kernel = kernel
        self._fd = -1

    def open_top(self) -> os.stat_result:
        """Open the directory, unless it is open."""
        if self._fd < 0:
            self._fd = os.open(self.top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return os.fstat(self._fd)

    def exists(self) -> bool:
        """Whether the directory is there; it is open then."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self.open_top()
        return self._fd >= 0

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def open(self, path: str, flags: int) -> int:
        """A descriptor of what is at ``path``."""
        with self._naming(path):
            return self._open(path, flags)

    @contextlib.contextmanager
    def folder_of(self, path: str) -> Iterator[int]:
        """The open folder in which ``path`` is or will be (of "." the top), for calls with ``dir_fd``."""
        with self._naming(path):
            folder = self._open(os.path.dirname(path), _FOLDER)
            try:
                yield folder
            finally:
                os.close(folder)

    @contextlib.contextmanager
    def scan(self, path: str) -> Iterator[Iterator["os.DirEntry[str]"]]:
        """What is in the folder ``path``."""
        with self._naming(path):
            folder = self._open(path, _READ_FOLDER)
            try:
                with os.scandir(folder) as entries:
                    yield entries
            finally:
                os.close(folder)

    def status(self, path: str) -> os.stat_result | None:
        """What is at ``path``, a symbolic link being one; None when there is nothing."""
        try:
            with self.folder_of(path) as folder:
                return os.stat(os.path.basename(path), dir_fd=folder, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _open(self, path: str, flags: int) -> int:
        rules = BENEATH | RESOLVE_NO_SYMLINKS
        return open_beneath(self._kernel, self._fd, os.fsencode(path), flags | os.O_CLOEXEC, rules)

    @contextlib.contextmanager
    def _naming(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            words = _LINKED if error.errno == errno.ELOOP else error.strerror
            raise OSError(error.errno, words, str(self.top / path)) from None
