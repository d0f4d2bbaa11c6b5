"""Progress of a download on a terminal."""

from types import TracebackType
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from zcserver.client import Progress

_STEP: Final = 1 << 20  # drawing costs more than receiving: tell rich at most once per MiB


class ProgressBar(Progress):
    """A bar on stderr while its context lasts; ``visible=False`` shows nothing."""

    def __init__(self, label: str, visible: bool) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
        )
        self._bars = Bars(
            *columns, console=Console(stderr=True), disable=not visible, transient=True, expand=True
        )
        self._label = label if len(label) <= 24 else "…" + label[-23:]
        self._task = self._bars.add_task(self._label, total=None)
        self._files = self._done = 0
        self._total = self._untold = 0

    def __enter__(self) -> "ProgressBar":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def expect(self, files: int, nbytes: int) -> None:
        self._files += files
        self._total += nbytes
        self._bars.update(self._task, total=self._total)

    def received(self, nbytes: int) -> None:
        self._untold += nbytes
        if self._untold >= _STEP:
            self._bars.advance(self._task, self._untold)
            self._untold = 0

    def finished(self, path: str) -> None:
        self._done += 1
        label = f"{self._done}/{self._files} files" if self._files > 1 else self._label
        self._bars.update(self._task, description=label, advance=self._untold)
        self._untold = 0
