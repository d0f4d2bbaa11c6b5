"""What the runs of `files.py` measured, and its medians."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

from benchmarks.results import GIB, human_size, render
from benchmarks.stamped_files import Job


class Fetched(NamedTuple):
    """One run: what the receiver reported. `server_cpu` and `receiver_cpu` are processor seconds, user and
    system, of all the processes of that side."""

    server: str
    job: Job
    round: int
    nbytes: int
    seconds: float
    server_cpu: float
    receiver_cpu: float
    server_congestion: str
    receiver_congestion: str


Measure = Callable[[Fetched], float]


def files_per_second(run: Fetched) -> float:
    return run.job.files * run.job.passes / run.seconds


def rate(run: Fetched) -> float:
    """GiB/s."""
    return run.nbytes / GIB / run.seconds


def server_cpu(run: Fetched) -> float:
    """Processor seconds per GiB."""
    return run.server_cpu / (run.nbytes / GIB)


def receiver_cpu(run: Fetched) -> float:
    """Processor seconds per GiB."""
    return run.receiver_cpu / (run.nbytes / GIB)


MEASURES: dict[str, Measure] = {
    "files_per_second": files_per_second,
    "rate": rate,
    "server_cpu": server_cpu,
    "receiver_cpu": receiver_cpu,
}


class Row(NamedTuple):
    """One server at one job: medians over the rounds, by the names of `MEASURES`.

    `ratios` are the medians of each round's ratio to the baseline in the same round; empty where no round
    has both. `low` and `high` are the extremes of the rate in GiB/s.
    """

    job: Job
    server: str
    rounds: int
    low: float
    high: float
    medians: dict[str, float]
    ratios: dict[str, float]


def summarise(runs: list[Fetched], baseline: str) -> list[Row]:
    """One row for each job and server, in the order of their first runs."""
    base = {(run.job, run.round): run for run in runs if run.server == baseline}
    groups: dict[tuple[Job, str], list[Fetched]] = {}
    for run in runs:
        groups.setdefault((run.job, run.server), []).append(run)
    return [_row(group, base) for group in groups.values()]


def _row(runs: list[Fetched], base: dict[tuple[Job, int], Fetched]) -> Row:
    pairs = [(run, base[run.job, run.round]) for run in runs if (run.job, run.round) in base]
    rates = [rate(run) for run in runs]
    return Row(
        runs[0].job,
        runs[0].server,
        len(runs),
        min(rates),
        max(rates),
        {name: median(map(measure, runs)) for name, measure in MEASURES.items()},
        {
            name: median(measure(run) / measure(other) for run, other in pairs)
            for name, measure in MEASURES.items()
            if pairs
        },
    )


def human_job(job: Job) -> str:
    size = f"{job.size // GIB} GiB" if job.size % GIB == 0 else human_size(job.size)
    return f"{job.files:,} × {size}, {job.in_flight} in flight"


def table(rows: list[Row], jobs: list[Job], servers: list[str], baseline: str, markdown: bool) -> str:
    """The rows as text, in the order of `jobs` and `servers`; `× baseline` are the ratios."""
    against = f"× {baseline}"
    head = ["files", "server", "files/s", "GiB/s", "min–max", against]
    head += ["server s/GiB", against, "receiver s/GiB"]
    ordered = sorted(rows, key=lambda row: (jobs.index(row.job), servers.index(row.server)))
    return render([head, *map(_cells, ordered)], markdown)


def _cells(row: Row) -> list[str]:
    medians = row.medians
    return [
        human_job(row.job),
        row.server,
        f"{medians['files_per_second']:,.0f}" if row.job.files > 1 else "",
        f"{medians['rate']:.2f}",
        f"{row.low:.2f}–{row.high:.2f}",
        _ratio(row, "rate"),
        f"{medians['server_cpu']:.3f}",
        _ratio(row, "server_cpu"),
        f"{medians['receiver_cpu']:.3f}",
    ]


def _ratio(row: Row, name: str) -> str:
    return f"{row.ratios[name]:.2f}" if row.ratios else "–"


def as_json(runs: list[Fetched], rows: list[Row]) -> dict[str, Any]:
    """Runs and medians as plain lists of dictionaries."""

    def plain(entry: Fetched | Row) -> dict[str, Any]:
        return entry._asdict() | {"job": entry.job._asdict()}

    return {"summary": [plain(row) for row in rows], "runs": [plain(run) for run in runs]}
