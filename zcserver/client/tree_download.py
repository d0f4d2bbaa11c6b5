"""A directory of the server, with all that is in it, to a local one."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio
import anyio.to_thread

from zcserver.errors import TransferError
from zcserver.file_protocol import Entry
from zcserver.pace import Pace

from .download import Download, beginning_of
from .local_tree import differs, status_of, walk
from .partial import Beginning, PartialFile, is_temporary
from .progress import TreeReport
from .storing import Storing
from .tree import TreeOptions, local_path, noting, workers

if TYPE_CHECKING:
    from .client import Client

_in_thread = anyio.to_thread.run_sync


class _Job(NamedTuple):
    name: str
    size: int
    partial: PartialFile
    beginning: Beginning | None


class TreeDownload:
    """Call ``run`` once. What happens on disk happens in threads, a page of the listing at a time."""

    def __init__(self, client: "Client", pace: Pace, path: str, target: Path, options: TreeOptions) -> None:
        self._client = client
        self._pace = pace
        self._path = path
        self._remote = path.rstrip("/")
        self._target = target
        self._options = options
        self._report = TreeReport()
        self._storing = Storing()
        self._scope = anyio.CancelScope()
        self._folders: list[tuple[Path, int]] = []
        self._listed: set[str] = set()  # with ``delete``: what may stay
        self._excluded = "/"  # the folder whose content is being left out; no path begins with a slash

    async def run(self) -> TreeReport:
        """Fetch what is to be fetched, then remove, then set the folders' times."""
        report = self._report
        async with workers(self._options.jobs, self._fetch) as (jobs, self._scope):
            with noting(report, self._path, self._scope):
                async with contextlib.aclosing(self._client.pages(self._path, True)) as pages:
                    async for page in pages:
                        for job in await _in_thread(self._prepare, page):
                            self._options.progress.expect(1, job.size)
                            await jobs.send(job)
                if self._options.select.all_included:
                    await _in_thread(self._make_folder, self._target)  # for a tree without entries
                    status = await self._client.stat(self._path)
                    self._folders.insert(0, (self._target, status.mtime_ns))
        complete = not report.failures
        with noting(report, self._path, self._scope):
            if self._options.delete and complete:
                await _in_thread(self._delete)
            if not self._options.dry_run:
                await _in_thread(self._set_times)
        return report

    async def _fetch(self, job: _Job) -> None:
        options, report = self._options, self._report
        with noting(report, job.name, self._scope):
            if not options.dry_run:
                download = Download(
                    self._client.connection,
                    self._pace,
                    job.name,
                    job.partial,
                    job.beginning,
                    options.verify and not options.stable,
                    options.progress,
                    self._storing,
                    options.stable,
                )
                if (await download.run(expected=True)).changed:
                    report.changed.append(job.name)
            report.files += 1
            report.nbytes += job.size
            report.transferred.append(job.name)

    # -- in threads --------------------------------------------------------------------------------------

    def _prepare(self, page: tuple[Entry, ...]) -> list[_Job]:
        """Make the folders of a page of the listing; the files that are to be fetched."""
        if self._options.select.all_included:
            self._make_folder(self._target)
        jobs: list[_Job] = []
        for entry in page:
            name = f"{self._remote}/{entry.path}"
            with noting(self._report, name, self._scope):
                jobs += self._prepare_one(entry, name)
        return jobs

    def _prepare_one(self, entry: Entry, name: str) -> Iterator[_Job]:
        relative = local_path(entry.path)
        if str(relative).startswith(self._excluded):
            return
        if self._options.select.excludes(str(relative)):
            self._excluded = f"{relative}/"
            return
        target = self._target / relative
        if self._options.delete:
            self._listed.add(str(relative))
        if entry.type == "directory":
            if self._options.select.all_included:
                self._make_folder(target)
                self._folders.append((target, entry.mtime_ns))
        elif entry.type != "file" or is_temporary(relative.name):
            self._report.skipped.append(name)
        elif self._options.select.includes(str(relative)):
            yield from self._job(entry, name, target)
        if entry.error:
            raise TransferError(f"{name}: the server cannot list it: {entry.error}")

    def _job(self, entry: Entry, name: str, target: Path) -> Iterator[_Job]:
        options = self._options
        if options.update and not differs(status_of(target), entry.size, entry.mtime_ns):
            self._report.unchanged += 1
        elif options.dry_run:
            yield _Job(name, entry.size, PartialFile(target), None)
        else:
            if not options.select.all_included:
                target.parent.mkdir(parents=True, exist_ok=True)
            if options.delete and target.is_dir() and not target.is_symlink():
                self._remove(target)
            partial, beginning = beginning_of(
                target, options.verify or options.stable, options.restart or options.stable
            )
            if beginning is not None and beginning.origin.validator != entry.validator and options.update:
                beginning = None  # a sync wants the newest state, not the rest of an older one
            yield _Job(name, entry.size, partial, beginning)

    def _make_folder(self, path: Path) -> None:
        if self._options.dry_run:
            return
        if self._options.delete and os.path.lexists(path) and not path.is_dir():
            self._remove(path)
        path.mkdir(exist_ok=True)

    def _delete(self) -> None:
        """Remove what the server does not have, deepest first; what is excluded stays."""
        if not self._target.is_dir():
            return
        for entry in reversed(list(walk(self._target, self._options.select, temporary=True))):
            path = self._target / entry.path
            with noting(self._report, str(path), self._scope):
                if entry.error is not None:
                    raise entry.error
                if entry.path not in self._listed:
                    self._remove(path, os.rmdir)

    def _remove(self, path: Path, remove_folder: Callable[[Path], object] = shutil.rmtree) -> None:
        if not self._options.dry_run:
            try:
                if path.is_dir() and not path.is_symlink():
                    remove_folder(path)
                else:
                    path.unlink()
            except OSError as error:
                if error.errno == errno.ENOTEMPTY:  # something excluded is in it
                    return
                raise
        self._report.removed += 1
        self._report.deleted.append(str(path))

    def _set_times(self) -> None:
        """Deepest first, since setting up a folder's content changes its time."""
        for path, mtime_ns in reversed(self._folders):
            with noting(self._report, str(path), self._scope):
                if path.stat().st_mtime_ns != mtime_ns:
                    os.utime(path, ns=(mtime_ns, mtime_ns))
