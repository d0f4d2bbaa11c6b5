"""What the runs measured, and its medians."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any, NamedTuple

GIB = 1 << 30


class Side(NamedTuple):
    """What one end reported: bytes and seconds, and the congestion control of its sockets."""

    bytes: int
    seconds: float
    user: float
    system: float
    congestion: str

    @property
    def rate(self) -> float:
        """GiB/s."""
        return self.bytes / GIB / self.seconds

    @property
    def cpu(self) -> float:
        """Processor seconds, user and system, per GiB."""
        return (self.user + self.system) / (self.bytes / GIB)


class Outcome(NamedTuple):
    """One run: one contender, one size (bytes), one round."""

    contender: str
    size: int
    round: int
    send: Side
    receive: Side


class Row(NamedTuple):
    """Medians over the rounds of one contender at one size.

    `rate` is in GiB/s, `low` and `high` its extremes; `send_cpu` and `receive_cpu` are in processor
    seconds per GiB. The ratios are the medians of each round's ratio to the baseline in the same round, and
    None where no round has both.
    """

    size: int
    contender: str
    rounds: int
    rate: float
    low: float
    high: float
    rate_ratio: float | None
    send_cpu: float
    send_cpu_ratio: float | None
    receive_cpu: float
    receive_cpu_ratio: float | None


def summarise(outcomes: Iterable[Outcome], baseline: str) -> list[Row]:
    """One row for each contender and size, in the order of their first runs."""
    outcomes = list(outcomes)
    base = {(run.size, run.round): run for run in outcomes if run.contender == baseline}
    groups: dict[tuple[int, str], list[Outcome]] = {}
    for run in sorted(outcomes, key=lambda run: run.size):
        groups.setdefault((run.size, run.contender), []).append(run)
    return [_row(runs, base) for runs in groups.values()]


def _row(runs: list[Outcome], base: dict[tuple[int, int], Outcome]) -> Row:
    size, contender = runs[0].size, runs[0].contender
    pairs = [(run, base[size, run.round]) for run in runs if (size, run.round) in base]
    rates = [run.receive.rate for run in runs]
    return Row(
        size,
        contender,
        len(runs),
        rate=median(rates),
        low=min(rates),
        high=max(rates),
        rate_ratio=_median_or_none(run.receive.rate / other.receive.rate for run, other in pairs),
        send_cpu=median(run.send.cpu for run in runs),
        send_cpu_ratio=_median_or_none(run.send.cpu / other.send.cpu for run, other in pairs),
        receive_cpu=median(run.receive.cpu for run in runs),
        receive_cpu_ratio=_median_or_none(run.receive.cpu / other.receive.cpu for run, other in pairs),
    )


def _median_or_none(values: Iterable[float]) -> float | None:
    values = list(values)
    return median(values) if values else None


def human_size(nbytes: int) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if nbytes % unit == 0:
            return f"{nbytes // unit} {name}"
    return f"{nbytes} B"


def table(rows: list[Row], order: list[str], baseline: str, markdown: bool) -> str:
    """The rows as text, contenders in `order` under each size; `× baseline` are the ratios."""
    against = f"× {baseline}"
    head = ["size", "contender", "GiB/s", "min–max", against]
    head += ["sender s/GiB", against, "receiver s/GiB", against]
    cells = [head]
    rows = sorted(rows, key=lambda row: (row.size, order.index(row.contender)))
    cells += [_cells(row) for row in rows]
    return render(cells, markdown)


def _cells(row: Row) -> list[str]:
    return [
        human_size(row.size),
        row.contender,
        f"{row.rate:.2f}",
        f"{row.low:.2f}–{row.high:.2f}",
        _ratio(row.rate_ratio),
        f"{row.send_cpu:.3f}",
        _ratio(row.send_cpu_ratio),
        f"{row.receive_cpu:.3f}",
        _ratio(row.receive_cpu_ratio),
    ]


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def render(cells: list[list[str]], markdown: bool) -> str:
    """A table of texts, its head first; the two left columns are names."""
    return _markdown(cells) if markdown else _aligned(cells)


def _markdown(cells: list[list[str]]) -> str:
    rule = ["---", "---"] + ["---:"] * (len(cells[0]) - 2)
    return "\n".join(f"| {' | '.join(line)} |" for line in [cells[0], rule, *cells[1:]])


def _aligned(cells: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for number, line in enumerate(cells):
        left = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        if number and line[0] != cells[number - 1][0]:
            lines.append("")
        lines.append("  ".join(left + right).rstrip())
    return "\n".join(lines)


def as_json(outcomes: list[Outcome], rows: list[Row]) -> dict[str, Any]:
    """Runs and medians as plain lists of dictionaries."""
    runs = []
    for run in outcomes:
        entry = run._asdict()
        entry["send"], entry["receive"] = run.send._asdict(), run.receive._asdict()
        runs.append(entry)
    return {"summary": [row._asdict() for row in rows], "runs": runs}
