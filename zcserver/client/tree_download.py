"""A directory of the server, with all that is in it, to a local one."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio
import anyio.to_thread

from zcserver.file_protocol import STAGING, Entry
from zcserver.pace import Pace

from .download import Download
from .local_tree import LocalEntry, differs, parents, type_of, walk
from .partial import Beginning, PartialFile, is_temporary, temporaries_of
from .place import Place
from .progress import TreeReport
from .storing import Storing
from .tree import TreeOptions, holding, in_the_way, local_path, noting, noting_one, unlisted, workers

if TYPE_CHECKING:
    from .client import Client

_TOP: Final = Path()  # as a relative path
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
        self._place = Place(target)
        self._options = options
        self._report = options.report
        self._storing = Storing()
        self._scope = anyio.CancelScope()
        self._folders: list[tuple[Path, int]] = []
        self._listed: set[str] = set()  # with ``delete``: what may stay
        self._planned: set[str] = set()  # what would be gone, if this were no dry run
        self._made: dict[Path, bool] = {}  # what ``_make_folder`` has said of the last one and its parents
        self._left_out = "/"  # the folder that could not be made; no path begins with a slash

    async def run(self) -> TreeReport:
        """Fetch what is to be fetched, then remove, then set the folders' times."""
        try:
            return await self._run()
        finally:
            self._place.close()

    async def _run(self) -> TreeReport:
        report = self._report
        async with workers(self._options.jobs, self._fetch) as (jobs, self._scope):
            with noting(report, self._path, self._scope):
                async with contextlib.aclosing(self._client.pages(self._path, True)) as pages:
                    async for page in pages:
                        for job in await _in_thread(self._prepare, page):
                            self._options.progress.expect(1, job.size)
                            await jobs.send(job)
                if self._options.select.all_included:
                    await _in_thread(self._make_folder, _TOP)  # for a tree without entries
                    status = await self._client.stat(self._path)
                    self._folders.insert(0, (_TOP, status.mtime_ns))
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
            nbytes = job.size
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
                done = await download.run(expected=True)
                nbytes = done.nbytes
                if done.changed:
                    report.changed.append(job.name)
            report.files += 1
            report.nbytes += nbytes
            report.transferred.append(job.name)

    # -- in threads --------------------------------------------------------------------------------------

    def _prepare(self, page: tuple[Entry, ...]) -> list[_Job]:
        """Make the folders of a page of the listing; the files that are to be fetched."""
        if self._options.select.all_included:
            self._make_folder(_TOP)
        jobs: list[_Job] = []
        for entry in page:
            name = f"{self._remote}/{entry.path}"
            with noting_one(self._report, name):
                jobs += self._prepare_one(entry, name)
        return jobs

    def _prepare_one(self, entry: Entry, name: str) -> Iterator[_Job]:
        relative = local_path(entry.path)
        if str(relative).startswith(self._left_out) or self._options.select.excludes(str(relative)):
            return
        if self._options.delete:
            self._listed.add(str(relative))
        if STAGING in relative.parts or any(map(is_temporary, relative.parts)):
            self._report.skipped.append(name)
        elif entry.type == "directory":
            if self._options.select.all_included:
                self._make_folder(relative)
                if not entry.error:
                    self._folders.append((relative, entry.mtime_ns))
        elif entry.type != "file":
            self._report.skipped.append(name)
        elif self._options.select.includes(str(relative)):
            yield from self._job(entry, name, relative)
        if entry.error:
            raise unlisted(name, entry)

    def _job(self, entry: Entry, name: str, relative: Path) -> Iterator[_Job]:
        options = self._options
        target, path = self._place.top / relative, str(relative)
        there = self._place.status(path) if self._make_folder(relative.parent) else None
        if options.update and not differs(there, entry.size, entry.mtime_ns):
            self._report.unchanged += 1
            return
        if there is not None and not stat.S_ISREG(there.st_mode):
            self._make_room(relative, there)
        if options.dry_run:
            self._planned.update(map(str, temporaries_of(target)))
            yield _Job(name, entry.size, PartialFile(target), None)
            return
        partial = PartialFile(target, options.verify or options.stable, lambda: self._place.folder_of(path))
        beginning = partial.find()
        if options.restart or options.stable:
            beginning = None
        if beginning is not None and beginning.origin.validator != entry.validator and options.update:
            beginning = None  # a sync wants the newest state, not the rest of an older one
        yield _Job(name, entry.size, partial, beginning)

    def _make_folder(self, folder: Path) -> bool:
        """Make it, its parents first, unless it is there. False where a dry run has not made it."""
        if folder not in self._made:
            way = (*reversed(folder.parents), folder)
            self._made = {path: self._made[path] for path in way if path in self._made}
            for path in way:
                if path not in self._made:
                    try:
                        self._made[path] = self._make_one(path)
                    except OSError:
                        self._left_out = f"{path}/"  # one failure is enough
                        raise
        return self._made[folder]

    def _make_one(self, folder: Path) -> bool:
        """As ``_make_folder``, for one whose parent has been seen to."""
        if folder == _TOP:
            return self._make_top()
        there = self._place.status(str(folder)) if self._made[folder.parent] else None
        if there is not None:
            if stat.S_ISDIR(there.st_mode):
                return True
            self._make_room(folder, there)
        if not self._options.dry_run:
            with self._place.folder_of(str(folder)) as parent:
                os.mkdir(folder.name, dir_fd=parent)
        return not self._options.dry_run

    def _make_top(self) -> bool:
        """As ``_make_folder``, for the target itself, which may be a link."""
        top, with_parents = self._place.top, not self._options.select.all_included
        if not self._options.dry_run or os.path.lexists(top):
            top.mkdir(parents=with_parents, exist_ok=True)
        else:
            above = top.parent
            while with_parents and not os.path.lexists(above):
                above = above.parent
            os.stat(f"{above}/")  # raises what mkdir would
        return self._place.exists()

    def _make_room(self, relative: Path, there: os.stat_result) -> None:
        """Remove what is there, if all of it may be: something else is due in its place."""
        path, kind = self._place.top / relative, type_of(there.st_mode)
        if not self._options.delete:
            raise FileExistsError(errno.EEXIST, in_the_way(kind), str(path))
        below = self._walk(str(relative)) if kind == "directory" else []
        for entry in below:
            if entry.error is not None:
                raise entry.error
            if not self._is_meant(entry):
                raise FileExistsError(errno.EEXIST, holding(entry.path), str(path))
        for entry in below:
            self._remove(entry)
        self._remove(LocalEntry(str(relative), kind))

    def _delete(self) -> None:
        """Remove what the server does not have; what is excluded, or not included, stays."""
        if not self._place.exists():
            return
        planned = self._planned.union(self._report.deleted)
        kept: set[str] = set()
        for entry in self._walk():
            path = str(self._place.top / entry.path)
            with noting_one(self._report, path):
                if entry.error is not None:
                    raise entry.error
                if path in planned:
                    continue
                if self._is_meant(entry) and entry.path not in self._listed and entry.path not in kept:
                    self._remove(entry)
                    continue
            kept.update(parents(entry.path))

    def _walk(self, folder: str = "") -> list[LocalEntry]:
        """Everything in the target, or in a folder of it, deepest first."""
        entries = list(walk(self._place, self._options.select, everything=True, folder=folder))
        entries.reverse()
        return entries

    def _is_meant(self, entry: LocalEntry) -> bool:
        """Whether what is in the target may be removed, as far as the selection goes."""
        return not entry.left_out and (entry.type == "directory" or self._options.select.includes(entry.path))

    def _remove(self, entry: LocalEntry) -> None:
        """Remove a file, a link or an empty directory."""
        if not self._options.dry_run:
            with self._place.folder_of(entry.path) as folder:
                remove = os.rmdir if entry.type == "directory" else os.unlink
                remove(os.path.basename(entry.path), dir_fd=folder)
        self._report.removed += 1
        self._report.deleted.append(str(self._place.top / entry.path))

    def _set_times(self) -> None:
        """Deepest first, since setting up a folder's content changes its time."""
        for relative, mtime_ns in reversed(self._folders):
            path = str(relative)
            name = os.path.basename(path)  # (of the top a dot, too)
            with noting_one(self._report, str(self._place.top / path)), self._place.folder_of(path) as folder:
                if os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime_ns != mtime_ns:
                    try:
                        os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=folder, follow_symlinks=False)
                    except OverflowError:
                        words = f"cannot have the server's time, {mtime_ns} ns"
                        raise OSError(errno.EOVERFLOW, words) from None
