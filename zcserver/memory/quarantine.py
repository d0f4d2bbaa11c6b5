"""Quarantine: regions that were cut loose while a dead peer might still read their old pages.

The region itself is clean at once, but the machine still holds the old pages for as long as the dead
connection's queues exist, and nothing tells when that ends (1,200 KiB unread held 584 MiB). So a cut
region rests for a configured time: an estimate, and called one. It may be used early, so that dead peers
cannot starve the living, as long as what is used early stays within a limit: the machine then holds the
pool's size and that limit at the most.

Pure bookkeeping: time is an argument, and nothing here touches memory.
"""

from collections import deque
from math import inf

from zcserver.memory.region import REGION, Region


class Quarantine:
    """Regions that rest for ``seconds`` each, and those that were used early, up to ``limit`` bytes."""

    __slots__ = ("_early", "_resting", "held", "limit", "seconds")

    def __init__(self, seconds: float, limit: int) -> None:
        self.seconds = seconds
        self.limit = limit
        self.held = 0
        """Regions whose old pages dead peers are estimated to hold: resting ones and those used early."""
        self._resting: dict[Region, float] = {}  # in the order of their ends
        self._early: deque[float] = deque()

    def rest(self, region: Region, now: float) -> None:
        """The region was cut at ``now``; it rests from here on."""
        self._resting[region] = now + self.seconds
        self.held += 1

    def is_resting(self, region: Region) -> bool:
        return region in self._resting

    @property
    def resting(self) -> int:
        """Regions out of use."""
        return len(self._resting)

    @property
    def pinned(self) -> int:
        """Bytes that dead peers are estimated to hold, of resting regions and of those used early."""
        return self.held * REGION

    @property
    def full(self) -> bool:
        """Past its limit: strangers get no regions."""
        return self.pinned > self.limit

    def early_room(self) -> int:
        """How many resting regions may be used now, before their time is over."""
        return min(len(self._resting), self.limit // REGION - len(self._early))

    def end_early(self, region: Region) -> None:
        """The region is needed now; its estimate goes on counting against the limit. Within `early_room`."""
        self._early.append(self._resting.pop(region))

    def next_end(self) -> float:
        """When :meth:`sweep` has something to do next; infinity if never."""
        return min(next(iter(self._resting.values()), inf), self._early[0] if self._early else inf)

    def sweep(self, now: float) -> list[Region]:
        """End what is over at ``now`` and return the regions that come back into use."""
        while self._early and self._early[0] <= now:
            self._early.popleft()
            self.held -= 1
        over = []
        for region, end in self._resting.items():
            if end > now:
                break
            over.append(region)
        for region in over:
            del self._resting[region]
        self.held -= len(over)
        return over
