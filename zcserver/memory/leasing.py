"""Who gets which region (rule 3): leases, reassignment, cutting loose, and the common regions.

A region that was sent by reference serves one principal until it is cut. Authenticated and trusted
principals lease regions for anything; strangers only for a megabyte or more, together up to a share of
the pool. All else comes from common regions, which are never sent by reference.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from math import inf
from typing import Final

from zcserver.memory.account import REGION_PAGES, Account
from zcserver.memory.quarantine import Quarantine
from zcserver.memory.region import PAGE, Arena, Region, Span

STRANGER_PAGES: Final = (1 << 20) // PAGE
"""What a stranger has to hold and ask for together before it leases its first region."""


class Leasing:
    """The regions of one arena and their owners."""

    __slots__ = (
        "_clock", "_common", "_idle", "_settled", "_strangers", "_uncut", "arena", "cut", "quarantine",
        "regions", "stranger_ceiling", "too_much",
    )  # fmt: skip

    def __init__(
        self,
        arena: Arena,
        common: Account,
        quarantine: Quarantine,
        stranger_ceiling: int,
        clock: Callable[[], float],
    ) -> None:
        self.arena = arena
        self.regions: list[Region] = arena.regions
        self.quarantine = quarantine
        self.stranger_ceiling = stranger_ceiling
        """Regions that strangers may lease, all together."""
        self.cut = 0
        self.too_much = inf
        """Pages that could not be had since memory last came back: asking for as many again is idle, except
        for accounts to whose own regions some came back."""
        self._clock = clock
        self._common = common
        self._idle = len(self.regions)  # nothing live, not tainted, not resting
        self._settled = 0  # times that any region fell idle
        self._strangers = 0  # regions leased by strangers
        self._uncut: list[Region] = []  # the kernel refused to cut them: out of use until it does

    def find(self, account: Account, pages: int, demand: int, by_reference_ok: bool) -> Span | None:
        """A free span of ``pages`` for the account, from its own regions or else from common ones.

        ``demand`` is what the account holds and asks for in all, in pages. More than a region's pages must
        be a multiple of them.
        """
        if by_reference_ok and (not account.stranger or self._deserves(account, demand)):
            span = self._carve(account, pages)
            if span is not None:
                return span
        span = self._carve(self._common, pages)
        if span is None and pages < self.too_much:
            self.too_much = float(pages)
        return span

    def reuse(self, account: Account, pages: int) -> Span | None:
        """The common case of `find`, cheaply: a run of the size that came home last, in a leased region."""
        region = account.hints.get(pages)
        if region is None or not region.open or region.account is not account or not region.live:
            return None
        spans = region.spans.get(pages)
        if not spans or (account.stranger and self.quarantine.held):
            return None
        region.live += pages
        if region.live == REGION_PAGES:
            account.shut(region)
        return spans.pop()

    def reshelve(self, span: Span) -> bool:
        """The common case of `come_home`, cheaply: other spans of the region are still out."""
        region, pages = span.region, span.pages
        if not region.open or region.live <= pages or pages not in region.spans or span.tail:
            return False
        region.live -= pages
        region.spans[pages].append(span)
        region.largest = REGION_PAGES  # unknown: look again when a run is missing
        account = region.account
        assert account is not None  # a region is detached only while nothing is live
        account.hints[pages] = region
        if account is self._common:
            self.too_much = inf
        return True

    def come_home(self, span: Span) -> None:
        """The span is free again: nobody holds it, nothing views it."""
        region = span.region
        if span.tail:
            for each in (region, *span.tail):
                each.live = 0  # in one run, as `_lease` left it
                self._settle(each)
            return
        region.give_back(span)
        if not region.live:
            self._settle(region)
            return
        account = region.account
        assert account is not None  # a region is detached only while nothing is live
        if account is self._common:
            self.too_much = inf
        if not region.tainted:
            account.hints[span.pages] = region
            if not region.open:
                account.reopen(region)

    def is_common(self, span: Span) -> bool:
        return span.region.account is self._common

    def taint(self, span: Span) -> None:
        """A dead peer may still read this span: let its regions run empty and cut them then."""
        for region in (span.region, *span.tail):
            region.tainted = True
            if region.account is not None:
                region.account.shut(region)

    def retire(self, account: Account) -> None:
        """Take the account's regions: idle ones now, the others as they fall idle."""
        account.retired = True
        if account.leased:
            for region in self.regions:
                if region.account is account and not region.live:
                    self._detach(region)

    def sweep(self, now: float) -> None:
        """Bring regions back whose quarantine is over."""
        self._idle += len(self.quarantine.sweep(now))
        self.too_much = inf
        if self._uncut:
            regions, self._uncut = self._uncut, []
            for region in regions:
                self._lay_to_rest(region)

    def quarantined(self) -> int:
        """Pages out of use: of resting regions, and what is not live of tainted ones."""
        tainted = sum(REGION_PAGES - region.live for region in self.regions if region.tainted)
        return tainted + self.quarantine.resting * REGION_PAGES

    def by_principal(self) -> dict[str, int]:
        """How many regions serve each principal, by its name."""
        return dict(Counter(region.account.principal.name for region in self.regions if region.account))

    def _deserves(self, stranger: Account, demand: int) -> bool:
        """Whether a stranger may have regions. Once it leases some it uses them for smaller demands too."""
        if not stranger.leased and demand < STRANGER_PAGES:
            return False
        quarantine = self.quarantine
        if not quarantine.held:
            return True
        if quarantine.full:
            self.sweep(self._clock())
        return not quarantine.full

    def _carve(self, account: Account, pages: int) -> Span | None:
        span = account.carve(pages) if pages <= REGION_PAGES else None
        if span is None:
            span = self._lease(account, pages)
            if span is None:
                return None
        if span.tail:
            self._idle -= 1 + len(span.tail)
        elif span.region.live == span.pages:
            self._idle -= 1
        return span

    def _lease(self, account: Account, pages: int) -> Span | None:
        """Carve from regions that are taken over for it; adjacent whole ones beyond a region's size."""
        count = -(-pages // REGION_PAGES)
        if self.quarantine.pinned or self._uncut:
            self.sweep(self._clock())
        if self._idle + self.quarantine.early_room() < count:
            return None
        first = self._choose(account, count)
        if first is None:
            return None
        run = self.regions[first : first + count]
        if not all(self._move(region, account) for region in run):
            return None
        if count == 1:
            return run[0].carve(pages)
        for region in run:
            account.shut(region)
            region.reset()
            region.live = REGION_PAGES
        span = Span(run[0], 0, pages)
        span.tail = tuple(run[1:])
        return span

    def _choose(self, account: Account, count: int) -> int | None:
        """The first of ``count`` adjacent regions that are cheapest to take; ``None`` if there are none."""
        regions = self.regions
        early = not account.stranger and self.quarantine.early_room() >= count
        prices = [
            inf if region.live or region.tainted else self._price(region, account, early)
            for region in regions
        ]
        runs = _sums(prices, count)
        # Of a run only the regions that are new to the account, or to strangers, count against the limits.
        quota = account.region_ceiling - account.leased
        if quota < count:
            runs = _limited(runs, [region.account is not account for region in regions], count, quota)
        share = self.stranger_ceiling - self._strangers
        if account.stranger and share < count:
            new = [region.account is None or not region.account.stranger for region in regions]
            runs = _limited(runs, new, count, share)
        first = min(range(len(runs)), key=runs.__getitem__)
        return first if runs[first] < inf else None

    def _price(self, region: Region, account: Account, early: bool) -> float:
        """What taking this idle region costs, infinity if it cannot be had: the fewer cuts the better."""
        owner = region.account
        if owner is account:
            return 0.0
        if self.quarantine.is_resting(region):
            # Strangers never: the next dead stranger would rest it again, and so on without bound.
            return 4.0 if early else inf
        if owner is None:
            return 2.0 if region.sent else 0.0
        recency = region.touched / (self._settled + 1)
        return (3.0 if region.sent else 1.0) + recency

    def _move(self, region: Region, account: Account) -> bool:
        """Make the region the account's, cut if others may read it; whether that could be done."""
        if region.account is account:
            return True
        if region.sent and not self._cut(region):
            return False
        if self.quarantine.is_resting(region):
            self.quarantine.end_early(region)
            self._idle += 1
        self._detach(region)
        region.reset()
        account.enter(region)
        if account.stranger:
            self._strangers += 1
        return True

    def _detach(self, region: Region) -> None:
        account = region.account
        if account is not None:
            account.leave(region)
            if account.stranger:
                self._strangers -= 1

    def _settle(self, region: Region) -> None:
        """The region's last span came home."""
        account = region.account
        assert account is not None  # as above
        self.too_much = inf
        if region.tainted:
            self._detach(region)
            self._lay_to_rest(region)
            return
        self._idle += 1
        self._settled += 1
        region.touched = self._settled
        if account.retired:
            self._detach(region)
        elif not region.open:
            account.reopen(region)

    def _lay_to_rest(self, region: Region) -> None:
        if self._cut(region):
            region.reset()
            self.quarantine.rest(region, self._clock())
        else:
            self._uncut.append(region)

    def _cut(self, region: Region) -> bool:
        """Cut it; ``False`` if the kernel refuses (locked memory, say): then nobody else may have it."""
        try:
            self.arena.cut(region)
        except OSError:
            return False
        self.cut += 1
        return True


def _sums(values: Sequence[float], count: int) -> Sequence[float]:
    """Of each run of ``count`` neighbours, by its first."""
    if count == 1:
        return values
    return [sum(values[first : first + count]) for first in range(len(values) - count + 1)]


def _limited(prices: Sequence[float], new: Sequence[bool], count: int, most: int) -> Sequence[float]:
    """The prices of runs; infinity for those that hold more than ``most`` ``new`` regions."""
    return [price if some <= most else inf for price, some in zip(prices, _sums(new, count), strict=True)]
