"""Run the contenders in turn, round after round, and print the medians. README.md says how to read them."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import platform
import socket
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.results import GIB, Outcome, Side, as_json, human_size, summarise, table
from benchmarks.side import PAGE, Run

ROOT = Path(__file__).parent.parent
CONTENDERS = {
    "raw-splice": "raw_splice",
    "raw-send": "raw_send",
    "asyncio": "asyncio_streams",
    "asyncio-batch": "asyncio_batch",
    "asyncio-buffered": "asyncio_buffered",
    "uvloop": "uvloop_streams",
    "uvloop-batch": "uvloop_batch",
    "uvloop-buffered": "uvloop_buffered",
    "zcserver": "zcserver_messages",
    "zcserver-batch": "zcserver_batch",
    "zcserver-uvloop": "zcserver_uvloop",
    "zcserver-batch-uvloop": "zcserver_batch_uvloop",
    "zcserver-compiled": "zcserver_compiled",
    "zcserver-compiled-uvloop": "zcserver_compiled_uvloop",
}
LARGEST = 2 << 20  # bytes of a message: a region of zcserver's pool
MOST_MESSAGES = 100_000  # so that small messages do not take minutes
# glibc gives memory of more than 128 KiB back to the system at every free, and a StreamReader then spends
# most of its time in page faults (4 to 9 times slower here). Everyone gets the better setting.
KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}


class RunError(Exception):
    """A contender ended without a result; why is what it wrote to standard error."""


def pick_cores() -> tuple[int, int]:
    """Two cores for sender and receiver, not two threads of one core if that can be; (−1, −1): only one."""
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        return -1, -1
    siblings = Path(f"/sys/devices/system/cpu/cpu{first}/topology/core_cpus_list")
    same_core = _core_list(siblings.read_text()) if siblings.exists() else {first}
    return first, next((core for core in others if core not in same_core), others[0])


def _core_list(text: str) -> set[int]:
    cores: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return cores


def pick_congestion(wanted: str) -> str:
    """`wanted`, or `reno` where it is not allowed (see tcp_allowed_congestion_control), or the default."""
    with socket.socket() as sock:
        for name in (wanted, "reno"):
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
            except OSError:
                continue
            break
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()


async def run_once(
    name: str, run: Run, cores: tuple[int, int], environment: dict[str, str]
) -> tuple[Side, Side]:
    """Run sender and receiver of the contender `name`, each on its core, to their ends.

    `run` lacks only port and core. Raises `RunError` if one of the two fails.
    """
    processes: list[asyncio.subprocess.Process] = []

    async def start(role: str, side: Run) -> asyncio.subprocess.Process:
        options = [f"--{option}={value}" for option, value in side._asdict().items()]
        command = (sys.executable, "-m", f"benchmarks.contenders.{CONTENDERS[name]}", role, *options)
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
        return sent, await _result(receiver, "receiver")
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _result(process: asyncio.subprocess.Process, role: str) -> Side:
    out, _ = await process.communicate()
    if process.returncode or not out:
        raise RunError(f"the {role} ended with status {process.returncode} and no result")
    fields = json.loads(out)
    del fields["role"]
    return Side(**fields)


async def compare(settings: argparse.Namespace) -> tuple[list[Outcome], list[str]]:
    """All rounds; the order rotates, so that nobody always runs after the same neighbour."""
    outcomes: list[Outcome] = []
    failures: list[str] = []
    environment = dict(os.environ)
    if not settings.default_malloc:
        environment |= KEEP_FREED_MEMORY
    for number in range(settings.rounds):
        turn = number % len(settings.only)
        for size in settings.sizes:
            messages = max(2, min(int(settings.gib * GIB / size), MOST_MESSAGES))
            run = Run(size, messages, port=0, core=-1, congestion=settings.congestion)
            for name in settings.only[turn:] + settings.only[:turn]:
                where = f"round {number + 1}, {human_size(size)}, {name}"
                try:
                    async with asyncio.timeout(settings.timeout):
                        sent, received = await run_once(name, run, settings.cores, environment)
                except (RunError, TimeoutError) as error:
                    failures.append(f"{where}: {error or f'nothing after {settings.timeout:g} s'}")
                    print(failures[-1], file=sys.stderr)
                    continue
                outcomes.append(Outcome(name, size, number, sent, received))
        print(f"round {number + 1} of {settings.rounds} done", file=sys.stderr)
    return outcomes, failures


def describe(settings: argparse.Namespace) -> dict[str, Any]:
    """The circumstances that belong beside every number."""
    huge = next(iter(_lines("/sys/kernel/mm/transparent_hugepage/enabled")), "[never]")
    return {
        "kernel": platform.release(),
        "processor": processor(),
        "python": platform.python_version(),
        "uvloop": metadata.version("uvloop") if importlib.util.find_spec("uvloop") else None,
        "sender core": settings.cores[0],
        "receiver core": settings.cores[1],
        "congestion control": settings.congestion,
        "huge pages": huge[huge.find("[") + 1 : huge.find("]")],
        "freed memory": "given back" if settings.default_malloc else "kept",
        "load before": round(os.getloadavg()[0], 2),
        "rounds": settings.rounds,
        "GiB per run": settings.gib,
    }


def processor() -> str:
    """The model of this machine's processor."""
    lines = _lines("/proc/cpuinfo")
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def runnable(names: list[str]) -> list[str]:
    """Those of `names` that can run here; a line says why the others cannot."""
    able = []
    for name in names:
        reason = importlib.import_module(f"benchmarks.contenders.{CONTENDERS[name]}").unavailable()
        if reason is None:
            able.append(name)
        else:
            print(f"skipped {name}: {reason}", file=sys.stderr)
    return able


