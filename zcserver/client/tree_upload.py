"""A local directory, with all that is in it, to one of the server."""

import contextlib
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio
import anyio.to_thread

from zcserver.errors import StreamResetError, TransferError
from zcserver.file_protocol import Entry, escape, unescape
from zcserver.pace import Pace
from zcserver_protocol.errors import ErrorCode

from .local_tree import LocalEntry, walk
from .progress import TreeReport
from .tree import TreeOptions, noting, workers
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
        self._source = source
        self._path = path
        self._remote = path.rstrip("/")
        self._options = options
        self._report = TreeReport()
        self._scope = anyio.CancelScope()
        self._there: dict[str, Entry] = {}  # what the server has, by relative local path
        self._wanted: set[str] = set()
        self._touched: set[str] = set()  # folders in which something was done
        self._folders: list[LocalEntry] = []

    async def run(self) -> TreeReport:
        """Send what is to be sent, then remove, then set the folders' times."""
        report = self._report
        top = await _in_thread(os.stat, self._source)
        entries = await _in_thread(walk, self._source, self._options.select)
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
                self._folders.insert(0, LocalEntry("", "directory", 0, top.st_mtime_ns))
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
                        self._there[os.fsdecode(unescape(entry.path))] = entry
                        if entry.error:
                            raise TransferError(f"the server cannot list {entry.path}: {entry.error}")
            except StreamResetError as error:
                if error.code != ErrorCode.NOT_FOUND:
                    raise
            else:
                status = await self._client.stat(self._path)
                self._there[""] = Entry("", "directory", 0, status.mtime_ns)
                return
        if not self._options.dry_run and self._remote:
            await self._client.mkdir(self._remote)
            self._touched.add("")

    async def _prepare(self, entry: LocalEntry) -> bool:
        """Make a folder; True for a file that is to be sent."""
        options = self._options
        self._wanted.add(entry.path)
        if entry.error is not None:
            raise entry.error
        there = self._there.get(entry.path)
        if entry.type == "directory":
            if options.select.all_included:
                if there is None or there.type != "directory":
                    await self._make_folder(entry.path, there)
                self._folders.append(entry)
            return False
        if entry.type != "file":
            self._report.skipped.append(self._name(entry.path))
            return False
        if not options.select.includes(entry.path):
            return False
        if there is not None and there.type == "file" and (there.size, there.mtime_ns) == (
            entry.size, entry.mtime_ns,
        ):  # fmt: skip
            self._report.unchanged += 1
            return False
        if there is not None and there.type == "directory" and options.delete:
            await self._remove(entry.path)
        if not options.select.all_included:
            await self._make_parents(os.path.dirname(entry.path))
        return True

    async def _make_folder(self, path: str, there: Entry | None) -> None:
        if there is not None and self._options.delete:
            await self._remove(path)
        self._touched.update((path, os.path.dirname(path)))
        if not self._options.dry_run:
            await self._client.mkdir(self._name(path))

    async def _make_parents(self, folder: str) -> None:
        if folder and folder not in self._touched and folder not in self._there:
            self._touched.add(folder)
            if not self._options.dry_run:
                await self._client.mkdir(self._name(folder), parents=True)

    async def _send(self, job: _Job) -> None:
        options, report = self._options, self._report
        with noting(report, job.name, self._scope):
            if not options.dry_run:
                await upload(
                    self._client.connection,
                    self._pace,
                    self._source / job.entry.path,
                    job.name,
                    mtime_ns=None,
                    create=False,
                    validator=None,
                    verify=options.verify,
                    progress=options.progress,
                    expected=True,
                )
            self._touched.add(os.path.dirname(job.entry.path))
            report.files += 1
            report.nbytes += job.entry.size
            report.transferred.append(job.name)

    async def _delete(self) -> None:
        """Remove what is not here, deepest first; what is excluded stays, and so do its folders."""
        kept: set[str] = set()
        select = self._options.select
        for path in sorted(self._there, key=os.fsencode, reverse=True):
            if path in self._wanted or path == "" or path in kept or select.excludes_below(path):
                kept.update(_parents(path))
            else:
                await self._remove(path, missing_ok=True)

    async def _remove(self, path: str, missing_ok: bool = False) -> None:
        name = self._name(path)
        if not self._options.dry_run:
            try:
                await self._client.remove(name, recursive=not missing_ok)
            except StreamResetError as error:
                if not missing_ok or error.code != ErrorCode.NOT_FOUND:
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


def _parents(path: str) -> Iterator[str]:
    while path := os.path.dirname(path):
        yield path
