"""What the pool tells about itself: its sums, and who holds what when a request fails."""

from collections.abc import Mapping
from dataclasses import dataclass

from zcserver.memory.account import Tally
from zcserver.memory.region import PAGE
from zcserver.memory.waiting import Waiter


@dataclass(frozen=True, slots=True)
class PoolStats:
    """The pool's sums in bytes. ``free + filling + in_flight + viewed + quarantined == size``, always.

    Buffers count with their whole pages (above 2 MiB: whole regions). ``free`` includes room in regions
    that only their principal may use.
    """

    size: int
    free: int
    filling: int
    in_flight: int
    viewed: int
    """Given back by their holders while slices or arrays of them are alive: free when those are gone."""
    quarantined: int
    """Out of use: dead peers may still read it (an estimate), or it waits for its region's last buffer."""
    pinned: int
    """Not part of the sum. Old pages of cut regions that dead peers may hold in the machine (an estimate)."""
    recycled: int
    """Buffers that came back since the start."""
    cut: int
    """Regions cut loose since the start."""
    waiters: int
    peak: int
    """The most that buffers held at one time."""
    regions_by_principal: dict[str, int]
    """Regions that serve each principal now; ``common`` serves all by the copy lane."""


def amount(nbytes: int) -> str:
    """Bytes in words: ``6.0 MiB``."""
    if nbytes >= 1 << 20:
        return f"{nbytes / (1 << 20):.1f} MiB"
    if nbytes >= 1 << 10:
        return f"{nbytes / (1 << 10):.1f} KiB"
    return f"{nbytes} bytes"


def timed_out(
    waiter: Waiter, seconds: float, stats: PoolStats, within_quota: bool, tallies: Mapping[object, Tally]
) -> str:
    """The words of a ``PoolTimeoutError``: what was asked, why it was missing, who holds it, the way out."""
    account = waiter.account
    if within_quota:
        why = f"the pool of {amount(stats.size)} has {amount(stats.free)} free"
        if stats.quarantined:
            why += f" and {amount(stats.quarantined)} in quarantine for dead peers"
        way_out = "make the pool larger, or the windows of those who hold it smaller"
    else:
        held = amount(account.outstanding * PAGE)
        why = f"{account.principal.name} holds {held} of its quota of {amount(account.ceiling * PAGE)}"
        way_out = "send or release what it holds, or raise its quota"
    asked = amount(sum(waiter.sizes))
    return (
        f"no {asked} for {waiter.holder} within {seconds:g} s: {why}. Held by {_holdings(tallies)}. "
        f"Way out: {way_out}"
    )


def _holdings(tallies: Mapping[object, Tally], most: int = 8) -> str:
    """Who holds how much in which state, the largest ``most`` first."""
    held = sorted(
        ((holder, tally) for holder, tally in tallies.items() if tally.total()),
        key=lambda pair: pair[1].total(),
        reverse=True,
    )
    lines = [f"{holder}: {_states(tally)}" for holder, tally in held[:most]]
    if len(held) > most:
        rest = sum(tally.total() for _, tally in held[most:])
        lines.append(f"{len(held) - most} more: {amount(rest * PAGE)}")
    return "; ".join(lines) or "nobody"


def _states(tally: Tally) -> str:
    states = ((tally.in_flight, "in flight"), (tally.filling, "filling"), (tally.viewed, "viewed by arrays"))
    return ", ".join(f"{amount(pages * PAGE)} {what}" for pages, what in states if pages)
