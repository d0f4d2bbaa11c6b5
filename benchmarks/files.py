"""Compare file servers: one large file and many small ones, all from the page cache. See README.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.compare import pick_congestion, pick_cores, positive, processor
from benchmarks.file_results import Fetched, as_json, summarise, table
from benchmarks.file_servers import ROOT, SERVERS, RunError, running
from benchmarks.side import PAGE
from benchmarks.stamped_files import Job, create

_LARGEST_SMALL = 1 << 20


def fetch(name: str, job: Job, folder: Path, settings: argparse.Namespace) -> dict[str, Any]:
    """Start the server, fetch the job, stop the server; return what the receiver measured."""
    with tempfile.TemporaryDirectory(prefix="server-", dir=settings.place) as own:
        core, receiver_core = settings.cores
        with running(name, folder, Path(own), core, settings.congestion) as (server, port):
            options = {"port": port, "server": server, "core": receiver_core, **job._asdict()}
            command = [sys.executable, "-m", "benchmarks.file_receiver", SERVERS[name].protocol]
            command += [f"--{option.replace('_', '-')}={value}" for option, value in options.items()]
            command.append(f"--congestion={settings.congestion}")
            try:
                done = subprocess.run(
                    command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=settings.timeout
                )
            except subprocess.SubprocessError as error:
                complaint = (Path(own) / "stderr").read_text(errors="replace").strip()[-500:]
                raise RunError(f"{error}; the server said: {complaint or 'nothing'}") from error
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def compare(jobs: list[Job], settings: argparse.Namespace) -> tuple[list[Fetched], list[str]]:
    """All rounds; the order rotates, so that nobody always runs after the same neighbour."""
    folders: dict[tuple[int, int], Path] = {}
    for job in jobs:
        if (job.files, job.size) not in folders:
            folder = folders[job.files, job.size] = settings.place / f"{job.files}x{job.size}"
            create(folder, job.files, job.size)
    runs: list[Fetched] = []
    failures: list[str] = []
    for number in range(settings.rounds):
        turn = number % len(settings.only)
        for job in jobs:
            for name in settings.only[turn:] + settings.only[:turn]:
                try:
                    result = fetch(name, job, folders[job.files, job.size], settings)
                except RunError as error:
                    failures.append(f"round {number + 1}, {job}, {name}: {error}")
                    print(failures[-1], file=sys.stderr)
                    continue
                runs.append(Fetched(name, job, number, **result))
        print(f"round {number + 1} of {settings.rounds} done", file=sys.stderr)
    return runs, failures


def describe(settings: argparse.Namespace) -> dict[str, Any]:
    """The circumstances that belong beside every number."""
    return {
        "kernel": platform.release(),
        "processor": processor(),
        "python": platform.python_version(),
        **settings.versions,
        "server core": settings.cores[0],
        "receiver core": settings.cores[1],
        "congestion control": settings.congestion,
        "load before": round(os.getloadavg()[0], 2),
        "rounds": settings.rounds,
    }


def installed(names: list[str]) -> dict[str, str]:
    """Those of `names` that can run here, with their versions; a line says why the others cannot."""
    versions = {}
    for name in names:
        try:
            versions[name] = SERVERS[name].version()
        except RunError as error:
            print(f"skipped {name}: {error}", file=sys.stderr)
    return versions


def parse_size(text: str) -> int:
    """Bytes of `65536` or `64KiB`."""
    number = text.lower().removesuffix("ib")
    size = int(number.rstrip("k")) * (1 << 10 if number.endswith("k") else 1)
    if not 0 < size <= _LARGEST_SMALL or size % PAGE:
        raise argparse.ArgumentTypeError(f"{text}: small files have multiples of 4 KiB, at most 1 MiB")
    return size


def read_settings(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.files", description=__doc__)
    parser.add_argument("--large-mib", type=int, default=1024, help="MiB of the large file; 0: none")
    parser.add_argument("--passes", type=positive, default=3, help="how often a run fetches the large file")
    parser.add_argument("--small-files", type=int, default=10_000, help="how many small files; 0: none")
    parser.add_argument("--small-size", type=parse_size, default=64 << 10, help="their size, as 64KiB")
    parser.add_argument("--in-flight", nargs="+", type=positive, default=[1, 16], help="requests under way")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--only", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--baseline", choices=SERVERS, default="nginx", help="what the ratios are to")
    parser.add_argument("--congestion", default="cubic", help="TCP congestion control of all sockets")
    parser.add_argument("--dir", type=Path, help="where to put the files: a disk's file system, no tmpfs")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run and the medians there")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    settings = parser.parse_args(arguments)
    settings.cores = pick_cores()
    settings.congestion = pick_congestion(settings.congestion)
    settings.versions = installed(settings.only)
    settings.only = list(settings.versions)
    return settings


def jobs_of(settings: argparse.Namespace) -> list[Job]:
    jobs = []
    if settings.large_mib:
        jobs.append(Job(files=1, size=settings.large_mib << 20, in_flight=1, passes=settings.passes))
    if settings.small_files:
        jobs += [
            Job(settings.small_files, settings.small_size, in_flight, passes=1)
            for in_flight in settings.in_flight
        ]
    return jobs


def main(arguments: list[str] | None = None) -> int:
    """Compare, print, and return 1 if a run failed or nothing could run."""
    settings = read_settings(arguments)
    jobs = jobs_of(settings)
    if not settings.only or not jobs:
        return 1
    # Ended by a signal, the servers and the files go all the same.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    circumstances = describe(settings)
    with tempfile.TemporaryDirectory(prefix="zcserver-bench-", dir=settings.dir) as place:
        settings.place = Path(place)
        runs, failures = compare(jobs, settings)
    rows = summarise(runs, settings.baseline)
    print("; ".join(f"{name}: {value}" for name, value in circumstances.items()), end="\n\n")
    print(table(rows, jobs, list(SERVERS), settings.baseline, settings.markdown))
    for run in runs:
        for role, congestion in (("server", run.server_congestion), ("receiver", run.receiver_congestion)):
            if congestion != settings.congestion:
                print(f"not comparable: round {run.round + 1}, the {role} of {run.server} had {congestion}")
    if settings.json:
        document = {"circumstances": circumstances, "baseline": settings.baseline, "failures": failures}
        settings.json.write_text(json.dumps(document | as_json(runs, rows), indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
