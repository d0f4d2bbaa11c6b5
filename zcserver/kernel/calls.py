"""The seam to Linux: the calls on the way of a byte, and raw memory access, behind one class.

All code that moves payload takes a :class:`Kernel` and makes no system call past it, so that a test can
forbid, shorten or fail any single call by overriding one method. Failures are the usual subclasses of
``OSError`` (``BlockingIOError`` for ``EAGAIN``); ``EINTR`` is retried here or by CPython (PEP 475).

Lengths are bytes, addresses plain integers. ``vmsplice`` and ``openat2`` come through cffi in ABI mode: no
compiler is needed, and the GIL is released during the call.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import socket
import sys
import termios
from array import array
from typing import TYPE_CHECKING, Any, Final

import cffi

from zcserver.errors import MisuseError

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable

    from _typeshed import ReadableBuffer, WriteableBuffer

if sys.platform != "linux":
    raise ImportError("zcserver needs Linux: it sends through vmsplice and splice")

PAGE: Final = 4096

# include/uapi/linux/mman.h; the rest of the advices are in `mmap`.
MADV_POPULATE_READ: Final = 22  # Linux 5.14

# include/uapi/linux/openat2.h
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_CACHED: Final = 0x20

TCP_CONGESTION: Final = socket.TCP_CONGESTION
IOVECS_AT_MOST: Final = 1024  # UIO_MAXIOV

# Bit 63 of an entry in pagemap.
_PRESENT: Final = 0x80
_PRESENT_AT: Final = 7 if sys.byteorder == "little" else 0
_TOUCHED: Final = 1 << 20  # bytes per call

_SPLICE_F_NONBLOCK: Final = os.SPLICE_F_NONBLOCK
_SYS_OPENAT2: Final = 437  # the same on every architecture that CPython supports

ffi: Final = cffi.FFI()
ffi.cdef("""
    struct iovec { void *iov_base; size_t iov_len; };
    struct open_how { uint64_t flags; uint64_t mode; uint64_t resolve; };
    ssize_t vmsplice(int fd, const struct iovec *iov, size_t count, unsigned int flags);
    int madvise(void *address, size_t length, int advice);
    long syscall(long number, ...);
""")
_libc: Final[Any] = ffi.dlopen(None)
_vmsplice: Final[Any] = _libc.vmsplice
# With fixed arguments: cffi converts those, and takes five times as long for variable ones.
_syscall: Final[Any] = ffi.cast(
    "long(*)(long, long, const char *, const void *, size_t)", ffi.addressof(_libc, "syscall")
)
_HOW_SIZE: Final = ffi.sizeof("struct open_how")
_BYTES: Final = ffi.typeof("char[]")
_POINTER: Final = ffi.typeof("char *")
_ADDRESS: Final = ffi.typeof("uintptr_t")
_from_buffer: Final = ffi.from_buffer
_buffer: Final[Any] = ffi.buffer

if ffi.sizeof("struct iovec") != 16:
    raise ImportError("zcserver needs a 64-bit system: it fills a struct iovec as two 64-bit words")


@functools.lru_cache
def _open_how(flags: int, mode: int, resolve: int) -> Any:
    """A ``struct open_how``, which the kernel only reads."""
    return ffi.new("struct open_how *", (flags, mode, resolve))


def _error(number: int, what: str) -> OSError:
    """The right subclass of ``OSError``, with the call's name, since cffi calls know none."""
    return OSError(number, f"{what}: {os.strerror(number)}")


