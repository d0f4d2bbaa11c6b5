"""Pipes that know what they hold, and the pipes one event loop shares.

A pipe reused with bytes left in it gives one connection's data to the next. So the count of queued bytes
is the only state: it is made *unknown* before each call that changes it, and known again only after the
call's result is written down. Whatever comes in between (an error, a cancellation, ``KeyboardInterrupt``)
leaves it unknown, and such a pipe is never used again but replaced.
"""

import functools
import os
from typing import Any, Final

from zcserver.errors import MisuseError
from zcserver.kernel.calls import DEFAULT, PAGE, Kernel

DEFAULT_SIZE: Final = 1 << 20
UNKNOWN: Final = -1
# Past its pipe quota a user gets pipes of 2 slots: each would cost two calls per 8 KiB, more than copying.
# 16 slots is also what splice hands to a socket at a time.
WORTHWHILE_SLOTS: Final = 16
FILE_PIPES: Final = 32


@functools.cache
def _null() -> int:
    """A descriptor of /dev/null for the life of the process: what discards is needed when all else fails."""
    return os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)


class Pipe:
    """One non-blocking pipe and the count of the bytes in it.

    ``size`` and ``slots`` are what the kernel gave (bytes, pages), which is less than asked for when the
    user's pipe quota is used up (``/proc/sys/fs/pipe-user-pages-soft``); see ``worthwhile``. ``queued`` is
    the count of bytes inside, or ``UNKNOWN``. After any ``OSError`` other than ``BlockingIOError`` the pipe
    is not ``usable``: close it and take another. Using it all the same raises :class:`MisuseError`.
    """

    __slots__ = ("_kernel", "_splice", "_vmsplice", "queued", "read_fd", "size", "slots", "write_fd")

    def __init__(self, kernel: Kernel = DEFAULT, size: int = DEFAULT_SIZE) -> None:
        self.read_fd = self.write_fd = -1  # for __del__, should the next line fail
        self.read_fd, self.write_fd = kernel.pipe()
        self._kernel = kernel
        self._vmsplice = kernel.vmsplice
        self._splice = kernel.splice
        self.queued = 0
        try:
            self.size = kernel.get_pipe_size(self.write_fd)
            while size != self.size and not self.resize(size) and size > self.size:
                size //= 2
        except BaseException:
            self.close()
            raise
        self.slots = self.size // PAGE

    @property
    def closed(self) -> bool:
        return self.read_fd < 0

    @property
    def dirty(self) -> bool:
        """Not certainly empty. A closed pipe is not dirty."""
        return self.queued != 0 and self.read_fd >= 0

    @property
    def usable(self) -> bool:
        """Open, and what it holds is known."""
        return self.queued >= 0

    @property
    def worthwhile(self) -> bool:
        """Large enough to beat copying."""
        return self.slots >= WORTHWHILE_SLOTS

    def resize(self, size: int) -> bool:
        """Ask the kernel for ``size`` bytes. False: over its maximum, or over the user's quota for now."""
        try:
            self.size = self._kernel.set_pipe_size(self.write_fd, size)
        except PermissionError:
            return False
        self.slots = self.size // PAGE
        return True

    def fill_from_memory(self, iov: Any, count: int) -> int:
        """Queue references to the memory of ``count`` iovecs; return the bytes taken, often fewer.

        ``BlockingIOError`` when no slot is free. The memory is in flight until the pipe is drained and the
        peer has acknowledged, or until :meth:`discard`.
        """
        queued = self.queued
        if queued < 0:
            raise self._unusable()
        self.queued = UNKNOWN
        try:
            taken = self._vmsplice(self.write_fd, iov, count)
        except (BlockingIOError, InterruptedError):
            self.queued = queued
            raise
        self.queued = queued + taken
        return taken

    def fill_from_file(self, fd: int, offset: int, count: int) -> int:
        """Queue up to ``count`` bytes of a file; return the bytes taken, 0 at the end of the file.

        Waits for the disk when the pages are not cached (see :meth:`Kernel.page_cached`), never for the
        pipe: ``BlockingIOError`` when no slot is free.
        """
        return self._fill_from_file(self._splice, fd, offset, count)

    def fill_from_file_blocking(self, fd: int, offset: int, count: int) -> int:
        """As :meth:`fill_from_file`, in a worker thread. Nobody else may use the pipe meanwhile."""
        return self._fill_from_file(self._kernel.splice_blocking, fd, offset, count)

    def _fill_from_file(self, splice: Any, fd: int, offset: int, count: int) -> int:
        queued = self.queued
        if queued < 0:
            raise self._unusable()
        self.queued = UNKNOWN
        try:
            taken: int = splice(fd, self.write_fd, count, offset)
        except (BlockingIOError, InterruptedError):
            self.queued = queued
            raise
        self.queued = queued + taken
        return taken

    def drain_to(self, fd: int, count: int) -> int:
        """Move up to ``count`` bytes, never more than are queued, to a socket; return the bytes moved.

        ``BlockingIOError`` when the socket is full. A short result, 0 included, means: try again. Any
        other ``OSError`` makes the pipe unusable, whatever it still holds.
        """
        queued = self.queued
        if queued <= 0:
            if queued < 0:
                raise self._unusable()
            return 0
        self.queued = UNKNOWN
        try:
            moved = self._splice(self.read_fd, fd, count if count < queued else queued)
        except (BlockingIOError, InterruptedError):
            self.queued = queued
            raise
        self.queued = queued - moved
        return moved

    def discard(self) -> None:
        """Throw away what is queued (13 to 24 µs per MiB of memory). Closes the pipe if that fails.

        Look at ``usable`` afterwards: a pipe whose content is unknown is closed without trying.
        """
        left = self.queued
        self.queued = UNKNOWN
        try:
            while left > 0:
                moved = self._splice(self.read_fd, _null(), left)
                if moved <= 0:
                    break
                left -= moved
        except OSError:
            pass
        if left == 0:
            self.queued = 0
        else:
            self.close()

    def close(self) -> None:
        """Close both ends and forget them; what is queued is gone. Closing twice is harmless."""
        read_fd, write_fd, self.read_fd, self.write_fd = self.read_fd, self.write_fd, -1, -1
        self.queued = UNKNOWN
        if read_fd >= 0:
            os.close(read_fd)
            os.close(write_fd)

    def __del__(self) -> None:
        self.close()

    def _unusable(self) -> MisuseError:
        if self.closed:
            return MisuseError("this pipe is closed; take another")
        return MisuseError("a call on this pipe failed, what it holds is unknown; close it and take another")


