"""What a slow disk costs those who do not need it: latency of cached files and of PING, beside slow reads.

One client fetches files from a throttled disk, as many at once as `--streams`. A second one, on a connection
of its own, asks the same server for a PONG and for cached files, and takes the time. See README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.compare import pick_cores, positive, processor
from benchmarks.file_servers import ROOT
from benchmarks.results import render
from benchmarks.side import HOST
from benchmarks.throttled_disk import Disk, throttled_disk
from zcserver_protocol.codec import Codec, Limits
from zcserver_protocol.events import Data, Pong
from zcserver_protocol.frames import END_STREAM, HEADER_SIZE
from zcserver_protocol.streams import StreamState

_MIB = 1 << 20
_CREDIT = 1 << 40
_PAUSE = 0.002  # seconds between two questions: a server that is busy with them alone would say nothing
_SLOW_FILES = 64
_SLOW_SIZE = 8 * _MIB
_CONDITIONS = ("idle", "fast disk", "slow disk")


class Asker:
    """A client that waits for each answer: one blocking socket, no event loop that could be late itself."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection((HOST, port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._codec = Codec("client", Limits(), 0.0)
        self._buffer = memoryview(bytearray(_MIB))
        self._start = self._end = 0
        self._tokens = itertools.count(1)
        self._flush()
        while self._codec.peer is None:
            self._next()

    def close(self) -> None:
        self._sock.close()

    def ping(self) -> float:
        """Seconds from PING to its PONG."""
        token = next(self._tokens)
        begin = time.perf_counter()
        self._codec.ping(token)
        self._flush()
        while True:
            event = self._next()
            if isinstance(event, Pong) and event.token == token:
                return time.perf_counter() - begin

    def get(self, path: str, size: int) -> float:
        """Seconds from a request to the stream's end, by which the server vouches for the file."""
        begin = time.perf_counter()
        stream = self._codec.open("GET", path, {}, _CREDIT)
        self._flush()
        received = 0
        ended = False
        while not stream.recv_ended:
            if not ended and self._codec.sendable(stream) >= 0:
                self._end_sending(stream)
                ended = True
            event = self._next()
            if isinstance(event, Data):
                received += event.length
        seconds = time.perf_counter() - begin
        if received != size:
            raise RuntimeError(f"{path} came with {received} of {size} bytes")
        return seconds

    def _end_sending(self, stream: StreamState) -> None:
        header = bytearray(HEADER_SIZE)
        self._codec.data_header_into(header, 0, stream, 0, 0, END_STREAM, 0)
        self._codec.data_written(HEADER_SIZE)
        self._sock.sendall(header)

    def _flush(self) -> None:
        self._sock.sendall(self._codec.take_control())

    def _next(self) -> object:
        """The next event, None at the end of a DATA frame, whose payload is thrown away."""
        while True:
            have = self._end - self._start
            left = self._codec.payload_left
            if left and have:
                step = min(left, have)
                self._start += step
                if self._codec.payload_received(step):
                    return None
            elif not left and have >= (needs := self._codec.needs):
                self._start += needs
                event = self._codec.feed(self._buffer[self._start - needs : self._start])
                if event is not None:
                    return event
            else:
                self._codec.acknowledge()
                self._flush()
                self._buffer[:have] = bytes(self._buffer[self._start : self._end])
                count = self._sock.recv_into(self._buffer[have:])
                if not count:
                    raise RuntimeError("the server has closed the connection")
                self._start, self._end = 0, have + count


# -- who keeps the disk busy -------------------------------------------------------------------------------


