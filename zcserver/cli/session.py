"""What the commands that talk to a server share: connecting, progress, the outcome in words or as JSON."""

import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from zcserver.client import Address, Client, Progress, Transferred, TreeReport, client_context, parse_url
from zcserver.errors import MisuseError, StreamResetError, TransferError, printable
from zcserver.file_protocol import unescape
from zcserver_protocol.errors import ErrorCode

from .exits import CommandError, ExitCode, explain
from .loop import Interruption
from .options import amount, lanes_of, rate
from .standard import say

_FAILURES_SHOWN: Final = 5
WOULD_BE: Final = "to transfer"


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """What `get`, `put` and `sync` have in common. ``limit_rate`` in bytes per second, 0 for none."""

    jobs: int
    include: list[str] | None = None
    exclude: list[str] | None = None
    verify: bool = False
    restart: bool = False
    stable: bool = False
    limit_rate: int = 0
    quiet: bool = False
    as_json: bool = False
    lanes: str = ""

    def of_files(self, progress: Progress) -> dict[str, Any]:
        """The options of :meth:`Client.fetch`."""
        return {
            "verify": self.verify,
            "restart": self.restart,
            "stable": self.stable,
            "progress": progress,
        }

    def of_trees(self, progress: Progress) -> dict[str, Any]:
        """The options of :meth:`Client.sync` and its like."""
        return {
            "jobs": self.jobs,
            "include": self.include or (),
            "exclude": self.exclude or (),
            **self.of_files(progress),
        }


@dataclass(slots=True)
class Outcome:
    """Adds up what was transferred. Failures are noted, so that what can be done is done."""

    verb: str
    began: float = field(default_factory=time.monotonic)
    files: int = 0
    nbytes: int = 0
    resumed: int = 0
    changed: int = 0
    report: TreeReport | None = None
    details: list[dict[str, Any]] = field(default_factory=list)
    failures: list[tuple[str, str, ExitCode]] = field(default_factory=list)
    """Path on the server, what is said of it, and its exit code."""

    def add(self, done: Transferred) -> None:
        self.files += 1
        self.nbytes += done.nbytes
        self.resumed += done.resumed
        detail: dict[str, Any] = {"path": done.path, "bytes": done.nbytes, "resumed": done.resumed}
        if done.target is not None:
            detail["local"] = os.fsencode(done.target).decode("utf-8", "backslashreplace")
        if done.digest:
            detail["sha256"] = done.digest
        if done.changed:
            self.changed += 1
            detail["changed"] = True
        self.details.append(detail)

    @contextlib.contextmanager
    def tree(self) -> Iterator[TreeReport]:
        """A report for a tree to fill; it counts whatever ends the body, a signal, too."""
        report = TreeReport()
        try:
            yield report
        finally:
            self._add_tree(report)

    def _add_tree(self, report: TreeReport) -> None:
        self.files += report.files
        self.nbytes += report.nbytes
        self.changed += len(report.changed)
        self.failures += [(path, *explain(error)) for path, error in report.failures]
        self.details += [{"path": _encodable(path)} for path in report.transferred]
        if self.report is None:
            self.report = TreeReport()
        self.report.unchanged += report.unchanged
        self.report.removed += report.removed
        self.report.skipped += report.skipped
        self.report.deleted += report.deleted

    async def attempt(self, paths: Iterable[str], work: Awaitable[object]) -> None:
        """Await ``work``, noting its failure for each of ``paths``; a broken pipe ends everything."""
        try:
            await work
        except BrokenPipeError:
            raise
        except (TransferError, MisuseError, OSError) as error:
            self.failures += [(path, *explain(error)) for path in paths]

    @contextlib.contextmanager
    def told(self, settings: TransferSettings) -> Iterator[None]:
        """As :meth:`finish` behind the body; as JSON also when a signal has ended it."""
        try:
            yield
        except CommandError as error:
            self.failures.insert(0, ("", error.line, error.code))
            self._tell_scripts(settings)
            raise
        self.finish(settings)

    def finish(self, settings: TransferSettings) -> ExitCode:
        """Print the outcome; CommandError with the first failure's line and code if there was one."""
        self._tell_scripts(settings)
        if self.failures:
            raise self._failed()
        if not settings.quiet and not settings.as_json:
            say(self._in_words(settings.verify))
        return ExitCode.OK

    def _tell_scripts(self, settings: TransferSettings) -> None:
        if settings.as_json:
            print(json.dumps(self._as_dict()), flush=True)

    def _as_dict(self) -> dict[str, Any]:
        report = self.report or TreeReport()
        return {
            "files": self.files,
            "bytes": self.nbytes,
            "resumed": self.resumed,
            "changed": self.changed,
            "seconds": round(time.monotonic() - self.began, 6),
            "unchanged": report.unchanged,
            "removed": report.removed,
            "skipped": [_encodable(name) for name in report.skipped],
            "deleted": [_encodable(name) for name in report.deleted],
            "transferred": self.details,
            "failures": [
                {"path": _encodable(name), "error": line, "code": int(code)}
                for name, line, code in self.failures
            ],
        }

    def _in_words(self, verified: bool) -> str:
        seconds = time.monotonic() - self.began
        moved = self.nbytes - self.resumed
        words = [f"{_count(self.files, 'file')} {self.verb}"]
        if self.verb == WOULD_BE:
            words.append(amount(moved))
        elif moved:
            words.append(f"{amount(moved)} in {seconds:.2f} s, {rate(moved, seconds)}")
        if self.resumed:
            words.append(f"{amount(self.resumed)} were there already")
        if verified and self.files:
            words.append("verified by SHA-256")
        if self.changed:
            words.append(f"{_count(self.changed, 'file')} written to meanwhile")
        if self.report is not None:
            if self.report.unchanged:
                words.append(f"{self.report.unchanged} unchanged")
            if self.report.removed:
                words.append(f"{self.report.removed} {'to remove' if self.verb == WOULD_BE else 'removed'}")
            if self.report.skipped:
                words.append(f"{_count(len(self.report.skipped), 'link or special file')} left out")
        return ", ".join(words)

    def _failed(self) -> CommandError:
        line, *others = dict.fromkeys(line for _, line, _ in self.failures)
        for other in others[: _FAILURES_SHOWN - 1]:
            say(f"zcserver: {other}")
        if len(self.failures) > 1 or self.files:
            line += f" ({len(self.failures)} failed, {self.files} files {self.verb})"
        return CommandError(line, self.failures[0][2])


