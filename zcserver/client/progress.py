"""What a transfer tells while it runs, and what became of it."""

from dataclasses import dataclass, field
from pathlib import Path

from zcserver.errors import TransferError


class VerificationError(TransferError):
    """What arrived is not what the server says it has; the file was not kept."""


class ChangedError(TransferError):
    """The rest of a partial download cannot be fetched: the file on the server is another one by now."""


class Progress:
    """Override what you want to show; all calls come from the event loop."""

    def expect(self, files: int, nbytes: int) -> None:
        """So many more files and bytes are to come."""

    def started(self, path: str, size: int, done: int) -> None:
        """This file's bytes are coming now; ``done`` of them are there from an earlier try."""

    def moved(self, path: str, nbytes: int) -> None:
        """So many more of its bytes have arrived, or were handed to the kernel when sending."""

    def finished(self, path: str) -> None:
        """This file is complete under its name."""

    def failed(self, path: str) -> None:
        """It will not become complete now."""


SILENT = Progress()


@dataclass(frozen=True, slots=True)
class Transferred:
    """One file that is complete. ``path`` is the server's name, ``target`` the local one.

    ``nbytes`` is the file's size, of which the first ``resumed`` were there before; ``digest`` is its SHA-256
    in hexadecimal, empty if nobody asked for it. ``changed``: it was stable, and somebody wrote to the file.
    """

    path: str
    target: Path | None
    nbytes: int
    resumed: int
    seconds: float
    digest: str
    changed: bool = False


@dataclass(slots=True)
class TreeReport:
    """What became of a tree.

    ``files`` and ``nbytes`` count what was transferred, ``unchanged`` files that were skipped for having
    the same size and time, ``removed`` entries deleted. ``skipped`` names symbolic links and special files,
    ``transferred`` and ``deleted`` what was done (or, for a dry run, would be), ``changed`` those of the
    transferred to which somebody wrote meanwhile (with ``stable``).
    """

    files: int = 0
    nbytes: int = 0
    unchanged: int = 0
    removed: int = 0
    skipped: list[str] = field(default_factory=list)
    transferred: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    failures: list[tuple[str, TransferError | OSError]] = field(default_factory=list)