async def _load(port: int, folder: Path, streams: int, rate: int, evict: bool) -> None:
    """Fetch the files of `folder` (served as /slow) again and again; `evict`: not from the page cache."""
    import anyio

    import zcserver

    names = itertools.cycle(sorted(os.listdir(folder)))

    async def fetch_on() -> None:
        for name in names:
            if evict:
                await anyio.to_thread.run_sync(_evict, folder / name)
            await client.fetch_to(f"/slow/{name}", nowhere)

    nowhere = os.open(os.devnull, os.O_WRONLY)
    async with (
        zcserver.Client(f"zc://{HOST}:{port}/", limit_rate=0 if evict else rate) as client,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(streams):
            tasks.start_soon(fetch_on)
        print(f"reading {streams} files at once", flush=True)


def _evict(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


# -- running it --------------------------------------------------------------------------------------------


class Stand:
    """The server, its two directories and the questions: kind of question → what asks it once."""

    def __init__(self, port: int, asker: Asker, slow: Path, settings: argparse.Namespace) -> None:
        self._port = port
        self._slow = slow
        self._settings = settings
        self._questions: dict[str, Callable[[], float]] = {
            "PING": asker.ping,
            "GET 4 KiB": lambda: asker.get("/warm/small", 4096),
            "GET 1 MiB": lambda: asker.get("/warm/large", _MIB),
        }

    def measure(self, condition: str) -> dict[str, list[float]]:
        """Seconds of every answer under a condition, by kind."""
        answers: dict[str, list[float]] = {kind: [] for kind in self._questions}
        with self._under(condition):
            end = time.monotonic() + self._settings.seconds
            while time.monotonic() < end:
                for kind, ask in self._questions.items():
                    answers[kind].append(ask())
                    time.sleep(_PAUSE)
        return answers

    def _under(self, condition: str) -> contextlib.AbstractContextManager[object]:
        if condition == "idle":
            return contextlib.nullcontext()
        given = self._settings
        words = [self._port, self._slow, given.streams, given.rate, int(condition == "slow disk")]
        return _running(["-m", "benchmarks.slow_disk", "--load", *map(str, words)])


@contextlib.contextmanager
def _running(arguments: list[str], core: int = -1, enter: Callable[[], None] = lambda: None) -> Iterator[str]:
    """What the process says first; it is ended with the block."""

    def prepare() -> None:
        enter()
        if core >= 0:
            os.sched_setaffinity(0, {core})

    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=prepare
    )
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        if not said:
            raise RuntimeError(f"{arguments} ended early")
        yield said
        if process.poll() is not None:
            raise RuntimeError(f"{arguments} ended early")
    finally:
        process.kill()
        process.communicate()


def _plant(folder: Path, sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        with open(folder / name, "wb") as file:
            file.write(os.urandom(size))
            file.flush()
            os.fsync(file.fileno())


def run(place: Path, disk: Disk, settings: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """The answers by condition and kind; rounds alternate between the conditions."""
    warm = place / "warm"
    warm.mkdir()
    _plant(warm, {"small": 4096, "large": _MIB})
    _plant(disk.folder, {f"{number:03}": _SLOW_SIZE for number in range(_SLOW_FILES)})
    serve = ["-m", "zcserver", "serve", f"warm={warm}", f"slow={disk.folder}", "--port", "0"]
    found: dict[str, dict[str, list[float]]] = {condition: {} for condition in _CONDITIONS}
    with _running(serve, core=settings.cores[0], enter=disk.enter) as said:
        port = int(said.split(" at ")[1].split()[0].rstrip("/").rpartition(":")[2])
        os.sched_setaffinity(0, {settings.cores[1]} if settings.cores[1] >= 0 else os.sched_getaffinity(0))
        with contextlib.closing(Asker(port)) as asker:
            stand = Stand(port, asker, disk.folder, settings)
            for _, condition in itertools.product(range(settings.rounds), _CONDITIONS):
                for kind, answers in stand.measure(condition).items():
                    found[condition].setdefault(kind, []).extend(answers)
    return found


def table(found: dict[str, dict[str, list[float]]], markdown: bool) -> str:
    """Milliseconds: median, 99th percentile and worst, a row for each kind of question and condition."""
    rows = [["question", "beside", "answers", "median ms", "99 % ms", "worst ms"]]
    for kind in found[_CONDITIONS[0]]:
        for condition in _CONDITIONS:
            answers = [1000 * seconds for seconds in sorted(found[condition][kind])]
            high = answers[int(len(answers) * 0.99)]
            figures = (statistics.median(answers), high, answers[-1])
            rows.append([kind, condition, str(len(answers)), *(f"{figure:.2f}" for figure in figures)])
    return render(rows, markdown)


def main() -> int:
    """Measure and print."""
    if sys.argv[1:2] == ["--load"]:
        import anyio

        port, folder, *numbers = sys.argv[2:]
        streams, rate, evict = map(int, numbers)
        anyio.run(_load, int(port), Path(folder), streams, rate, bool(evict))
        return 0
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slow_disk", description=__doc__)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--seconds", type=positive, default=10, help="for each condition in a round")
    parser.add_argument("--streams", type=positive, default=16, help="files read from the slow disk at once")
    parser.add_argument("--rate", type=positive, default=8 * _MIB, help="of the slow disk, bytes per second")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    settings = parser.parse_args()
    if os.geteuid() != 0:
        print("a throttled disk needs root: it is a loop device in a control group", file=sys.stderr)
        return 1
    settings.cores = pick_cores()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with (
        tempfile.TemporaryDirectory(prefix="zcserver-bench-") as place,
        throttled_disk(Path(place), _SLOW_FILES * _SLOW_SIZE, settings.rate) as disk,
    ):
        found = run(Path(place), disk, settings)
    print(
        f"kernel {platform.release()}, {processor()}, Python {platform.python_version()}; slow disk: "
        f"{settings.rate / _MIB:.0f} MiB/s, {settings.streams} files at once; {settings.rounds} rounds of "
        f"{settings.seconds} s",
        end="\n\n",
    )
    print(table(found, settings.markdown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
