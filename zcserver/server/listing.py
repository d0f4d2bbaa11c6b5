"""A directory in pages, sorted, depth first: however large the tree, one folder's names are in memory."""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class _Found:
    """An entry on its way into the listing: the path of its folder from the listed one on, and ``lstat``."""

    folder: bytes
    name: bytes
    status: os.stat_result


class Listing:
    """Call ``next_page`` in a thread, one call at a time, until a page says that there is no more."""

    def __init__(self, roots: Roots, path: str, recursive: bool) -> None:
        self._roots = roots
        self._path = path
        self._recursive = recursive
        self._entries: Iterator[Entry] | None = None
        self._ahead: list[Entry] = []

    def next_page(self) -> Page:
        """Up to 500 entries, sorted. StreamResetError (first call) when the path is no directory."""
        if self._entries is None:
            if self._roots.is_top(self._path):
                self._entries = self._top()
            else:
                root = self._roots.find(self._path)
                self._entries = self._walk(root, self._path, _content(root, self._path))
        entries = self._ahead + list(islice(self._entries, PAGE_ENTRIES + 1 - len(self._ahead)))
        self._ahead = entries[PAGE_ENTRIES:]
        return Page(entries[:PAGE_ENTRIES], bool(self._ahead))

    def _top(self) -> Iterator[Entry]:
        """The virtual directory of several roots."""
        for root in self._roots.in_order():
            name = escape(root.name)
            try:
                content = _content(root, f"/{name}") if self._recursive else []
            except StreamResetError as error:
                yield Entry(name, "directory", error=error.reason)
                continue
            yield Entry(name, "directory", mtime_ns=mtime_of(os.fstat(root.fd)))
            for entry in self._walk(root, f"/{name}", content):
                yield msgspec.structs.replace(entry, path=f"{name}/{entry.path}")

    def _walk(self, root: Root, path: str, waiting: list[_Found]) -> Iterator[Entry]:
        """All below ``path``, which has those in ``waiting``: a directory comes right before its content."""
        # Folders are opened again from the root, so that a deep tree holds no descriptors.
        base = root.relative(path)
        while waiting:
            found = waiting.pop()
            below = found.folder + found.name
            entry = entry_of(below, found.status)
            if entry.type != "directory" or not self._recursive:
                yield entry
                continue
            try:
                folder = root.open_listed(base + b"/" + below)
                inner = _read(root, below + b"/", folder)
            except OSError as error:
                if error.errno not in _VANISHED:
                    yield Entry(escape(below), "directory", error=words_of(error))
                continue
            yield entry
            waiting += inner


def _content(root: Root, path: str) -> list[_Found]:
    """What the directory at ``path`` holds; StreamResetError."""
    directory = root.open_directory(path)
    with refusals(path):  # one that may be read but not searched opens, too
        return _read(root, b"", directory)


def _read(root: Root, folder: bytes, directory: int) -> list[_Found]:
    """The served entries of an open directory, the first one last; closes the descriptor."""
    found = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if not root.serves(name):
                    continue
                try:
                    found.append(_Found(folder, name, entry.stat(follow_symlinks=False)))
                except FileNotFoundError:
                    continue
    finally:
        os.close(directory)
    found.sort(key=lambda one: one.name, reverse=True)
    return found
