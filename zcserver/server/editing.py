"""MKDIR, RENAME and REMOVE beneath a root. All block on the disk; StreamResetError is for the peer."""

import errno
import os
import stat
from typing import Final

from zcserver.errors import StreamResetError
from zcserver.file_protocol import EXISTS, escape
from zcserver_protocol.errors import ErrorCode

from .disk import Disk, status_of
from .paths import DIRECTORY, Root
from .refusals import missing, not_a_directory, not_a_file, shown
from .staging import Staging

_INTO_ITSELF: Final = "cannot be put inside itself"


def make_directory(root: Root, disk: Disk, path: str, parents: bool, mtime_ns: int | None) -> bool:
    """Whether it was made: a directory that is there already is no error. ``parents``: those, too."""
    parts = root.relative(path).split(b"/")
    base = f"/{escape(root.name)}" if root.name else ""
    first = 1 if parents else len(parts)
    made = False
    if parts != [b""]:
        for count in range(first, len(parts) + 1):
            made = _make_one(root, disk, f"{base}/{escape(b'/'.join(parts[:count]))}")
    if mtime_ns is not None:
        fd = root.open_directory(path)
        try:
            disk.set_mtime(fd, mtime_ns)
        finally:
            os.close(fd)
    return made


def _make_one(root: Root, disk: Disk, path: str) -> bool:
    with root.parent_of(path) as (directory, name):
        try:
            disk.make_directory(name, directory)
        except FileExistsError:
            os.close(root.open_directory(path))  # refuses what is no directory
            return False
        disk.sync(directory)
        return True


def rename(root: Root, staging: Staging, path: str, to: str, replace: bool) -> None:
    """Give what is at ``path`` the name ``to``; ``replace``: also when something has it."""
    disk = staging.disk
    with root.parent_of(path) as (source, name), root.parent_of(to) as (target, new):
        with staging.lock:
            moved = status_of(name, source)
            if moved is None:
                raise missing(path)
            present = status_of(new, target)
            if present is not None:
                _admit_replacement(moved, present, to, replace)
            if present is not None and _are_two_links(moved, present, (source, name), (target, new)):
                disk.remove(name, source)  # rename(2) leaves both then, and says that all went well
            else:
                try:
                    (disk.rename if replace else disk.rename_new)(name, source, new, target)
                except OSError as error:
                    raise _not_renamed(error, path, to) from error
        disk.sync(target)
        if not os.path.samestat(os.fstat(source), os.fstat(target)):
            disk.sync(source)


def _not_renamed(error: OSError, path: str, to: str) -> Exception:
    if error.errno == errno.EINVAL:
        return StreamResetError(ErrorCode.REFUSED, f"{shown(path)} {_INTO_ITSELF}")
    if error.errno == errno.EXDEV:
        words = f"{shown(to)} is on another file system than {shown(path)}: copy it instead"
        return StreamResetError(ErrorCode.REFUSED, words)
    return error


def _admit_replacement(moved: os.stat_result, present: os.stat_result, to: str, replace: bool) -> None:
    if not replace:
        raise StreamResetError(EXISTS, f"{shown(to)} exists already")
    if stat.S_ISDIR(moved.st_mode) and not stat.S_ISDIR(present.st_mode):
        raise not_a_directory(to)
    if stat.S_ISDIR(present.st_mode) and not stat.S_ISDIR(moved.st_mode):
        raise not_a_file(to, present.st_mode)


def _are_two_links(
    moved: os.stat_result, present: os.stat_result, one: tuple[int, bytes], other: tuple[int, bytes]
) -> bool:
    """Whether two entries, (directory, name) each, are hard links of one file, and not one and the same."""
    if not os.path.samestat(moved, present) or stat.S_ISDIR(moved.st_mode) or moved.st_nlink < 2:
        return False
    if not os.path.samestat(os.fstat(one[0]), os.fstat(other[0])):
        return True
    # Where upper and lower case are the same, a name may be found that no entry has.
    found = os.listdir(one[0])
    return one[1] != other[1] and all(os.fsdecode(name) in found for _, name in (one, other))


def remove(root: Root, disk: Disk, path: str, recursive: bool) -> int:
    """Remove a file, a link itself, or a directory: an empty one, or ``recursive`` with all in it.

    Returns how many entries are gone. Entries that the server keeps to itself stay, and so does the
    directory that holds them.
    """
    with root.parent_of(path) as (directory, name):
        status = status_of(name, directory)
        if status is None:
            raise missing(path)
        removed = 0
        if not stat.S_ISDIR(status.st_mode):
            if path.endswith("/"):
                raise not_a_directory(path)
            disk.remove(name, directory)
        else:
            if recursive:
                top = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                removed = _remove_content(root, disk, top)
            disk.remove_directory(name, directory)
        disk.sync(directory)
        return removed + 1


def _remove_content(root: Root, disk: Disk, top: int) -> int:
    """Empty the open directory ``top`` and close it. No link is followed; depth costs no descriptors.

    From one directory to the next and back, since a path through them all may be longer than one can be.
    """
    directory = top
    removed, folders = _remove_files(root, disk, directory)
    way: list[tuple[bytes, os.stat_result, list[bytes]]] = []  # name, parent, and what is left in that
    try:
        while folders or way:
            if folders:
                way.append((folders.pop(), os.fstat(directory), folders))
                directory = _instead(directory, way[-1][0])
                count, folders = _remove_files(root, disk, directory)
                removed += count
                continue
            name, parent, folders = way.pop()
            directory = _instead(directory, b"..")
            if not os.path.samestat(os.fstat(directory), parent):
                raise OSError(errno.EAGAIN, "a directory in it was moved meanwhile; try again")
            disk.remove_directory(name, directory)
            removed += 1
    finally:
        os.close(directory)
    return removed


def _instead(directory: int, name: bytes) -> int:
    """Open the directory of that name in an open one, and close that; OSError leaves it open."""
    fd = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
    os.close(directory)
    return fd


def _remove_files(root: Root, disk: Disk, directory: int) -> tuple[int, list[bytes]]:
    """How many files were removed, and the names of the directories that are left."""
    folders, files = _content(root, directory)
    for name in files:
        disk.remove(name, directory)
    return len(files), folders


def _content(root: Root, directory: int) -> tuple[list[bytes], list[bytes]]:
    folders: list[bytes] = []
    files: list[bytes] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if root.serves(name):
                (folders if entry.is_dir(follow_symlinks=False) else files).append(name)
    return folders, files
