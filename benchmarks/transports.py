"""Our transport beside asyncio's, uvloop's and aiofastnet's: pipelined writes, and round trips of 64 bytes.

    python -m benchmarks.transports
    python -m benchmarks.transports --rounds 3 --sizes 1KiB 64KiB --only asyncio zcserver
    python -m benchmarks.transports --json results.json --markdown

README.md says how to read the tables.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.compare import (
    KEEP_FREED_MEMORY,
    ROOT,
    RunError,
    _result,
    describe,
    pick_congestion,
    pick_cores,
    positive,
)
from benchmarks.results import GIB, Outcome, Side, as_json, human_size, render, summarise, table
from benchmarks.side import Run
from benchmarks.transport_side import CONTENDERS, ECHOED, unavailable

MOST_MESSAGES = 400_000


async def run_once(name: str, run: Run, cores: tuple[int, int], environment: dict[str, str]) -> Outcome:
    """Both ends of one contender, each in a process on its core. Raises `RunError` if one of them fails."""
    processes: list[asyncio.subprocess.Process] = []

    async def start(role: str, side: Run) -> asyncio.subprocess.Process:
        options = [f"--{option}={value}" for option, value in side._asdict().items()]
        command = (sys.executable, "-m", "benchmarks.transport_side", name, role, *options)
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE
        )
        processes.append(process)
        return process

    try:
        receiver = await start("receive", run._replace(core=cores[1]))
        assert receiver.stdout is not None
        greeting = await receiver.stdout.readline()
        if not greeting:
            raise RunError("the receiver did not come up")
        sender = await start("send", run._replace(core=cores[0], port=json.loads(greeting)["port"]))
        sent = await _result(sender, "sender")
        return Outcome(name, run.size, 0, sent, await _result(receiver, "receiver"))
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def compare(settings: argparse.Namespace) -> tuple[list[Outcome], list[str]]:
    """All rounds; the order rotates, so that nobody always runs after the same neighbour."""
    outcomes: list[Outcome] = []
    failures: list[str] = []
    environment = os.environ | KEEP_FREED_MEMORY
    for number in range(settings.rounds):
        turn = number % len(settings.only)
        for size in [*settings.sizes, ECHOED]:
            messages = max(2, min(int(settings.gib * GIB / size), MOST_MESSAGES))
            if size == ECHOED:
                messages = settings.round_trips
            run = Run(size, messages, port=0, core=-1, congestion=settings.congestion)
            for name in settings.only[turn:] + settings.only[:turn]:
                try:
                    async with asyncio.timeout(settings.timeout):
                        outcome = await run_once(name, run, settings.cores, environment)
                except (RunError, TimeoutError) as error:
                    where = f"round {number + 1}, {human_size(size)}, {name}"
                    failures.append(f"{where}: {error or f'nothing after {settings.timeout:g} s'}")
                    print(failures[-1], file=sys.stderr)
                    continue
                outcomes.append(outcome._replace(round=number))
        print(f"round {number + 1} of {settings.rounds} done", file=sys.stderr)
    return outcomes, failures


def round_trips(outcomes: list[Outcome], order: list[str], baseline: str, markdown: bool) -> str:
    """Microseconds of time, and of processor time at each end, for one round trip; medians."""
    against = f"× {baseline}"
    cells = [["size", "contender", "µs", against, "client CPU µs", against, "server CPU µs", against]]
    base = {run.round: run for run in outcomes if run.contender == baseline}
    for name in order:
        runs = [run for run in outcomes if run.contender == name]
        if not runs:
            continue
        line = [f"{ECHOED} B", name]
        for measure in (_time, _client, _server):
            ratios = [measure(run) / measure(base[run.round]) for run in runs if run.round in base]
            line += [f"{median(map(measure, runs)):.1f}", f"{median(ratios):.2f}" if ratios else "–"]
        cells.append(line)
    return render(cells, markdown)


def _count(side: Side) -> float:
    return side.bytes / ECHOED


def _time(run: Outcome) -> float:
    return run.send.seconds / _count(run.send) * 1e6


def _client(run: Outcome) -> float:
    return (run.send.user + run.send.system) / _count(run.send) * 1e6


def _server(run: Outcome) -> float:
    return (run.receive.user + run.receive.system) / _count(run.receive) * 1e6


def parse_size(text: str) -> int:
    """Bytes of `1024`, `1KiB` or `1MiB`; more than the 64 of a round trip."""
    number = text.lower().removesuffix("ib")
    size = int(number.rstrip("km")) * {"k": 1 << 10, "m": 1 << 20}.get(number[-1:], 1)
    if not ECHOED < size <= 1 << 26:
        raise argparse.ArgumentTypeError(f"{text}: sizes are {ECHOED + 1} bytes to 64 MiB")
    return size


def read_settings(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transports", description=__doc__)
    sizes = [1 << 10, 16 << 10, 64 << 10]
    parser.add_argument("--sizes", nargs="*", type=parse_size, default=sizes)
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--gib", type=float, default=1.0, help=f"per run (at most {MOST_MESSAGES:,} frames)")
    parser.add_argument("--round-trips", type=positive, default=20_000)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--baseline", choices=CONTENDERS, default="asyncio", help="what the ratios are to")
    parser.add_argument("--congestion", default="cubic", help="TCP congestion control of all sockets")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run and the medians there")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    settings = parser.parse_args(arguments)
    settings.cores = pick_cores()
    settings.congestion = pick_congestion(settings.congestion)
    settings.default_malloc = False
    for name in [name for name in settings.only if unavailable(name)]:
        print(f"skipped {name}: {unavailable(name)}", file=sys.stderr)
        settings.only.remove(name)
    return settings


def main(arguments: list[str] | None = None) -> int:
    """Compare, print, and return 1 if a run failed or nothing could run."""
    settings = read_settings(arguments)
    if not settings.only:
        return 1
    circumstances = describe(settings)
    outcomes, failures = asyncio.run(compare(settings))
    pipelined = [run for run in outcomes if run.size != ECHOED]
    rows = summarise(pipelined, settings.baseline)
    print("; ".join(f"{name}: {value}" for name, value in circumstances.items()), end="\n\n")
    if rows:
        print(table(rows, list(CONTENDERS), settings.baseline, settings.markdown), end="\n\n")
    echoed = [run for run in outcomes if run.size == ECHOED]
    print(round_trips(echoed, list(CONTENDERS), settings.baseline, settings.markdown))
    if settings.json:
        document: dict[str, Any] = {"circumstances": circumstances, "baseline": settings.baseline}
        document |= {"failures": failures} | as_json(outcomes, rows)
        settings.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
