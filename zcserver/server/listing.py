"""A directory in pages, sorted, depth first: however large the tree, one folder's names are in memory."""

import errno
import os
from collections.abc import Iterator
from itertools import islice
from typing import Final

from zcserver.file_protocol import PAGE_ENTRIES, Entry, Page, entry_of, escape

from .paths import Root, confined

# Gone or replaced since its parent was read: then it is not there. The rest is told in the listing.
_VANISHED: Final = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


class Listing:
    """Call ``next_page`` in a thread, one call at a time, until a page says that there is no more."""

    def __init__(self, root: Root, path: str, recursive: bool) -> None:
        self._root = root
        self._path = path
        self._recursive = recursive
        self._entries: Iterator[Entry] | None = None
        self._ahead: list[Entry] = []

    def next_page(self) -> Page:
        """Up to 500 entries, sorted. StreamResetError (first call) when the path is no directory."""
        if self._entries is None:
            self._entries = self._walk(self._root.open_directory(self._path))
        entries = self._ahead + list(islice(self._entries, PAGE_ENTRIES + 1 - len(self._ahead)))
        self._ahead = entries[PAGE_ENTRIES:]
        return Page(entries[:PAGE_ENTRIES], bool(self._ahead))

    def _walk(self, top: int) -> Iterator[Entry]:
        """All entries: a directory comes right before its content."""
        below = _names(top)
        # Folders are opened again from the root, so that a deep tree holds no descriptors.
        base = confined(self._path) + b"/"
        waiting = [(b"", name, status) for name, status in reversed(below)]
        while waiting:
            parent, name, status = waiting.pop()
            path = parent + name
            entry = entry_of(path, status)
            if entry.type != "directory" or not self._recursive:
                yield entry
                continue
            try:
                below = _names(self._root.open_listed(base + path))
            except OSError as error:
                if error.errno not in _VANISHED:
                    yield Entry(escape(path), "directory", error=os.strerror(error.errno or errno.EIO))
                continue
            yield entry
            waiting += [(path + b"/", inner, found) for inner, found in reversed(below)]


def _names(directory: int) -> list[tuple[bytes, os.stat_result]]:
    """The directory's entries in the order of their bytes; closes the descriptor."""
    found = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                try:
                    found.append((os.fsencode(entry.name), entry.stat(follow_symlinks=False)))
                except FileNotFoundError:
                    continue
    finally:
        os.close(directory)
    found.sort(key=lambda pair: pair[0])
    return found