class Kernel:
    """The real calls. A test subclasses this and overrides single methods."""

    # -- pipes --

    def vmsplice(self, fd: int, iov: Any, count: int) -> int:
        """Put references to the pages of ``count`` iovecs into the pipe; return the bytes queued.

        Never waits for room: ``BlockingIOError`` when the pipe is full. Short when it fills up on the way.
        The memory is in flight from here on, whatever happens next: do not write to it.
        """
        queued: int = _vmsplice(fd, iov, count, _SPLICE_F_NONBLOCK)
        while queued < 0:
            number = ffi.errno
            if number != errno.EINTR:
                raise _error(number, "vmsplice")
            queued = _vmsplice(fd, iov, count, _SPLICE_F_NONBLOCK)
        return queued

    def splice(self, source: int, target: int, count: int, offset: int | None = None) -> int:
        """Move up to ``count`` bytes between a pipe and another descriptor; return the bytes moved.

        ``offset`` is the place in a source file. The call never waits for the pipe; a socket must be
        ``O_NONBLOCK`` itself. To a socket, ask for exactly what the pipe holds: asking for more sets
        ``MSG_MORE`` and the tail waits 200 ms (``splice_to_socket`` in fs/splice.c).
        """
        return os.splice(source, target, count, offset, None, _SPLICE_F_NONBLOCK)

    def splice_blocking(self, source: int, target: int, count: int, offset: int | None = None) -> int:
        """As :meth:`splice`, for worker threads: a file's pages may have to come from the disk."""
        return os.splice(source, target, count, offset)

    def pipe(self) -> tuple[int, int]:
        """A new pipe (read end, write end), close-on-exec and non-blocking."""
        return os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def set_pipe_size(self, fd: int, size: int) -> int:
        """Ask for ``size`` bytes of capacity, return what was given; ``EPERM`` past the user's limits."""
        return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)

    def get_pipe_size(self, fd: int) -> int:
        """The capacity in bytes; one slot per page of it, however small the fragment in a slot."""
        return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)

    # -- sockets --

    def sendmsg(self, sock: socket.socket, buffers: Iterable[ReadableBuffer], flags: int = 0) -> int:
        return sock.sendmsg(buffers, (), flags)

    def send(self, sock: socket.socket, data: ReadableBuffer, flags: int = 0) -> int:
        return sock.send(data, flags)

    def recv_into(self, sock: socket.socket, buffer: WriteableBuffer) -> int:
        return sock.recv_into(buffer)

    def recvmsg_into(self, sock: socket.socket, buffers: Iterable[WriteableBuffer]) -> int:
        return sock.recvmsg_into(buffers)[0]

    def set_congestion(self, sock: socket.socket, name: str) -> None:
        """Choose the congestion control; ``EPERM`` unless allowed to users, ``ENOENT`` if unknown."""
        sock.setsockopt(socket.IPPROTO_TCP, TCP_CONGESTION, name.encode())

    def get_congestion(self, sock: socket.socket) -> str:
        return sock.getsockopt(socket.IPPROTO_TCP, TCP_CONGESTION, 16).partition(b"\0")[0].decode()

    def unacknowledged(self, sock: socket.socket) -> int:
        """Bytes the peer's TCP has not acknowledged (``SIOCOUTQ``). Zero does **not** free any page."""
        answer = fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0")  # the same number as SIOCOUTQ
        return int.from_bytes(answer, sys.byteorder)

    def unread(self, sock: socket.socket) -> int:
        """Bytes that can be read now without waiting."""
        answer = fcntl.ioctl(sock, termios.FIONREAD, b"\0\0\0\0")
        return int.from_bytes(answer, sys.byteorder)

    # -- files and memory --

    def page_cached(self, fd: int, offset: int) -> bool | None:
        """Would reading the page at ``offset`` return at once? ``None``: this file system cannot tell.

        True at and past the end of the file too. Costs one byte; a wider probe would copy its range.
        """
        try:
            os.preadv(fd, (bytearray(1),), offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
                return None
            raise
        return True

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        """Up to ``count`` bytes of a file from ``offset`` on, copied."""
        return os.pread(fd, count, offset)

    def madvise(self, mapping: mmap.mmap, advice: int, start: int, length: int) -> None:
        """Advise on ``length`` bytes from ``start``, a multiple of the page size. Holds the GIL."""
        mapping.madvise(advice, start, length)

    def resident(self, address: int, length: int) -> bool:
        """Whether this process can read all these pages without a fault, and so without waiting for a disk.

        By its page tables (proc_pid_pagemap(5)); mincore(2) says yes of files that the user may not write to.
        False where /proc does not tell.
        """
        first = address // PAGE
        count = (address + length - 1) // PAGE - first + 1
        try:
            fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            entries = os.pread(fd, 8 * count, 8 * first)
        finally:
            os.close(fd)
        return len(entries) == 8 * count and min(entries[_PRESENT_AT::8]) >= _PRESENT

    def fault_in(self, address: int, length: int) -> None:
        """Read the pages into memory without the GIL: for threads that warm up cold mappings.

        ``EFAULT`` where touching the memory would be a ``SIGBUS``.
        """
        start = address & -PAGE
        pointer = ffi.cast(_POINTER, start)
        while _libc.madvise(pointer, address + length - start, MADV_POPULATE_READ) < 0:
            number = ffi.errno
            if number == errno.EINVAL:
                _touch(address, length)
                return
            if number not in (errno.EINTR, errno.EAGAIN):
                raise _error(number, "madvise(MADV_POPULATE_READ)")

    def openat2(self, directory_fd: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
        """Open ``path`` under the ``RESOLVE_*`` rules; return a close-on-exec descriptor.

        ``mode`` must be 0 unless the call creates a file. ``EXDEV`` or ``ELOOP``: the path breaks the rules.
        ``EAGAIN``: a rename raced with ``..``; try again. ``ENOSYS``, ``EPERM``: the call is missing here.
        """
        if b"\0" in path:
            raise ValueError("a path cannot hold a zero byte")
        how = _open_how(flags | os.O_CLOEXEC, mode, resolve)
        while True:
            fd: int = _syscall(_SYS_OPENAT2, directory_fd, path, how, _HOW_SIZE)
            number = ffi.errno
            if fd >= 0:
                return fd
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number), path)


