"""Who holds how much: accounts per principal (with their regions) and tallies per holder.

Counts are pages of 4 KiB. A principal's account bounds what it may hold; a holder's tally exists so that
an error can name who holds the memory that somebody waits for.
"""

from typing import TYPE_CHECKING, Final

from zcserver.memory.principal import Principal

if TYPE_CHECKING:
    from zcserver.memory.region import Region, Span

REGION_PAGES: Final = 512
"""Pages of 4 KiB in a region of 2 MiB."""


class Tally:
    """Pages that one holder (a connection, a topic …) has, by the state of the buffers."""

    __slots__ = ("filling", "in_flight", "viewed")

    def __init__(self) -> None:
        self.filling = 0
        self.in_flight = 0
        self.viewed = 0
        """Given back, but arrays or slices of them are alive."""

    def total(self) -> int:
        return self.filling + self.in_flight + self.viewed


class Account:
    """One principal's memory: its regions, and all its pages, common ones too, against its quota."""

    __slots__ = (
        "ceiling", "hints", "leased", "open", "outstanding", "principal", "region_ceiling", "retired",
        "stranger", "waiting",
    )  # fmt: skip

    def __init__(self, principal: Principal, ceiling: int, region_ceiling: int, stranger: bool) -> None:
        self.principal = principal
        self.ceiling = ceiling
        """Pages it may hold at once."""
        self.region_ceiling = region_ceiling
        self.stranger = stranger
        self.outstanding = 0
        """Pages it holds: filling, in flight, or still viewed."""
        self.leased = 0
        """Regions it leases."""
        self.open: list[Region] = []
        """Those of its regions that may have room, the most recently used last."""
        self.hints: dict[int, Region] = {}
        """By page count: where a run of so many pages was found or came home last."""
        self.retired = False
        """Its connection is closed: regions leave it as they fall idle."""
        self.waiting = 0
        """Requests of this principal in the queue."""

    def carve(self, pages: int) -> "Span | None":
        """Lease a run of pages from a region this account already has."""
        region = self.hints.get(pages)
        span = region.carve(pages) if region is not None and region.open and region.account is self else None
        if span is None:
            for region in reversed(self.open):
                span = region.carve(pages)
                if span is not None:
                    self.hints[pages] = region
                    break
            else:
                return None
        region = span.region
        if region.live == REGION_PAGES:
            self.shut(region)
        return span

    def enter(self, region: "Region") -> None:
        """Make the region, which nobody owns, this account's."""
        region.account = self
        self.leased += 1
        self.reopen(region)

    def leave(self, region: "Region") -> None:
        """Give the region up; what it held stays readable to those it was sent to until it is cut."""
        self.shut(region)
        self.leased -= 1
        region.account = None

    def reopen(self, region: "Region") -> None:
        """Have the region searched for room."""
        if not region.open:
            region.open = True
            self.open.append(region)

    def shut(self, region: "Region") -> None:
        """Search the region no more: it is full, tainted or given up."""
        if region.open:
            region.open = False
            self.open.remove(region)
