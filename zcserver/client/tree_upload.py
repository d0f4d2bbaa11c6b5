"""A local directory, with all that is in it, to one of the server."""

import contextlib
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio
import anyio.to_thread

from zcserver.errors import StreamResetError
from zcserver.file_protocol import EXISTS, NOT_A_DIRECTORY, Entry, escape, mtime_of, unescape
from zcserver.pace import Pace
from zcserver_protocol.errors import ErrorCode

from .local_tree import LocalEntry, parents, walk
from .place import Place
from .progress import TreeReport
from .tree import TreeOptions, holding, in_the_way, noting, unlisted, workers
from .upload import upload

if TYPE_CHECKING:
    from .client import Client

_ENTRIES: Final = 500  # looked at per thread hop
_in_thread = anyio.to_thread.run_sync


class _Job(NamedTuple):
    name: str
    entry: LocalEntry


class TreeUpload:
    """Call ``run`` once."""

    def __init__(self, client: "Client", pace: Pace, source: Path, path: str, options: TreeOptions) -> None:
        self._client = client
        self._pace = pace
        self._place = Place(source)
        self._path = path
        self._remote = path.rstrip("/")
        self._options = options
        self._report = options.report
        self._scope = anyio.CancelScope()
        self._there: dict[str, Entry] = {}  # what the server has, by relative local path
        self._wanted: set[str] = set()
        self._touched: set[str] = set()  # folders in which something was done
        self._made: set[str] = set()  # folders
        self._left_out = "/"  # the folder whose content is being left out; no path begins with a slash
        self._folders: list[LocalEntry] = []

    async def run(self) -> TreeReport:
        """Send what is to be sent, then remove, then set the folders' times."""
        try:
            return await self._run()
        finally:
            self._place.close()

    async def _run(self) -> TreeReport:
        report = self._report
        top = await _in_thread(self._place.open_top)
        entries = await _in_thread(walk, self._place, self._options.select)
        async with workers(self._options.jobs, self._send) as (jobs, self._scope):
            with noting(report, self._path, self._scope):
                await self._begin()
                while page := await _in_thread(_page, entries):
                    for entry in page:
                        with noting(report, self._name(entry.path), self._scope):
                            if await self._prepare(entry):
                                self._options.progress.expect(1, entry.size)
                                await jobs.send(_Job(self._name(entry.path), entry))
        complete = not report.failures
        with noting(report, self._path, self._scope):
            if self._options.delete and complete:
                await self._delete()
            if not self._options.dry_run and complete:
                self._folders.insert(0, LocalEntry("", "directory", 0, mtime_of(top)))
                await self._set_times()
        return report

    def _name(self, path: str) -> str:
        return f"{self._remote}/{escape(os.fsencode(path))}" if path else self._remote or "/"

    async def _begin(self) -> None:
        """Learn what is there; make sure of the top directory."""
        if self._options.update:
            try:
                async with contextlib.aclosing(self._client.list(self._path, True)) as entries:
                    async for entry in entries:
                        path = os.fsdecode(unescape(entry.path))
                        self._there[path] = entry
                        if entry.error and not self._options.select.excludes(path):
                            name = self._name(path)
                            self._report.failures.append((name, unlisted(name, entry)))
            except StreamResetError as error:
                if error.code != ErrorCode.NOT_FOUND:
                    raise
            else:
                status = await self._client.stat(self._path)
                self._there[""] = Entry("", "directory", 0, status.mtime_ns)
                return
        if self._remote:
            await self._make_top()

    async def _make_top(self) -> None:
        above = self._remote.rpartition("/")[0] or "/"
        try:
            if not self._options.dry_run:
                await self._client.mkdir(self._remote)
                self._touched.add("")
            elif (await self._client.stat(above)).type != "directory":
                raise StreamResetError(NOT_A_DIRECTORY, f"{above} is no directory")
        except StreamResetError as error:
            if error.code != ErrorCode.NOT_FOUND:
                raise
            raise StreamResetError(error.code, f"no such directory: {above}: make it first") from error

    async def _prepare(self, entry: LocalEntry) -> bool:
        """Make a folder; True for a file that is to be sent."""
        options = self._options
        self._wanted.add(entry.path)
        if entry.path.startswith(self._left_out):
            return False
        if entry.error is not None:
            raise entry.error
        if entry.type == "directory":
            if options.select.all_included:
                await self._make_folder(entry.path)
                self._folders.append(entry)
            return False
        if entry.type != "file":
            self._report.skipped.append(self._name(entry.path))
            return False
        if not options.select.includes(entry.path):
            return False
        if not options.select.all_included:
            for parent in reversed(list(parents(entry.path))):
                await self._make_folder(parent)
        there = self._there.get(entry.path)
        if there is not None and there.type != "file":
            await self._make_room(entry.path, there)
        elif there is not None and (there.size, there.mtime_ns) == (entry.size, entry.mtime_ns):
            self._report.unchanged += 1
            return False
        return True

    async def _make_folder(self, path: str) -> None:
        """Make it in a folder that is there, unless it is there, too."""
        there = self._there.get(path)
        if path in self._made or (there is not None and there.type == "directory"):
            return
        try:
            if there is not None:
                await self._make_room(path, there)
            if not self._options.dry_run:
                await self._client.mkdir(self._name(path))
        except StreamResetError:
            self._left_out = f"{path}/"  # one failure is enough
            raise
        self._made.add(path)
        self._touched.update((path, os.path.dirname(path)))

    async def _make_room(self, path: str, there: Entry) -> None:
        """Remove what is there, if all of it may be: something else is due in its place."""
        if not self._options.delete:
            raise StreamResetError(EXISTS, f"{self._name(path)} {in_the_way(there.type)}")
        below = [other for other in reversed(self._there) if other.startswith(f"{path}/")]
        for other in (*below, path):
            if self._there[other].error:
                raise unlisted(self._name(other), self._there[other])
            if other != path and not self._removable(other):
                raise StreamResetError(EXISTS, f"{self._name(path)} {holding(other)}")
        for other in (*below, path):
            await self._remove(other)
            del self._there[other]

    async def _send(self, job: _Job) -> None:
        options, report = self._options, self._report
        with noting(report, job.name, self._scope):
            nbytes = job.entry.size
            if not options.dry_run:
                done = await upload(
                    self._client.connection,
                    self._pace,
                    self._place.top / job.entry.path,
                    job.name,
                    mtime_ns=None,
                    create=False,
                    validator=None,
                    verify=options.verify,
                    progress=options.progress,
                    expected=True,
                    open_file=lambda _, flags: self._place.open(job.entry.path, flags),
                )
                nbytes = done.nbytes
            self._touched.add(os.path.dirname(job.entry.path))
            report.files += 1
            report.nbytes += nbytes
            report.transferred.append(job.name)

    async def _delete(self) -> None:
        """Remove what is not here, deepest first. What is excluded, or not included, stays."""
        kept: set[str] = set()
        for path in sorted(self._there, key=os.fsencode, reverse=True):
            if path in self._wanted or path == "" or path in kept or not self._removable(path):
                kept.update(parents(path))
            else:
                await self._remove(path)

    def _removable(self, path: str) -> bool:
        """Whether what the server has there is meant by the selection."""
        select = self._options.select
        meant = self._there[path].type == "directory" or select.includes(path)
        return meant and not select.excludes(path)

    async def _remove(self, path: str) -> None:
        """Remove a file, a link or an empty directory."""
        name = self._name(path)
        if not self._options.dry_run:
            try:
                await self._client.remove(name)
            except StreamResetError as error:
                if error.code != ErrorCode.NOT_FOUND:
                    raise
        self._touched.add(os.path.dirname(path))
        self._report.removed += 1
        self._report.deleted.append(name)

    async def _set_times(self) -> None:
        """Deepest first; only where the time differs, or something was done in the folder."""
        for folder in reversed(self._folders):
            there = self._there.get(folder.path)
            if folder.path in self._touched or there is None or there.mtime_ns != folder.mtime_ns:
                await self._client.mkdir(self._name(folder.path), mtime_ns=folder.mtime_ns)


def _page(entries: Iterator[LocalEntry]) -> list[LocalEntry]:
    return list(islice(entries, _ENTRIES))
