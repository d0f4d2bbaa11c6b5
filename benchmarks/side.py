"""One side of a run: what every contender written in Python has in common.

A contender calls `main(name, send=…, receive=…)` and in its two coroutines, in this order:

- sender: `dial` or connect, `tune_sockets`, then inside `with measured(run)` `stamp` every message before
  it is sent, and leave the block only when the receiver has everything (end of stream or acknowledgement);
- receiver: listen on port 0, `tune_sockets`, `announce` the port, give every message to
  `Inbox.take` and return after awaiting `Inbox.full`.

So all of them write and check the same bytes and are measured by the same clocks. `raw.c` does the same.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import mmap
import os
import resource
import socket
import stat
import struct
import time
from array import array
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, NamedTuple

PAGE = 4096
HUGE_PAGE = 2 << 20
HOST = "127.0.0.1"
COPY_RING = 256 << 10
"""Bytes that a copying sender cycles through. Twice the 64 KiB that may stay in the write buffer of a
stream after `drain`, so that no message is overwritten there, and small enough to stay in the cache,
which favours the copying side."""

BATCH = 2 << 20
"""Bytes of a batch of messages in zcserver, headers included: a region of its pool."""
COPY_BATCH = 1 << 20
"""Bytes of messages that a copying sender hands over at once if it can: the best of 256 KiB to 2 MiB."""

_NUMBER = struct.Struct("=Q")
_WORDS_PER_PAGE = PAGE // _NUMBER.size


class Run(NamedTuple):
    """What one side is told: message size (bytes), number of messages, port of the receiver (0 for the
    receiver itself), core to stay on (−1: any), TCP congestion control."""

    size: int
    messages: int
    port: int
    core: int
    congestion: str


class CorruptionError(Exception):
    """A message arrived with other content than was sent."""


def stamp(message: memoryview, number: int) -> None:
    """Write `number` into every page of `message`: the producer's work, without which nothing is sent."""
    with message.cast("Q") as words:
        words[::_WORDS_PER_PAGE] = array("Q", (number,)) * (len(message) // PAGE)


def ring(size: int, nbytes: int = COPY_RING) -> list[memoryview]:
    """At least four messages and `nbytes` bytes of memory in huge pages, each page touched once."""
    count = max(4, nbytes // size)
    spare = 2 * HUGE_PAGE  # one to start at a huge page's border, one to end at it
    memory = mmap.mmap(-1, count * size + spare, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages is slower, not wrong
        memory.madvise(mmap.MADV_HUGEPAGE)
    aligned = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % HUGE_PAGE
    whole = memoryview(memory)[aligned:]
    messages = [whole[start : start + size] for start in range(0, count * size, size)]
    for message in messages:
        stamp(message, 0)
    return messages


def dial(run: Run) -> socket.socket:
    """A connected, non-blocking socket that has had the run's congestion control from its first segment.

    One that paces (`bbr`, the default of some machines) leaves its pacing behind when it is replaced later,
    and that is half of a sender's system time.
    """
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, run.congestion.encode())
    sock.connect((HOST, run.port))
    sock.setblocking(False)
    return sock


def tune_sockets(congestion: str) -> None:
    """Give every TCP socket of this process the run's congestion control and TCP_NODELAY.

    Found through `/proc/self/fd`, so that it is the same for contenders that hide their sockets. What a
    listener is given, the connections it accepts afterwards inherit.
    """
    for sock in _tcp_sockets():
        with sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())


def congestion_in_force() -> str:
    """The congestion control of this process's TCP sockets, joined by `+` should they differ."""
    names = set()
    for sock in _tcp_sockets():
        with sock:
            name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
            names.add(name.rstrip(b"\0").decode())
    return "+".join(sorted(names))


def _tcp_sockets() -> Iterator[socket.socket]:
    for name in os.listdir("/proc/self/fd"):
        try:
            copy = os.dup(int(name))
        except OSError:  # the descriptor of the directory listing itself is gone by now
            continue
        if not stat.S_ISSOCK(os.fstat(copy).st_mode):
            os.close(copy)
            continue
        sock = socket.socket(fileno=copy)
        if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM:
            yield sock
        else:
            sock.close()


class Instant(NamedTuple):
    """A point in time (seconds) and the processor time this process had used by then (seconds)."""

    wall: float
    user: float
    system: float

    @classmethod
    def now(cls) -> Instant:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return cls(time.perf_counter(), used.ru_utime, used.ru_stime)


@contextlib.contextmanager
def measured(run: Run) -> Iterator[None]:
    """Measure the sender from before its first message to after the last, and print the result."""
    start = Instant.now()
    yield
    end = Instant.now()
    _report("send", run.messages * run.size, start, end)


class Inbox:
    """Checks every message that arrives and measures the receiver.

    The clocks start when the first message is complete, so that connecting is not counted, and stop with
    the last; the first message's bytes do not count.
    """

    def __init__(self, run: Run) -> None:
        self.full: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._run = run
        self._next = 0
        self._last_page = run.size - PAGE
        self._start = Instant(0.0, 0.0, 0.0)

    def take(self, message: bytes | bytearray | memoryview) -> None:
        """Check the next message, print the result after the last.

        Raises `CorruptionError`, and has `full` raise it, if the message is not what was sent.
        """
        number = self._next
        (first,) = _NUMBER.unpack_from(message, 0)
        (last,) = _NUMBER.unpack_from(message, self._last_page)
        if first != number or last != number or len(message) != self._run.size:
            error = CorruptionError(f"message {number} arrived as {first}…{last}, {len(message)} bytes long")
            self.full.set_exception(error)
            raise error
        self._next = number + 1
        if number == 0:
            self._start = Instant.now()
        if self._next == self._run.messages:
            end = Instant.now()
            _report("receive", (self._run.messages - 1) * self._run.size, self._start, end)
            self.full.set_result(None)


def announce(port: int) -> None:
    """Tell the harness where this receiver listens."""
    print(json.dumps({"port": port}), flush=True)


def _report(role: str, nbytes: int, start: Instant, end: Instant) -> None:
    result = {
        "role": role,
        "bytes": nbytes,
        "seconds": end.wall - start.wall,
        "user": end.user - start.user,
        "system": end.system - start.system,
        "congestion": congestion_in_force(),
    }
    print(json.dumps(result), flush=True)


def read_arguments(name: str) -> tuple[str, Run]:
    """Parse `send|receive --size … --messages …` and move this process to its core."""
    parser = argparse.ArgumentParser(prog=name)
    parser.add_argument("role", choices=("send", "receive"))
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--messages", type=int, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--core", type=int, default=-1)
    parser.add_argument("--congestion", default="cubic")
    arguments = vars(parser.parse_args())
    role = arguments.pop("role")
    run = Run(**arguments)
    if run.core >= 0:
        os.sched_setaffinity(0, {run.core})
    return role, run


Side = Callable[[Run], Coroutine[Any, Any, None]]
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def main(name: str, send: Side, receive: Side, loop_factory: LoopFactory | None = None) -> None:
    """Run the side named on the command line to its end."""
    role, run = read_arguments(name)
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run((send if role == "send" else receive)(run))
