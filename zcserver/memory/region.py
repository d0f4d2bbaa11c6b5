"""Regions: 2 MiB pieces of one private anonymous mapping, and the page runs leased from them.

Why 2 MiB: a 4 KiB fragment in flight pins its whole huge page, and ``MADV_DONTNEED`` of a part breaks the
huge page up for good, while cutting the whole region costs 55 µs and leaves it huge. So ownership,
cutting loose and limits all count regions. Why private and anonymous: on shared memory ``MADV_DONTNEED``
does not cut anything loose.
"""

import errno
import mmap
import sys
from typing import Any, Final

from zcserver.kernel.calls import Kernel, address_of, memory_at, pointer_to
from zcserver.memory.account import REGION_PAGES, Account, Tally

PAGE: Final = 4096
REGION: Final = 2 << 20
PAGE_SHIFT: Final = 12
POISON: Final = b"\xdb"


def pages_of(nbytes: int) -> int:
    """What a buffer of so many bytes takes: whole pages, and whole regions above 2 MiB."""
    pages = -(-nbytes // PAGE)
    return pages if pages <= REGION_PAGES else -(-pages // REGION_PAGES) * REGION_PAGES


class Arena:
    """One mapping of ``count`` regions, aligned so that each can be one huge page.

    Forked children do not have it, unless it is ``inherited``: what goes by reference is the parent's alone.
    """

    __slots__ = ("_kernel", "_mapping", "_start", "address", "regions")

    def __init__(self, count: int, kernel: Kernel, inherited: bool = False) -> None:
        self._kernel = kernel
        # One region more than asked for: the kernel aligns mappings to 4 KiB only.
        self._mapping = mmap.mmap(-1, (count + 1) * REGION, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        mapped_at = address_of(self._mapping)
        self._start = -mapped_at % REGION
        self.address = mapped_at + self._start
        for advice in (mmap.MADV_HUGEPAGE,) if inherited else (mmap.MADV_HUGEPAGE, mmap.MADV_DONTFORK):
            try:
                kernel.madvise(self._mapping, advice, self._start, count * REGION)
            except OSError as error:
                if error.errno != errno.EINVAL:  # a kernel built without it; both are improvements only
                    raise
        self.regions = [Region(index, self.address + index * REGION) for index in range(count)]

    def cut(self, region: "Region") -> None:
        """Let go of the region's pages: old references keep the old bytes, we see zeros from now on."""
        self._kernel.madvise(self._mapping, mmap.MADV_DONTNEED, self._start + region.index * REGION, REGION)
        region.sent = False
        region.tainted = False

    def poison(self, span: "Span") -> None:
        """Overwrite the span's pages, so that a reader who was promised them shows up in tests."""
        start = self._start + span.address - self.address
        length = span.pages * PAGE
        self._mapping[start : start + length] = POISON * length

    def close(self) -> None:
        """Unmap. Nothing may touch the memory afterwards; pages in flight keep their bytes."""
        self._mapping.close()


class Span:
    """A run of pages; while leased, it knows whose account and which holder's tally it weighs on.

    Everything a program can reach the pages by hangs off ``exporter``, whose reference count therefore
    says whether any view is alive (see ``QUIET``). A free span keeps it for the next lease.
    """

    __slots__ = (
        "_pointer", "account", "address", "exporter", "nbytes", "page", "pages", "region", "tail", "tally",
    )  # fmt: skip

    account: Account
    tally: Tally

    def __init__(self, region: "Region", page: int, pages: int) -> None:
        self.region = region
        self.page = page
        self.pages = pages
        self.address = region.address + page * PAGE
        self.nbytes = 0
        self._pointer = pointer_to(self.address)
        self.exporter: Any = None
        self.tail: tuple[Region, ...] = ()
        """The further regions of a lease larger than one region."""

    def export(self, nbytes: int) -> None:
        """Make the exporter for a lease of ``nbytes``, if the last lease left none that fits."""
        self.exporter = memory_at(self._pointer, nbytes)
        self.nbytes = nbytes

    def references(self) -> int:
        """How many there are to the exporter: ``QUIET``, or more while views of the memory are alive."""
        return sys.getrefcount(self.exporter)

    def lend(self, nbytes: int) -> Any:
        """An exporter for a lease that ends when it is gone: the span itself does not keep it."""
        self.exporter = None
        return memory_at(self._pointer, nbytes)


class Region:
    """The unit of ownership: who uses it, how much of it is leased, and whether peers may still read it.

    ``live`` counts leased pages. Spans that came home wait in ``spans`` by their page count, so the common
    case, the same size again, is one ``pop``; they are merged only when a size is missing.
    """

    __slots__ = (
        "_bump", "account", "address", "index", "largest", "live", "open", "sent", "spans", "tainted",
        "touched",
    )  # fmt: skip

    def __init__(self, index: int, address: int) -> None:
        self.index = index
        self.address = address
        self.account: Account | None = None
        self.live = 0
        self.open = False
        """Listed in its account's ``open``: it may have room."""
        self.sent = False
        """Went by reference since it was last cut."""
        self.tainted = False
        """A peer that is gone may still read it: no page serves anybody before the region is cut."""
        self.touched = 0
        """When it last fell idle, on the count of regions that did."""
        self.reset()

    def reset(self) -> None:
        """Forget the free spans: all pages are one run again. Only while nothing is live."""
        self.spans: dict[int, list[Span]] = {}
        self._bump = 0
        self.largest = REGION_PAGES

    def carve(self, pages: int) -> Span | None:
        """Lease ``pages`` (at most a region's) in one run; ``None`` if there is no such run."""
        spans = self.spans.get(pages)
        if spans:
            span = spans.pop()
        elif self._bump + pages <= REGION_PAGES:
            span = Span(self, self._bump, pages)
            self._bump += pages
        elif pages > REGION_PAGES - self.live or pages > self.largest:
            return None
        else:
            found = self._merge_and_carve(pages)
            if found is None:
                return None
            span = found
        self.live += pages
        return span

    def give_back(self, span: Span) -> None:
        """Take a span back; its pages may be carved again at once."""
        pages = span.pages
        self.live -= pages
        self.largest = REGION_PAGES
        spans = self.spans.get(pages)
        if spans is None:
            self.spans[pages] = [span]
        else:
            spans.append(span)

    def _merge_and_carve(self, pages: int) -> Span | None:
        runs: list[tuple[int, int]] = []  # (first page, page count), neighbours merged
        free = sorted((span.page, span.pages) for spans in self.spans.values() for span in spans)
        for page, count in [*free, (self._bump, REGION_PAGES - self._bump)]:
            if runs and runs[-1][0] + runs[-1][1] == page:
                runs[-1] = (runs[-1][0], runs[-1][1] + count)
            else:
                runs.append((page, count))
        self._bump = runs.pop()[0]  # the last run always reaches the end
        fitting = [run for run in runs if run[1] >= pages]
        chosen = min(fitting, key=lambda run: run[1], default=None)
        self.spans = {}
        for page, count in runs:
            if (page, count) == chosen:
                page, count = page + pages, count - pages
            if count:
                self.spans.setdefault(count, []).append(Span(self, page, count))
        if chosen is not None:
            return Span(self, chosen[0], pages)
        if self._bump + pages <= REGION_PAGES:
            self._bump += pages
            return Span(self, self._bump - pages, pages)
        self.largest = max([REGION_PAGES - self._bump, *(count for _, count in runs)])
        return None


def _quiet_references() -> int:
    span = Span(Region(0, 0), 0, 1)
    span.exporter = memory_at(pointer_to(address_of(bytearray(PAGE))), PAGE)
    return span.references()


QUIET: Final = _quiet_references()
"""``sys.getrefcount(span.exporter)`` of a span that nobody views: more means that some view (slice, cast,
numpy array …) is alive. Measured, and by the very expression it is to be compared with: how many references
a call holds by itself differs between Python versions (3.14 borrows some)."""
