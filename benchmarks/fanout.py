"""One publisher, many subscribers: what the publisher's process and the machine pay for each frame delivered.

    python -m benchmarks.fanout
    python -m benchmarks.fanout --subscribers 16 --gib 2 --rounds 1

Contenders alternate within a round: zcserver as it is, zcserver with the copy lane alone, asyncio streams (on
asyncio and uvloop) and pyzmq, each publishing from its own process to the same number of subscribers in a few
other processes. `README.md` explains the columns.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.compare import parse_size, pick_congestion, positive
from benchmarks.fanout_sides import HELD, PUBLISHERS

GIB = 1 << 30
MIB = 1 << 20
_PER_PROCESS = 16
_EVERY = 0.02
_SETTLE = 1.5
"""Seconds after the last frame was published to stopped subscribers, for the kernel to take what it takes."""


class Memory:
    """In MiB: what is available on the machine now, and what a process has resident."""

    @staticmethod
    def available() -> float:
        with open("/proc/meminfo") as lines:
            (line,) = [line for line in lines if line.startswith("MemAvailable")]
        return int(line.split()[1]) / 1024

    @staticmethod
    def resident(pid: int) -> float:
        with open(f"/proc/{pid}/statm") as numbers:
            return int(numbers.read().split()[1]) * os.sysconf("SC_PAGESIZE") / MIB


class Watch(threading.Thread):
    """Samples both while it runs: the most that was resident, and the least that was available."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._over = threading.Event()
        self.resident = 0.0
        self.available = float("inf")

    def run(self) -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            while not self._over.wait(_EVERY):
                self.resident = max(self.resident, Memory.resident(self._pid))
                self.available = min(self.available, Memory.available())

    def stop(self) -> None:
        self._over.set()
        self.join()


class FailedError(Exception):
    """A process ended, fell silent or was wrong; the message has what it said."""


