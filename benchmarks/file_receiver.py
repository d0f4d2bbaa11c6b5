"""The receiving process of `files.py`: fetch every file, check it, throw it away, and report.

`http` is the least that receives HTTP: a blocking socket, one buffer, no library. `zcp` is zcserver's client.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import TYPE_CHECKING, cast

from benchmarks import processes, side
from benchmarks.side import HOST, CorruptionError
from benchmarks.stamped_files import Job, check, name_of

if TYPE_CHECKING:
    import zcserver

_CHUNK = 1 << 20
_READ_AHEAD = 128 << 10  # a head and, where it is there already, the small file behind it


class Meter:
    """Clocks of both ends around what is measured: after a warm-up, on the same connection."""

    def __init__(self, server: int, job: Job, congestion: str) -> None:
        self._root = server
        self._job = job
        self._congestion = congestion

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Measure the body and print the result."""
        side.tune_sockets(self._congestion)
        server = processes.family(self._root)
        begin, ours, theirs = time.perf_counter(), time.process_time(), processes.cpu_seconds(server)
        yield
        result = {
            "seconds": time.perf_counter() - begin,
            "receiver_cpu": time.process_time() - ours,
            "server_cpu": processes.cpu_seconds(server) - theirs,
            "nbytes": self._job.nbytes,
            "receiver_congestion": side.congestion_in_force(),
            "server_congestion": _congestion_of(server),
        }
        print(json.dumps(result), flush=True)


def _congestion_of(server: list[int]) -> str:
    try:
        return processes.congestion_in_force(server)
    except OSError as error:
        return f"unknown ({error.strerror})"


def _order(files: int, passes: int) -> Iterator[int]:
    for _ in range(passes):
        yield from range(files)


def _warm_up(job: Job) -> Iterator[int]:
    """Enough to have windows open and code loaded at both ends."""
    return _order(min(job.files, 200), 1)


# -- HTTP --------------------------------------------------------------------------------------------------


class HttpReceiver:
    """Reads responses with a Content-Length, one after another, into the same buffer."""

    def __init__(self, sock: socket.socket, size: int) -> None:
        self._sock = sock
        self._size = size
        self._buffer = bytearray(_CHUNK + _READ_AHEAD)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0  # what has arrived and was not looked at yet

    def fetch_all(self, files: Iterator[int], in_flight: int) -> None:
        """GET all `files`, with `in_flight` requests sent ahead (pipelining, RFC 9112 section 9.3.2)."""
        asked: list[int] = []
        for file in files:
            self._sock.sendall(f"GET /{name_of(file)} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            asked.append(file)
            if len(asked) == in_flight:
                self._take(asked.pop(0))
        for file in asked:
            self._take(file)

    def _take(self, file: int) -> None:
        self._head(file)
        position = 0
        while position < self._size:
            count = min(_CHUNK, self._size - position)
            while (missing := count - (self._end - self._start)) > 0:
                self._receive(missing)
            check(self._view[self._start : self._start + count], file, position)
            self._start += count
            position += count

    def _head(self, file: int) -> None:
        while (end := self._buffer.find(b"\r\n\r\n", self._start, self._end)) < 0:
            self._receive(_READ_AHEAD)
        head = self._buffer[self._start : end].decode("latin-1").lower()
        self._start = end + 4
        status, *fields = head.split("\r\n")
        values = dict(field.split(":", 1) for field in fields)
        if status.split()[1] != "200" or int(values["content-length"]) != self._size:
            raise CorruptionError(f"file {file} of {self._size} bytes was answered by {head!r}")

    def _receive(self, most: int) -> None:
        """Append at most `most` bytes; move what is left to the front when the end comes near."""
        left = self._end - self._start
        if not left:
            self._start = self._end = 0
        elif self._end + most > len(self._buffer):
            self._view[:left] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, left
        count = self._sock.recv_into(self._view[self._end : self._end + most])
        if not count:
            raise CorruptionError("the server closed the connection early")
        self._end += count


def receive_http(port: int, job: Job, congestion: str, meter: Meter) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect((HOST, port))
        receiver = HttpReceiver(sock, job.size)
        receiver.fetch_all(_warm_up(job), job.in_flight)
        with meter.running():
            receiver.fetch_all(_order(job.files, job.passes), job.in_flight)


# -- zcserver ----------------------------------------------------------------------------------------------


async def _fetch(client: zcserver.Client, file: int, size: int) -> None:
    stream = await client.connection.open("GET", f"/{name_of(file)}")
    await stream.end()
    length = (await stream.response())["length"]
    position = 0
    chunks = cast("AsyncGenerator[memoryview, None]", stream.chunks())
    async for piece in chunks:  # to the stream's end, by which the server vouches for the file
        check(piece, file, position)
        position += len(piece)
    if not position == length == size:
        raise CorruptionError(f"file {file} came with {position} of {size} bytes")


async def receive_zcp(port: int, job: Job, congestion: str, meter: Meter) -> None:
    import anyio

    import zcserver

    async def fetch_all(files: Iterator[int]) -> None:
        async def fetch_some() -> None:
            for file in files:
                await _fetch(client, file, job.size)

        async with anyio.create_task_group() as tasks:
            for _ in range(job.in_flight):
                tasks.start_soon(fetch_some)

    async with zcserver.Client(f"zc://{HOST}:{port}/") as client:
        side.tune_sockets(congestion)
        await fetch_all(_warm_up(job))
        with meter.running():
            await fetch_all(_order(job.files, job.passes))


def _run_zcp(port: int, job: Job, congestion: str, meter: Meter) -> None:
    import anyio

    anyio.run(receive_zcp, port, job, congestion, meter, backend_options={"use_uvloop": True})


PROTOCOLS: dict[str, Callable[[int, Job, str, Meter], None]] = {"http": receive_http, "zcp": _run_zcp}


def main() -> None:
    """Fetch what the command line says; everything is in numbers, as `files.py` passes it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.file_receiver", description=__doc__)
    parser.add_argument("protocol", choices=PROTOCOLS)
    for option in ("port", "server", "core", *Job._fields):
        parser.add_argument(f"--{option.replace('_', '-')}", type=int, required=True)
    parser.add_argument("--congestion", required=True)
    given = parser.parse_args()
    if given.core >= 0:
        os.sched_setaffinity(0, {given.core})
    job = Job(*(getattr(given, field) for field in Job._fields))
    meter = Meter(given.server, job, given.congestion)
    PROTOCOLS[given.protocol](given.port, job, given.congestion, meter)


if __name__ == "__main__":
    main()
