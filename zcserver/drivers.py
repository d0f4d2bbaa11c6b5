"""Readiness, timers and threads of the running event loop, as the engine's driver needs them.

On asyncio and uvloop the reader is registered once and stays (waiting through anyio costs 20-30 µs each
time), and the writer only after EAGAIN (one left armed spins). trio has no callbacks: two small tasks per
connection wait there. Sockets are registered by number and unregistered before they are closed.
"""

import asyncio
import contextlib
import errno
import functools
import logging
import math
import os
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Protocol

import anyio
import anyio.abc

if TYPE_CHECKING:
    import trio

_log = logging.getLogger("zcserver")
# Reads that wait for a disk have threads of their own: those that look names up, open files or run the
# application's calls are not to wait behind them.
_READERS: Final = 32
_executors: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, ThreadPoolExecutor]] = (
    weakref.WeakKeyDictionary()
)
Callback = Callable[[], object]
Done = Callable[[int, BaseException | None], None]


class Loop(Protocol):
    """The services; see :class:`zcserver.engine.Driver` for what each does."""

    def attach(self, fd: int, readable: Callback, writable: Callback, timeout: Callback) -> None: ...
    def detach(self) -> None: ...
    def arm_writer(self, wanted: bool) -> None: ...
    def wake_at(self, deadline: float) -> None: ...
    def soon(self, callback: Callback, /) -> object: ...
    def threadsafe(self, callback: Callback, /) -> object: ...
    def offload(self, work: Callable[[], int], done: Done) -> None: ...
    def time(self) -> float: ...


class AsyncioLoop:
    """asyncio and uvloop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = -1
        self._timer: asyncio.TimerHandle | None = None
        self.soon = self._loop.call_soon
        self.time = self._loop.time

    def threadsafe(self, callback: Callback, /) -> None:
        """(A destructor may call it when the loop is closed.)"""
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def attach(self, fd: int, readable: Callback, writable: Callback, timeout: Callback) -> None:
        self._fd = fd
        self._writable = writable
        self._timeout = timeout
        # Callbacks run in the context of their registration, outside any task. Where sniffio is installed
        # (with trio), anyio asks it which loop runs, and it knows only by a task or by this variable.
        sniffio = sys.modules.get("sniffio")
        if sniffio is None:
            self._loop.add_reader(fd, readable)
            return
        token = sniffio.current_async_library_cvar.set("asyncio")
        try:
            self._loop.add_reader(fd, readable)
        finally:
            sniffio.current_async_library_cvar.reset(token)

    def detach(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
        if self._timer is not None:
            self._timer.cancel()

    def arm_writer(self, wanted: bool) -> None:
        if wanted:
            self._loop.add_writer(self._fd, self._writable)
        else:
            self._loop.remove_writer(self._fd)

    def wake_at(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._timeout)

    def offload(self, work: Callable[[], int], done: Done) -> None:
        def finished(future: "asyncio.Future[int]") -> None:
            _deliver(future, done)

        executor = _executors.get(self._loop)
        if executor is None:
            executor = _executors[self._loop] = ThreadPoolExecutor(_READERS, "zcserver reader")
        self._loop.run_in_executor(executor, work).add_done_callback(finished)


class TrioLoop:
    """trio: a task waits for reading, one for writing, one for the next deadline."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        import trio

        self._trio = trio
        self._token = trio.lowlevel.current_trio_token()
        self._tasks = tasks
        self._fd = -1
        self._writer_wanted = anyio.Event()
        self._armed = False
        self._deadline = math.inf
        self._deadline_moved = anyio.Event()
        self.time = trio.current_time

    def soon(self, callback: Callback, /) -> None:
        self._token.run_sync_soon(_call, callback)

    def threadsafe(self, callback: Callback, /) -> None:
        with contextlib.suppress(self._trio.RunFinishedError):
            self.soon(callback)

    def attach(self, fd: int, readable: Callback, writable: Callback, timeout: Callback) -> None:
        self._fd = fd
        self._tasks.start_soon(self._read, readable)
        self._tasks.start_soon(self._write, writable)
        self._tasks.start_soon(self._watch, timeout)

    def detach(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._trio.lowlevel.notify_closing(fd)
            self._writer_wanted.set()
            self._deadline_moved.set()

    async def _read(self, readable: Callback) -> None:
        while self._fd >= 0:
            try:
                await self._trio.lowlevel.wait_readable(self._fd)
            except self._trio.ClosedResourceError:
                return
            _call(readable)

    async def _write(self, writable: Callback) -> None:
        while self._fd >= 0:
            await self._writer_wanted.wait()
            if self._fd < 0:
                return
            try:
                await self._trio.lowlevel.wait_writable(self._fd)
            except self._trio.ClosedResourceError:
                return
            if self._armed:
                _call(writable)

    def arm_writer(self, wanted: bool) -> None:
        self._armed = wanted
        if wanted:
            self._writer_wanted.set()
        else:
            self._writer_wanted = anyio.Event()

    async def _watch(self, timeout: Callback) -> None:
        while self._fd >= 0:
            with self._trio.move_on_at(self._deadline) as scope:
                await self._deadline_moved.wait()
            self._deadline_moved = anyio.Event()
            if scope.cancelled_caught and self._fd >= 0:
                self._deadline = math.inf
                _call(timeout)

    def wake_at(self, deadline: float) -> None:
        self._deadline = deadline
        self._deadline_moved.set()

    def offload(self, work: Callable[[], int], done: Done) -> None:
        async def run() -> None:
            future: Future[int] = Future()
            try:
                future.set_result(await self._trio.to_thread.run_sync(work, limiter=self._readers()))
            except OSError as error:
                future.set_exception(error)
            except self._trio.Cancelled:  # while it waited for a thread
                done(0, OSError(errno.ECANCELED, os.strerror(errno.ECANCELED)))
                raise
            _deliver(future, done)

        self._tasks.start_soon(run)

    def _readers(self) -> "trio.CapacityLimiter":
        """The run's own, which all of its connections share."""
        limiters = _limiters()
        try:
            return limiters.get()
        except LookupError:
            limiter = self._trio.CapacityLimiter(_READERS)
            limiters.set(limiter)
            return limiter


def _call(callback: Callback) -> None:
    """As asyncio does: what goes wrong in a callback is logged, and ends nobody else's work."""
    try:
        callback()
    except Exception:  # noqa: BLE001 – whoever is concerned has been told
        _log.exception("a callback of zcserver's failed")


@functools.cache
def _limiters() -> "trio.lowlevel.RunVar[trio.CapacityLimiter]":
    import trio

    return trio.lowlevel.RunVar("zcserver readers")


def _deliver(future: "Future[int] | asyncio.Future[int]", done: Done) -> None:
    error = future.exception()
    done(0 if error is not None else future.result(), error)


def in_trio() -> bool:
    """Whether the event loop this runs in is trio's."""
    trio = sys.modules.get("trio")
    return trio is not None and trio.lowlevel.in_trio_run()


def running_loop(tasks: anyio.abc.TaskGroup) -> Loop:
    """The services of the event loop this runs in; ``tasks`` outlives the connection."""
    return TrioLoop(tasks) if in_trio() else AsyncioLoop()