class PipeShare:
    """The pipes of one event loop: one for memory, shared by all connections, and leases for files.

    What the shared pipe cannot pass on is discarded and sent again, so one is enough. A file's bytes
    are promised to the peer once they are queued, so that connection keeps its pipe until it drains.
    ``memory_pipes`` (0 or 1) and ``file_pipes`` count what is open or leased now; ``replaced`` counts
    memory pipes that had to be given up.
    """

    def __init__(
        self, kernel: Kernel = DEFAULT, size: int = DEFAULT_SIZE, file_pipes: int = FILE_PIPES
    ) -> None:
        self._kernel = kernel
        self._size = size
        self._cap = file_pipes
        self._memory: Pipe | None = None
        self._leased: set[Pipe] = set()
        self._idle: list[Pipe] = []
        self._closed = False
        self.replaced = 0

    @property
    def memory_pipes(self) -> int:
        return int(self._memory is not None and not self._memory.closed)

    @property
    def file_pipes(self) -> int:
        return len(self._leased)

    def take(self) -> Pipe:
        """The shared pipe, certainly empty; a new one if the last user left anything in it.

        Use it and leave it empty before any other code runs (no ``await`` in between). Look at
        ``worthwhile``: past the user's pipe quota, copying is better. ``OSError`` when out of descriptors.
        """
        pipe = self._memory
        if pipe is not None and pipe.queued == 0:
            if pipe.slots < WORTHWHILE_SLOTS:  # the quota may be free again; a refusal costs 1 µs
                pipe.resize(self._size)
            return pipe
        if self._closed:
            raise MisuseError("the event loop's pipes are closed")
        if pipe is not None:
            pipe.close()  # first, so that its slots count no longer
            self._memory = None
            self.replaced += 1
        self._memory = pipe = Pipe(self._kernel, self._size)
        return pipe

    def lease(self) -> Pipe | None:
        """A pipe of one's own, or ``None`` when the cap, the user's quota or descriptors are used up.

        Give it back with :meth:`give_back`; on ``None`` use the copy lane.
        """
        if self._closed or len(self._leased) >= self._cap:
            return None
        if self._idle:
            pipe = self._idle.pop()
        else:
            try:
                pipe = Pipe(self._kernel, self._size)
            except OSError:
                return None
            if not pipe.worthwhile:
                pipe.close()
                return None
        self._leased.add(pipe)
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """End a lease. A pipe that is not empty, or smaller than it should be, is closed and not kept."""
        if pipe not in self._leased:
            raise MisuseError("this pipe is not leased from here, or was given back already")
        self._leased.remove(pipe)
        if pipe.queued == 0 and pipe.size >= self._size and not self._closed:
            self._idle.append(pipe)
        else:
            pipe.close()

    def close(self) -> None:
        """Close the shared and the idle pipes; leased ones are closed as they are given back."""
        self._closed = True
        for pipe in (self._memory, *self._idle):
            if pipe is not None:
                pipe.close()
        self._memory = None
        self._idle.clear()
