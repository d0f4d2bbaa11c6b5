"""A directory in pages, sorted, depth first.

However large the tree, only the names of the folders on the way are in memory.
"""

import errno
import os
from collections.abc import Iterator
from itertools import islice
from typing import Final

import msgspec

from zcserver.errors import StreamResetError
from zcserver.file_protocol import PAGE_ENTRIES, Entry, Page, entry_of, escape, mtime_of

from .paths import Root
from .refusals import refusals, words_of
from .roots import Roots

# Gone or replaced since its parent was read: then it is not there. The rest is told in the listing.
_VANISHED: Final = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


class Listing:
    """Call ``next_page`` in a thread, one call at a time, until a page says that there is no more.

    Between two calls it holds no descriptor.
    """

    def __init__(self, roots: Roots, path: str, recursive: bool) -> None:
        self._roots = roots
        self._path = path
        self._recursive = recursive
        self._entries: Iterator[Entry] | None = None
        self._ahead: list[Entry] = []
        self._folder = _Folder()

    def next_page(self) -> Page:
        """Up to 500 entries, sorted. StreamResetError when the path is no directory, or fails later."""
        try:
            if self._entries is None:
                self._entries = self._begin()
            with refusals(self._path):
                entries = self._ahead + list(islice(self._entries, PAGE_ENTRIES + 1 - len(self._ahead)))
        finally:
            self._folder.close()
        self._ahead = entries[PAGE_ENTRIES:]
        return Page(entries[:PAGE_ENTRIES], bool(self._ahead))

    def _begin(self) -> Iterator[Entry]:
        if self._roots.is_top(self._path):
            return self._top()
        root = self._roots.find(self._path)
        return self._walk(root, self._path, self._content(root, self._path))

    def _top(self) -> Iterator[Entry]:
        """The virtual directory of several roots."""
        for root in self._roots.in_order():
            name = escape(root.name)
            try:
                content = self._content(root, f"/{name}") if self._recursive else iter(())
            except StreamResetError as error:
                yield Entry(name, "directory", error=error.reason)
                continue
            yield Entry(name, "directory", mtime_ns=mtime_of(os.fstat(root.fd)))
            try:
                for entry in self._walk(root, f"/{name}", content):
                    yield msgspec.structs.replace(entry, path=f"{name}/{entry.path}")
            except OSError as error:
                yield Entry(name, "directory", error=words_of(error))

    def _content(self, root: Root, path: str) -> Iterator[bytes]:
        """The names in the directory at ``path``; StreamResetError."""
        directory = root.open_directory(path)
        with refusals(path):
            return _read(root, self._folder.keep(root, root.relative(path), directory))

    def _walk(self, root: Root, path: str, content: Iterator[bytes]) -> Iterator[Entry]:
        """All below ``path``, whose names are ``content``: a directory comes right before its content.

        OSError when ``path`` itself cannot be read on; for another directory an entry tells.
        """
        base = root.relative(path)
        waiting = [(b"", content)]
        while waiting:
            folder, names = waiting[-1]
            name = next(names, None)
            if name is None:
                waiting.pop()
                continue
            below = folder + name
            try:
                directory = self._folder.at(root, (base + b"/" + folder).strip(b"/"))
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except OSError as error:
                if error.errno in _VANISHED:
                    continue
                if not folder:
                    raise
                yield Entry(escape(folder[:-1]), "directory", error=words_of(error))
                waiting.pop()
                continue
            entry = entry_of(below, status)
            if entry.type == "directory" and self._recursive:
                try:
                    inner = _read(root, self._folder.at(root, (base + b"/" + below).strip(b"/")))
                except OSError as error:
                    if error.errno not in _VANISHED:
                        yield Entry(escape(below), "directory", error=words_of(error))
                    continue
                waiting.append((below + b"/", inner))
            yield entry


class _Folder:
    """The directory last looked at, open. Others are opened anew: a deep tree holds no descriptors."""

    def __init__(self) -> None:
        self._fd = -1
        self._place: tuple[Root, bytes] | None = None

    def at(self, root: Root, path: bytes) -> int:
        """The one at a relative path; OSError."""
        if self._place != (root, path):
            self.keep(root, path, root.open_listed(path))
        return self._fd

    def keep(self, root: Root, path: bytes, fd: int) -> int:
        self.close()
        self._fd, self._place = fd, (root, path)
        return fd

    def close(self) -> None:
        fd, self._fd, self._place = self._fd, -1, None
        if fd >= 0:
            os.close(fd)


def _read(root: Root, directory: int) -> Iterator[bytes]:
    """The served names in an open directory, sorted."""
    names = sorted(name for name in map(os.fsencode, os.listdir(directory)) if root.serves(name))
    if names:
        os.stat(b".", dir_fd=directory)  # one that may be read but not searched opens, too
    return _each(b"".join(name + b"/" for name in names))


def _each(names: bytes) -> Iterator[bytes]:
    """Names that end with a slash each: in one piece, they take a fourth of the memory of a list."""
    begin = 0
    while begin < len(names):
        end = names.index(b"/", begin)
        yield names[begin:end]
        begin = end + 1