def parse_size(text: str) -> int:
    """Bytes of `65536`, `64KiB`, `64k` or `1MiB`."""
    number = text.lower().removesuffix("ib")
    factor = {"k": 1 << 10, "m": 1 << 20}.get(number[-1:], 1)
    size = int(number.rstrip("km")) * factor
    if not 0 < size <= LARGEST or size % PAGE:
        raise argparse.ArgumentTypeError(f"{text}: sizes are multiples of 4 KiB up to {human_size(LARGEST)}")
    return size


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return int(text)


def read_settings(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    sizes = ["64KiB", "256KiB", "1MiB"]
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=[parse_size(size) for size in sizes])
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--gib", type=float, default=2.0, help="GiB per run (at most 100,000 messages)")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--baseline", choices=CONTENDERS, default="asyncio", help="what the ratios are to")
    parser.add_argument("--congestion", default="cubic", help="TCP congestion control of all sockets")
    parser.add_argument("--default-malloc", action="store_true", help="let glibc give freed memory back")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run and the medians there")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    settings = parser.parse_args(arguments)
    settings.cores = pick_cores()
    settings.congestion = pick_congestion(settings.congestion)
    settings.only = runnable(settings.only)
    return settings


def main(arguments: list[str] | None = None) -> int:
    """Compare, print, and return 1 if a run failed or nothing could run."""
    settings = read_settings(arguments)
    if not settings.only:
        return 1
    circumstances = describe(settings)
    outcomes, failures = asyncio.run(compare(settings))
    rows = summarise(outcomes, settings.baseline)
    print("; ".join(f"{name}: {value}" for name, value in circumstances.items()), end="\n\n")
    print(table(rows, list(CONTENDERS), settings.baseline, settings.markdown))
    for run in outcomes:
        for role, side in (("sender", run.send), ("receiver", run.receive)):
            if side.congestion != settings.congestion:
                print(f"not comparable: the {role} of {run.contender} had {side.congestion}")
    if settings.json:
        document = {"circumstances": circumstances, "baseline": settings.baseline, "failures": failures}
        settings.json.write_text(json.dumps(document | as_json(outcomes, rows), indent=1) + "\n")
    return 1 if failures else 0
