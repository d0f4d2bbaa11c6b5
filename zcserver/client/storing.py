"""Small files to disk, as many per thread hop as have come since the last one."""

from typing import Final

import anyio
import anyio.to_thread

from .partial import PartialFile

_AT_ONCE: Final = 32


class _Small:
    """A file whose bytes are all there, and what became of it when ``done``."""

    __slots__ = ("done", "error", "mtime_ns", "partial", "pieces", "stored")

    def __init__(self, partial: PartialFile, pieces: list[memoryview], mtime_ns: int) -> None:
        self.partial = partial
        self.pieces = pieces
        self.mtime_ns = mtime_ns
        self.done = anyio.Event()
        self.error: OSError | None = None
        self.stored = False


class Storing:
    """``await store(…)`` from any number of tasks.

    Who comes when nobody is at it stores for all who come meanwhile: a hop for each file would cost more
    than the file.
    """

    def __init__(self) -> None:
        self._waiting: list[_Small] = []
        self._at_work = False

    async def store(self, partial: PartialFile, pieces: list[memoryview], mtime_ns: int) -> None:
        """As :meth:`PartialFile.store`. A cancelled caller waits for it all the same."""
        small = _Small(partial, pieces, mtime_ns)
        self._waiting.append(small)
        with anyio.CancelScope(shield=True):
            if self._at_work:
                await small.done.wait()
            else:
                await self._store_waiting()
        if small.error is not None:
            raise small.error
        if not small.stored:
            raise RuntimeError(f"{partial.target} was not stored, since storing another file has failed")

    async def _store_waiting(self) -> None:
        self._at_work = True
        batch: list[_Small] = []
        try:
            while self._waiting:
                batch = self._waiting[:_AT_ONCE]
                del self._waiting[:_AT_ONCE]
                await anyio.to_thread.run_sync(_store, batch)
                for small in batch:
                    small.done.set()
        finally:
            self._at_work = False
            for small in batch + self._waiting:  # there are some only after an error that nobody foresaw
                small.done.set()
            self._waiting.clear()


def _store(batch: list[_Small]) -> None:
    for small in batch:
        try:
            small.partial.store(small.pieces, small.mtime_ns)
            small.stored = True
        except OSError as error:  # raised in the task that waits for this one
            small.error = error