class Process:
    """One side, which says JSON lines."""

    def __init__(self, *words: object) -> None:
        command = [sys.executable, "-m", "benchmarks.fanout_sides", *map(str, words)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid

    def hear(self, timeout: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self._process.kill()
            _, said = self._process.communicate()
            raise FailedError(said.strip().rpartition("\n")[2] or f"said nothing for {timeout:g} s")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def run(kind: str, subscribers: int, settings: argparse.Namespace) -> dict[str, Any]:
    """One contender, one number of subscribers. Raises FailedError."""
    size = settings.size
    frames = max(32, int(settings.gib * GIB / size / subscribers))
    with contextlib.ExitStack() as stack:
        publisher = Process("publish", kind, subscribers, frames, size, settings.congestion)
        stack.callback(publisher.end)
        port = publisher.hear(30)["port"]
        readers = []
        for count in shares(subscribers):
            reader = Process("subscribe", kind, count, frames, size, settings.congestion, port)
            stack.callback(reader.end)
            readers.append(reader)
        # All of them have loaded what they need, connected and subscribed before the first frame is sent.
        watch = Watch(publisher.pid)
        before = Memory.available()
        watch.start()
        result = publisher.hear(settings.timeout)
        watch.stop()
        result |= {"flow_rss": watch.resident, "flow_taken": max(0.0, before - watch.available)}
        result |= held(publisher, readers)
        right = sum(reader.hear(settings.timeout)["right"] for reader in readers)
    if right != subscribers * (frames + HELD):
        raise FailedError(f"{right} frames were right, of {subscribers * (frames + HELD)}")
    cpu = result["cpu"] / (result["delivered"] / GIB)
    rate = result["delivered"] / GIB / result["seconds"]
    return {
        "kind": kind,
        "subscribers": subscribers,
        "frames": frames,
        **result,
        "rate": rate,
        "cpu_gib": cpu,
    }


def held(publisher: Process, readers: list[Process]) -> dict[str, float]:
    """What it takes to have `HELD` more frames on their way to subscribers that are stopped, in MiB."""
    for reader in readers:
        reader.signal(signal.SIGSTOP)
    time.sleep(_SETTLE)
    available, resident = Memory.available(), Memory.resident(publisher.pid)
    publisher.go_on()
    time.sleep(_SETTLE)
    taken = available - Memory.available()
    grown = Memory.resident(publisher.pid) - resident
    for reader in readers:
        reader.signal(signal.SIGCONT)
    publisher.go_on()
    return {"held_taken": taken, "held_rss": grown}


def shares(subscribers: int) -> Iterator[int]:
    """How many subscribers each process has."""
    while subscribers > 0:
        yield min(subscribers, _PER_PROCESS)
        subscribers -= _PER_PROCESS


COLUMNS = (
    ("rate", "GiB/s delivered", ".2f"),
    ("cpu_gib", "CPU s/GiB", ".3f"),
    ("ratio", "CPU ratio", ".2f"),
    ("flow_rss", "RSS", ".0f"),
    ("flow_taken", "memory taken", ".0f"),
    ("held_rss", f"RSS for {HELD} held", ".0f"),
    ("held_taken", f"memory for {HELD} held", ".0f"),
)


def summarise(runs: list[dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    """Medians over the rounds; `ratio` is the median of each round's ratio to the baseline."""
    rows = []
    for subscribers, kind in dict.fromkeys((each["subscribers"], each["kind"]) for each in runs):
        same = [each for each in runs if (each["subscribers"], each["kind"]) == (subscribers, kind)]
        base = {
            each["round"]: each
            for each in runs
            if (each["subscribers"], each["kind"]) == (subscribers, baseline)
        }
        ratios = [each["cpu_gib"] / base[each["round"]]["cpu_gib"] for each in same if each["round"] in base]
        row = {name: median(each[name] for each in same) for name, _, _ in COLUMNS if name != "ratio"}
        ratio = median(ratios) if ratios else None
        rows.append({"subscribers": subscribers, "kind": kind, "rounds": len(same), "ratio": ratio, **row})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| subscribers | publisher | " + " | ".join(title for _, title, _ in COLUMNS) + " |"]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    for row in rows:
        cells = ["" if row[name] is None else format(row[name], form) for name, _, form in COLUMNS]
        lines.append(f"| {row['subscribers']} | {row['kind']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read_settings(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fanout", description=__doc__)
    parser.add_argument("--subscribers", nargs="+", type=positive, default=[1, 16, 64])
    parser.add_argument("--size", type=parse_size, default=MIB, help="of a frame, a multiple of 4 KiB")
    parser.add_argument("--gib", type=float, default=8.0, help="GiB delivered in a run, in all")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--only", nargs="+", choices=PUBLISHERS, default=list(PUBLISHERS))
    parser.add_argument("--baseline", choices=PUBLISHERS, default="zcserver-copy")
    parser.add_argument("--congestion", default="cubic", help="TCP congestion control of all sockets")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run and the medians there")
    settings = parser.parse_args(arguments)
    settings.congestion = pick_congestion(settings.congestion)
    if "pyzmq" in settings.only and importlib.util.find_spec("zmq") is None:
        print("skipped pyzmq: it is not installed (pip install pyzmq)", file=sys.stderr)
        settings.only.remove("pyzmq")
    return settings


def main(arguments: list[str] | None = None) -> int:
    """Compare, print, and return 1 if a run failed."""
    settings = read_settings(arguments)
    runs: list[dict[str, Any]] = []
    failures: list[str] = []
    for number in range(settings.rounds):
        for subscribers in settings.subscribers:
            turn = number % len(settings.only)
            for kind in settings.only[turn:] + settings.only[:turn]:
                try:
                    outcome = run(kind, subscribers, settings)
                except FailedError as error:
                    failures.append(f"{kind}, {subscribers} subscribers: {error}")
                    print(failures[-1], file=sys.stderr)
                    continue
                runs.append({"round": number, **outcome})
    order = list(PUBLISHERS)
    runs.sort(key=lambda each: (each["subscribers"], order.index(each["kind"]), each["round"]))
    rows = summarise(runs, settings.baseline)
    print(table(rows))
    print(f"\nMedians of {settings.rounds} rounds; memory in MiB; {os.cpu_count()} processors.")
    for each in runs:
        if each["congestion"] != settings.congestion:
            print(f"not comparable: {each['kind']} had {each['congestion']}")
    if settings.json:
        document = {"size": settings.size, "failures": failures, "runs": runs, "summary": rows}
        settings.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if failures or not runs else 0


if __name__ == "__main__":
    sys.exit(main())