@contextlib.asynccontextmanager
async def transferring(
    address: Address, settings: TransferSettings
) -> AsyncIterator[tuple[Client, Progress]]:
    """A connected client, and bars if there is a terminal to show them on. Ctrl-C ends the body."""
    rate = settings.limit_rate
    context = client_context(lanes=lanes_of(settings.lanes), limit_rate=rate)
    with Interruption() as interruption, context:
        with _progress(settings) as progress, interruption.cancels():
            async with Client(address, context=context, limit_rate=rate) as client:
                yield client, progress
        interruption.raise_if_caught()


def _progress(settings: TransferSettings) -> contextlib.AbstractContextManager[Progress]:
    if settings.quiet or settings.as_json or not sys.stderr.isatty():
        return contextlib.nullcontext(Progress())
    from .progress import ProgressBars  # what draws takes a tenth of a second to load

    return ProgressBars()


async def talking(address: Address, work: Callable[[Client], Awaitable[None]]) -> None:
    """Connect and do ``work``, which Ctrl-C ends."""
    with Interruption() as interruption:
        with interruption.cancels():
            async with Client(address) as client:
                await work(client)
        interruption.raise_if_caught()


@contextlib.asynccontextmanager
async def appearing(client: Client, path: str) -> AsyncIterator[None]:
    """Around what gives something the name ``path``: is its directory missing, that is what is said."""
    try:
        yield
    except StreamResetError as error:
        directory = path.rstrip("/").rpartition("/")[0] or "/"
        if error.code == ErrorCode.NOT_FOUND and await _is_missing(client, directory):
            words = f"no such directory: {directory}: make it with `zcserver mkdir -p`"
            raise StreamResetError(error.code, f"{words} (zcserver ls shows what there is)") from error
        raise


async def _is_missing(client: Client, path: str) -> bool:
    try:
        await client.stat(path)
    except StreamResetError as error:
        return error.code == ErrorCode.NOT_FOUND
    return False


def own_name(path: str) -> str:
    """The last part of a server's path as a local name; CommandError if it has none."""
    name = os.fsdecode(unescape(path).rstrip(b"/").rpartition(b"/")[2])
    if name in ("", ".", "..") or "\0" in name:
        raise CommandError(
            f"{printable(path)} has no name to save it under: name a file (zcserver ls shows them), "
            f"or add -r, and -o with a name for the copy",
            ExitCode.USAGE,
        )
    return name


def check_patterns(recursive: bool, settings: TransferSettings) -> None:
    """CommandError if patterns were given where none is looked at."""
    if (settings.include or settings.exclude) and not recursive:
        raise CommandError("--include and --exclude are for directories: add -r", ExitCode.USAGE)


def all_different(targets: Iterable[tuple[str, object]], way_out: str) -> None:
    """CommandError if two sources would have the same name; pairs of a source and its target."""
    sources: dict[object, str] = {}
    for source, target in targets:
        if target in sources:
            words = f"{sources[target]} and {source} would both become {target}: {way_out}"
            raise CommandError(printable(words), ExitCode.USAGE)
        sources[target] = source


def by_server(urls: list[str]) -> list[list[Address]]:
    """The URLs, parsed, in groups that one connection can serve; in the order of their first ones."""
    groups: dict[tuple[str, int, str], list[Address]] = {}
    for url in urls:
        address = parse_url(url)
        groups.setdefault((address.host, address.port, address.socket), []).append(address)
    return list(groups.values())


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"


def _encodable(name: str) -> str:
    """A name for JSON, which has no undecodable bytes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
