"""``zcserver doctor``: what this machine can do, as a table or as JSON."""

from rich.console import Console
from rich.table import Table

from zcserver.kernel.doctor import report, to_json
from zcserver.kernel.probe import probe

from .exits import ExitCode


def examine(as_json: bool) -> ExitCode:
    """Try everything once and print what was found."""
    capabilities = probe()
    if as_json:
        print(to_json(capabilities))
        return ExitCode.OK
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("what", "found", "so"):
        table.add_column(heading, overflow="fold")
    for label, value, meaning in report(capabilities):
        table.add_row(label, value, meaning)
    Console(markup=False, highlight=False).print(table)
    return ExitCode.OK