def _touch(address: int, length: int) -> None:
    """What :meth:`Kernel.fault_in` does before Linux 5.14: have the kernel copy the memory, to no purpose."""
    fd = os.memfd_create("zcserver-touch", os.MFD_CLOEXEC)
    try:
        while length > 0:
            count = os.pwrite(fd, _buffer(ffi.cast(_POINTER, address), min(length, _TOUCHED)), 0)
            address += count
            length -= count
    finally:
        os.close(fd)


DEFAULT: Final = Kernel()


class IoVec:
    """An array of ``slots`` iovecs, allocated once and filled with plain integers.

    ``fill`` it, then pass ``cdata`` and the number of slots filled to :meth:`Kernel.vmsplice`. It keeps none
    of that memory alive.
    """

    __slots__ = ("_words", "cdata")

    def __init__(self, slots: int) -> None:
        if not 0 < slots <= IOVECS_AT_MOST:
            raise MisuseError(f"an IoVec has 1 to {IOVECS_AT_MOST} slots (the kernel's limit), not {slots}")
        self._words = array("Q", bytes(16 * slots))
        self.cdata: Any = _from_buffer("struct iovec[]", self._words)

    def fill(self, words: list[int]) -> int:
        """From slot 0 on: the address of each piece and its bytes, in turn. Return the slots filled."""
        count = len(words)
        self._words[:count] = array("Q", words)
        return count >> 1


def address_of(buffer: ReadableBuffer) -> int:
    """The address of a C-contiguous buffer, read-only or not. Holds nothing: keep the buffer alive."""
    return int(ffi.cast(_ADDRESS, _from_buffer(_BYTES, buffer)))


def pointer_to(address: int) -> Any:
    """For :func:`memory_at`: making it costs more than using it."""
    return ffi.cast(_POINTER, address)


def memory_at(pointer: Any, nbytes: int) -> Any:
    """``nbytes`` of memory at ``pointer`` as a writable object with the buffer protocol.

    All views of the memory refer to this object, so its reference count tells whether any are alive; it
    can be weakly referenced. It does not keep the memory mapped: its maker does.
    """
    return _buffer(pointer, nbytes)
