"""Opening what is below a directory, and nothing else, whatever others do to the names on the way."""

import errno
import os
from typing import Final

from .calls import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, Kernel

BENEATH: Final = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
_STEP: Final = os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW
_CALL_MISSING: Final = {errno.ENOSYS, errno.EPERM}
# EAGAIN: a rename somewhere raced with the ".." of a symbolic link, which the kernel then cannot vouch for.
_RACES: Final = 8


def open_beneath(kernel: Kernel, directory: int, path: bytes, flags: int, resolve: int) -> int:
    """``openat2``, or where it is missing a walk that follows no links; OSError if either fails."""
    path = path.lstrip(b"/") or b"."
    for _ in range(_RACES):
        try:
            return kernel.openat2(directory, path, flags, 0, resolve)
        except BlockingIOError:
            continue
        except OSError as error:
            if error.errno in _CALL_MISSING:
                return _open_by_parts(directory, path, flags)
            raise
    raise OSError(errno.EAGAIN, "renames race with this path; try again", path)


def _open_by_parts(start: int, path: bytes, flags: int) -> int:
    *parents, name = path.split(b"/")
    directory = os.dup(start)
    try:
        for part in parents:
            step = os.open(part, _STEP, dir_fd=directory)
            os.close(directory)
            directory = step
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=directory)
    finally:
        os.close(directory)
