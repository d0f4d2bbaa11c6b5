"""A region of a file on its way: page cache → pipe first, then a header that promises what the pipe holds.

A header that promised a length before the file was read could not keep its word if the file shrank. What
is in the pipe is certain. Leftovers of files are never discarded (the file may have changed since), so a
region keeps its pipe until it is drained; pipes are capped, and past the cap the bytes are read and copied.
"""

import os
import stat
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from zcserver.errors import MisuseError
from zcserver.kernel.calls import Kernel
from zcserver.kernel.pipe import Pipe, PipeShare

_COPIED_PIECE: Final = 256 * 1024
_PROBE_EVERY: Final = 256 * 1024  # bytes; a probe costs 1 µs
Offload = Callable[[Callable[[], int], Callable[[int, BaseException | None], None]], None]


class FileRegion:
    """``nbytes`` bytes of the open file ``fd`` from ``offset`` on, read piece by piece.

    Call ``prepare(count)`` and, when it says so (or calls back), take ``ready`` bytes: they are in ``pipe``
    or, past the pipes' cap, in ``chunk``. ``consumed()`` makes room for the next piece;
    whoever sends the frame clears ``busy`` after that. The descriptor is
    duplicated here, so the caller may close its own at once.
    """

    def __init__(
        self, fd: int, offset: int, nbytes: int, kernel: Kernel, pipes: PipeShare, splices: bool
    ) -> None:
        self._fd = os.dup(fd)
        self._offset = offset
        self.nbytes = nbytes
        self.pipe: Pipe | None = None
        self.chunk: bytes | None = None
        self.ready = 0
        self.busy = False  # a thread fills the pipe, or a frame has taken it and is not in the socket yet
        self.error: BaseException | None = None
        self._kernel = kernel
        self._pipes = pipes
        self._splices = splices
        self._closed = False
        self._reading = False
        self._closes_elsewhere = False  # the file system cannot tell what waits: closing may

    def prepare(self, count: int, offload: Offload, resume: Callable[[], None]) -> bool:
        """Read the next piece of at most ``count`` bytes; True when it (or an ``error``) is there now.

        False: a thread reads it, since it is not in the page cache (or the file system cannot tell), and
        ``resume`` will be called. A file that has become shorter shows as an ``error``. Not to be called
        while ``busy``.
        """
        if self.pipe is None and self._splices:
            self.pipe = self._pipes.lease()
        if self.pipe is None:
            count = min(count, _COPIED_PIECE)
        try:
            if self._cached(count):
                self._filled(self._read(count, waits=False), None)
                return True
        except OSError as error:
            self._filled(0, error)
            return True

        def done(filled: int, error: BaseException | None) -> None:
            self.busy = self._reading = False
            self._filled(filled, error)
            if self._closed:
                self._release()
            else:
                resume()

        self.busy = True
        self._reading = True
        offload(partial(self._read, count, waits=True), done)
        return False

    def _cached(self, count: int) -> bool:
        """Whether the next ``count`` bytes are in the page cache, judged by some of them.

        By the last one, too: while the kernel reads ahead, only the head of what it reads is there, and
        waiting for the tail would stop the event loop.
        """
        cached, fd, at = self._kernel.page_cached, self._fd, self._offset
        last = at + count - 1
        while at < last:
            if not (answer := cached(fd, at)):
                self._closes_elsewhere = answer is None
                return False
            at += _PROBE_EVERY
        return bool(cached(fd, last))

    def _read(self, count: int, waits: bool) -> int:
        pipe, fd, offset = self.pipe, self._fd, self._offset
        if pipe is None:
            self.chunk = self._kernel.pread(fd, count, offset)
            return len(self.chunk)
        return (pipe.fill_from_file_blocking if waits else pipe.fill_from_file)(fd, offset, count)

    def _filled(self, count: int, error: BaseException | None) -> None:
        if error is None and count == 0:
            error = OSError(f"the file ended {self.nbytes} bytes early: it was shortened while it was sent")
        self.ready = count
        self.error = error

    def consumed(self) -> None:
        """The piece in ``pipe`` or ``chunk`` belongs to a frame now; account for it."""
        self._offset += self.ready
        self.nbytes -= self.ready
        self.ready = 0
        self.busy = self.chunk is None
        self.chunk = None

    def close(self) -> None:
        """Give pipe and descriptor back (a thread that still reads into them does it when it is done)."""
        self._closed = True
        if not self._reading:
            self._release()

    def _release(self) -> None:
        pipe, self.pipe = self.pipe, None
        if pipe is not None:
            self._pipes.give_back(pipe)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            (close_elsewhere if self._closes_elsewhere else os.close)(fd)

    def __repr__(self) -> str:
        return f"<FileRegion fd={self._fd} offset={self._offset} left={self.nbytes}>"


def close_elsewhere(fd: int) -> None:
    """Close a file whose file system may ask somebody about that (FLUSH of FUSE): not in the event loop."""
    try:
        threading.Thread(target=os.close, args=(fd,), name="zcserver close").start()
    except RuntimeError:  # the user's limit on threads
        os.close(fd)


def file_size(file: Any) -> tuple[int, int]:
    """The descriptor and the size in bytes of an open regular file (an int or anything with ``fileno``)."""
    try:
        fd = file if isinstance(file, int) else file.fileno()
    except (AttributeError, ValueError) as error:  # (ValueError: it is closed, or only memory)
        raise MisuseError(f"cannot send {file!r} as a file ({error}): give an open file") from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise MisuseError(f"{file!r} is no regular file: give an open file, or send what can be read of it")
    return fd, status.st_size
