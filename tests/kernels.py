"""Kernels for tests: one that forbids vmsplice, one that copies instead, one that fails on cue."""

import errno
import functools
import os
from typing import Any

from zcserver.kernel.calls import IoVec, Kernel, address_of, ffi

METHODS = tuple(name for name in vars(Kernel) if not name.startswith("_"))


class ForbiddenKernel(Kernel):
    """A sandbox whose seccomp profile answers EPERM to vmsplice, as Podman's default does."""

    def vmsplice(self, fd: int, iov: Any, count: int) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


class CopyingKernel(Kernel):
    """A kernel whose vmsplice copies: the same results, nothing in flight."""

    def vmsplice(self, fd: int, iov: Any, count: int) -> int:
        return os.writev(fd, [contents(iov, i) for i in range(count)])


class FailingKernel(Kernel):
    """The ``nth`` call (from 1) of ``method`` fails with ``error``, or does at most ``short`` bytes.

    ``method=None`` counts the calls of all methods together. For torture: run a scenario with nth = 1, 2, …
    until ``fired`` stays False, so that each fallible call has failed once.
    """

    def __init__(self, method: str | None, nth: int, *, error: int = 0, short: int | None = None) -> None:
        if method is not None and method not in METHODS:
            raise ValueError(f"Kernel has no method {method}")
        if (error == 0) == (short is None):
            raise ValueError("give either an error or a short count")
        self.nth = nth
        self.error = error
        self.short = short
        self.calls = 0
        self.failed: str | None = None
        for name in METHODS if method is None else (method,):
            setattr(self, name, functools.partial(self._call, name))

    @property
    def fired(self) -> bool:
        return self.failed is not None

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self.nth:
            self.failed = name
            if self.error:
                raise OSError(self.error, os.strerror(self.error))
            assert self.short is not None
            args = SHORTENED[name](self.short, *args)
        return getattr(Kernel, name)(self, *args, **kwargs)


def contents(iov: Any, index: int) -> Any:
    """The memory that one iovec points to."""
    return ffi.buffer(ffi.cast("char *", iov[index].iov_base), iov[index].iov_len)


def _short_vmsplice(short: int, fd: int, iov: Any, count: int) -> tuple[Any, ...]:
    fewer = IoVec(count)
    words = []
    for i in range(count):
        nbytes = min(short, iov[i].iov_len)
        short -= nbytes
        words += (int(ffi.cast("uintptr_t", iov[i].iov_base)), nbytes)
    fewer.fill(words)
    return fd, fewer.cdata, count


def _short_splice(short: int, source: int, target: int, count: int, *rest: Any) -> tuple[Any, ...]:
    return source, target, min(short, count), *rest


def _short_buffer(short: int, sock: Any, buffer: Any, *rest: Any) -> tuple[Any, ...]:
    return sock, memoryview(buffer).cast("B")[:short], *rest


def _short_buffers(short: int, sock: Any, buffers: Any, *rest: Any) -> tuple[Any, ...]:
    fewer = []
    for buffer in buffers:
        piece = memoryview(buffer).cast("B")[:short]
        short -= piece.nbytes
        fewer.append(piece)
    return sock, fewer, *rest


SHORTENED = {
    "vmsplice": _short_vmsplice,
    "splice": _short_splice,
    "splice_blocking": _short_splice,
    "send": _short_buffer,
    "recv_into": _short_buffer,
    "sendmsg": _short_buffers,
    "recvmsg_into": _short_buffers,
}


def iovec_of(*buffers: Any) -> IoVec:
    """An IoVec over buffers that the caller keeps alive."""
    iovec = IoVec(len(buffers))
    iovec.fill([word for buffer in buffers for word in (address_of(buffer), memoryview(buffer).nbytes)])
    return iovec
