"""Progress of a transfer on a terminal: a line for each large file under way, one for all together."""

import contextlib
from types import TracebackType
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from zcserver.client import Progress
from zcserver.errors import printable

from .options import rate

_STEP: Final = 1 << 20  # drawing costs more than receiving: tell rich at most once per MiB
_LARGE: Final = 16 << 20  # smaller files come and go too fast to be read
_LINES: Final = 6
_LABEL: Final = 20


class _Rate(ProgressColumn):
    """In the units of everything else here; rich's own column counts in thousands."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else rate(int(speed), 1.0), style="progress.data.speed")


class ProgressBars(Progress):
    """Bars on stderr while its context lasts.

    A line that was shown stays until the end, for the next file: rich leaves rubbish on the terminal when
    its display becomes shorter.
    """

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            DownloadColumn(binary_units=True),
            _Rate(),
            TimeRemainingColumn(compact=True),
        )
        self._bars = Bars(*columns, console=Console(stderr=True), transient=True, expand=True)
        self._all = self._bars.add_task("", total=None, visible=False)  # until there is something
        self._each: dict[str, TaskID] = {}
        self._idle: list[TaskID] = []
        self._untold: dict[TaskID, int] = {}
        self._files = self._done = self._total = 0

    def __enter__(self) -> "ProgressBars":
        with contextlib.suppress(OSError):
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # a terminal that has gone is no failure of the transfer
            self._bars.stop()

    def expect(self, files: int, nbytes: int) -> None:
        self._files += files
        self._total += nbytes
        # Not by `update`, which forgets the speed with every new total.
        self._bars.tasks[0].total = self._total
        self._bars.update(self._all, description=self._in_all(), visible=True)

    def started(self, path: str, size: int, done: int) -> None:
        name = printable(path.rstrip("/").rpartition("/")[2])
        label = name if len(name) <= _LABEL else "…" + name[1 - _LABEL :]
        if self._files == 1:
            self._bars.update(self._all, description=label)
        elif size >= _LARGE and self._idle:
            task = self._each[path] = self._idle.pop()
            self._bars.reset(task, description=label, total=size, completed=done)
        elif size >= _LARGE and len(self._each) < _LINES:
            self._each[path] = self._bars.add_task(label, total=size, completed=done)
        self._bars.advance(self._all, done)

    def moved(self, path: str, nbytes: int) -> None:
        self._advance(self._all, nbytes)
        if path in self._each:
            self._advance(self._each[path], nbytes)

    def _advance(self, task: TaskID, nbytes: int) -> None:
        untold = self._untold.get(task, 0) + nbytes
        if untold >= _STEP:
            self._bars.advance(task, untold)
            untold = 0
        self._untold[task] = untold

    def finished(self, path: str) -> None:
        self._done += 1
        untold = self._untold.pop(self._all, 0)
        if self._files > 1:
            self._bars.update(self._all, description=self._in_all())
        self._bars.advance(self._all, untold)
        self.failed(path)

    def failed(self, path: str) -> None:
        task = self._each.pop(path, None)
        if task is not None:
            self._untold.pop(task, None)
            self._idle.append(task)

    def _in_all(self) -> str:
        return f"{self._done}/{self._files} files"
