"""The pool: hands out buffers for principals, takes them back, and lets requests wait in turn.

One pool belongs to one event loop and its thread. Its memory is bounded and never grows; what cannot be
had now is waited for, and what can never be had is refused at once.
"""

import operator
import time
from collections.abc import Callable, Sequence
from math import inf
from typing import Final, SupportsIndex

import anyio

from zcserver.errors import MisuseError, PoolTimeoutError
from zcserver.kernel.calls import DEFAULT, Kernel
from zcserver.memory.account import REGION_PAGES, Account, Tally
from zcserver.memory.buffer import FILLING, SENT, Buffer
from zcserver.memory.leasing import Leasing
from zcserver.memory.principal import COMMON, Principal, PrincipalKind
from zcserver.memory.quarantine import Quarantine
from zcserver.memory.region import PAGE, PAGE_SHIFT, QUIET, REGION, Arena, Span, pages_of
from zcserver.memory.report import PoolStats, timed_out
from zcserver.memory.request import check
from zcserver.memory.strays import VIEWED, Strays
from zcserver.memory.waiting import FairQueue, Waiter

ROUND: Final = 1.0
"""Seconds after which a waiter looks for memory that came back without a call to the pool."""

PRUNE: Final = 256
"""Tallies and accounts kept at least before empty ones are looked for."""


class Pool:
    """``size`` bytes of page-aligned memory, in regions of 2 MiB that are huge pages where the system allows.

    size               bytes, rounded up to whole regions
    poison             overwrite what comes home with 0xDB: a test's way to see a page released too early
    quarantine_seconds how long a region that a dead peer may still read is kept out of use (an estimate)
    quarantine_limit   bytes of such regions that may be used before their time, and past which strangers
                       go by the copy lane; default ``size``
    stranger_share     the part of the regions that strangers may lease, all together
    inherited          forked children see the memory: for a pool whose buffers never go by reference
    clock              seconds; for tests

    A *principal* is for whom memory is kept (:class:`~zcserver.memory.principal.Principal`), a *holder* is
    who asks, any hashable object; its ``str()`` appears in errors.
    """

    def __init__(
        self,
        size: int = 64 << 20,
        *,
        kernel: Kernel = DEFAULT,
        poison: bool = False,
        quarantine_seconds: float = 30.0,
        quarantine_limit: int | None = None,
        stranger_share: float = 0.5,
        inherited: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if size < 1:
            raise MisuseError(f"a pool needs a size of at least one region ({REGION} bytes), not {size}")
        count = -(-size // REGION)
        self.size = count * REGION
        """Bytes in all."""
        self.reclaimers: list[Callable[[], bool]] = []
        """Called when a request has waited in vain: each gives back memory that is only kept for later, and
        tells whether it had any."""
        self._pages = count * REGION_PAGES
        self._common = Account(COMMON, self._pages, count, stranger=False)
        limit = self.size if quarantine_limit is None else quarantine_limit
        self._arena = Arena(count, kernel, inherited)
        self._quarantine = Quarantine(quarantine_seconds, limit)
        strangers = int(count * stranger_share)
        self._leasing = Leasing(self._arena, self._common, self._quarantine, strangers, clock)
        self._accounts: dict[Principal, Account] = {COMMON: self._common}
        self._tallies: dict[object, Tally] = {}
        self._prune_at = PRUNE
        self._queue = FairQueue()
        self._strays = Strays(self._arena)
        self._returned = self._strays.spans
        self._clock = clock
        self._poison = poison
        self._closed = False
        self._live = 0
        self._peak = 0
        self._recycled = 0

    def try_acquire(
        self, nbytes: int, principal: Principal, holder: object, by_reference_ok: bool = True
    ) -> Buffer | None:
        """A buffer of ``nbytes`` now, or ``None`` if there is no room or others are first: then `acquire`.

        ``by_reference_ok=False`` asks for memory that is only ever copied. Raises
        :class:`RequestTooLargeError` for what can never be had.
        """
        if (self._queue.waiting or self._returned) and not self._admits(holder):
            return None
        account = self._accounts.get(principal)
        if account is None:
            account = self._open_account(principal)
        pages = (nbytes + (PAGE - 1)) >> PAGE_SHIFT
        if pages > REGION_PAGES:
            pages = -(-pages // REGION_PAGES) * REGION_PAGES
        demand = account.outstanding + pages
        if demand > account.ceiling or pages < 1:
            check((nbytes,), account, self._pages)
            return None
        span = self._leasing.reuse(account, pages) if by_reference_ok else None
        if span is None:
            span = self._leasing.find(account, pages, demand, by_reference_ok)
            if span is None:
                return None
        self._queue.grants += 1
        self._charge(span, account, holder).filling += pages
        if span.nbytes != nbytes or span.exporter is None:
            span.export(nbytes)
        return Buffer(self, span, nbytes, principal, holder, span.region.account is not self._common)

    async def acquire(
        self,
        nbytes: SupportsIndex,
        principal: Principal,
        holder: object,
        timeout: float = 30.0,
        by_reference_ok: bool = True,
    ) -> Buffer:
        """A buffer of ``nbytes``, at once if there is room, else after waiting up to ``timeout`` seconds.

        First come first served within a holder, in turn between holders. Raises :class:`PoolTimeoutError`,
        which names who holds the memory, or :class:`RequestTooLargeError`. Cancelling loses nothing.

        A holder that needs several buffers at once takes them by `acquire_many`: those who each hold the
        first and wait for the second wait for ever.
        """
        size = operator.index(nbytes)
        buffer = self.try_acquire(size, principal, holder, by_reference_ok)
        if buffer is not None:
            return buffer
        waiter = Waiter((size,), self._account(principal), holder, by_reference_ok)
        return (await self._wait(waiter, timeout))[0]

    async def acquire_many(
        self,
        sizes: Sequence[SupportsIndex],
        principal: Principal,
        holder: object,
        timeout: float = 30.0,
        by_reference_ok: bool = True,
    ) -> list[Buffer]:
        """Buffers of all ``sizes`` (bytes), in this order, at once or not at all. As `acquire` otherwise."""
        if not sizes:
            return []
        wanted = tuple(map(operator.index, sizes))
        account = self._account(principal)
        check(wanted, account, self._pages)
        if not (self._queue.waiting or self._returned) or self._admits(holder):
            buffers = self._take(wanted, account, holder, by_reference_ok)
            if buffers is not None:
                self._queue.grants += 1
                return buffers
        return await self._wait(Waiter(wanted, account, holder, by_reference_ok), timeout)

    def lend(self, nbytes: int, holder: object) -> memoryview | None:
        """Common memory without a buffer around it, which comes back when the last view of it is gone.

        ``None`` when there is none now; see `try_acquire`. Never goes by reference.
        """
        if (self._queue.waiting or self._returned) and not self._admits(holder):
            return None
        pages = (nbytes + (PAGE - 1)) >> PAGE_SHIFT
        if pages > REGION_PAGES:
            pages = -(-pages // REGION_PAGES) * REGION_PAGES
        account = self._common
        span = self._leasing.reuse(account, pages) or self._leasing.find(account, pages, pages, False)
        if span is None:
            return None
        self._charge(span, account, holder).viewed += pages
        exporter = span.lend(nbytes)
        self._strays.follow(exporter, span, VIEWED)
        return memoryview(exporter)

    @property
    def live(self) -> int:
        """Bytes that are out: filling, in flight, or still viewed."""
        self._collect()
        return self._live * PAGE

    def on_return(self, callback: Callable[[], object]) -> None:
        """Call ``callback``, in any thread, when memory came back through a destructor: see `live`."""
        self._strays.notify = callback

    def retire(self, principal: Principal) -> None:
        """The principal's last connection is closed: its regions may serve others as they fall idle.

        Buffers still held come home as before.
        """
        account = self._accounts.get(principal)
        if account is None or account is self._common:
            return
        del self._accounts[principal]
        self._leasing.retire(account)
        if self._queue.waiting:
            self._serve()

    def sweep(self, now: float) -> None:
        """End quarantines that are over at ``now`` and serve those who wait. Others call it often enough."""
        self._collect()
        if self._closed:
            return
        self._leasing.sweep(now)
        if self._queue.waiting:
            self._serve()

    def stats(self) -> PoolStats:
        """The sums at this moment, in bytes."""
        self.sweep(self._clock())
        tallies = self._tallies.values()
        quarantined = self._leasing.quarantined()
        return PoolStats(
            size=self.size,
            free=(self._pages - self._live - quarantined) * PAGE,
            filling=sum(tally.filling for tally in tallies) * PAGE,
            in_flight=sum(tally.in_flight for tally in tallies) * PAGE,
            viewed=sum(tally.viewed for tally in tallies) * PAGE,
            quarantined=quarantined * PAGE,
            pinned=self._quarantine.pinned,
            recycled=self._recycled,
            cut=self._leasing.cut,
            waiters=self._queue.waiting,
            peak=self._peak * PAGE,
            regions_by_principal=self._leasing.by_principal(),
        )

    def close(self) -> None:
        """Refuse further requests, end those who wait, and unmap once the last buffer is back. Idempotent."""
        if self._closed:
            return
        self._collect()
        self._closed = True
        self._accounts.clear()
        for waiter in self._queue.drain():
            waiter.event.set()
        self._unmap_if_empty()

    # -- called by buffers --

    def recycle(self, span: Span) -> None:
        """The buffer's last holder is done with the span."""
        if span.references() > QUIET:
            span.tally.viewed += span.pages
            self._strays.await_views(span, VIEWED)
            return
        self._take_back(span)
        if self._queue.waiting:
            self._serve_after(span)

    def taint(self, span: Span) -> None:
        """A dead peer may still read the span."""
        self._leasing.taint(span)

    def note_dropped(self, span: Span, sent: bool) -> None:
        """A buffer was garbage collected, perhaps in the middle of a call to this pool: settle it later."""
        self._strays.note(span, SENT if sent else FILLING)

    # -- within --

    def _lease_out(self, span: Span, nbytes: int, account: Account, holder: object) -> Buffer:
        self._charge(span, account, holder).filling += span.pages
        if span.nbytes != nbytes or span.exporter is None:
            span.export(nbytes)
        return Buffer(self, span, nbytes, account.principal, holder, span.region.account is not self._common)

    def _charge(self, span: Span, account: Account, holder: object) -> Tally:
        """Put the span on the account; return the holder's tally, where the caller adds it in turn."""
        pages = span.pages
        account.outstanding += pages  # before anything is pruned: this account is in use from now on
        tally = self._tallies.get(holder)
        if tally is None:
            tally = self._open_tally(holder)
        span.account = account
        span.tally = tally
        self._live += pages
        if self._live > self._peak:
            self._peak = self._live
        return tally

    def _take(
        self, sizes: Sequence[int], account: Account, holder: object, by_reference_ok: bool
    ) -> list[Buffer] | None:
        """All of the sizes or none. The largest go first: so they pack best."""
        demand = account.outstanding + sum(map(pages_of, sizes))
        if demand > account.ceiling:
            return None
        spans: dict[int, Span] = {}
        for index in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
            span = self._leasing.find(account, pages_of(sizes[index]), demand, by_reference_ok)
            if span is None:
                for taken in spans.values():
                    self._leasing.come_home(taken)
                return None
            spans[index] = span
        return [self._lease_out(spans[index], size, account, holder) for index, size in enumerate(sizes)]

    def _take_back(self, span: Span) -> None:
        pages = span.pages
        span.account.outstanding -= pages
        self._live -= pages
        self._recycled += 1
        if self._poison and not span.region.tainted:  # what a dead peer may read is cut, never written to
            self._arena.poison(span)
        if not self._leasing.reshelve(span):
            self._leasing.come_home(span)
        if self._closed:
            self._unmap_if_empty()

    def _unmap_if_empty(self) -> None:
        if not self._live:
            self._arena.close()

    def _admits(self, holder: object) -> bool:
        self._collect()
        return not self._queue.waiting or self._queue.admits(holder)

    async def _wait(self, waiter: Waiter, timeout: float) -> list[Buffer]:
        deadline = anyio.current_time() + timeout
        self._queue.add(waiter, tried=self._entitled(waiter))
        waiter.account.waiting += 1
        waited = served = False
        try:
            while not waiter.event.is_set():
                left = deadline - anyio.current_time()
                # Not at once: most often what is in flight comes home first, and nothing kept need go for it.
                if (waited or left <= 0) and self._entitled(waiter) and self._reclaim():
                    continue
                if left <= 0:
                    text = timed_out(waiter, timeout, self.stats(), self._entitled(waiter), self._tallies)
                    raise PoolTimeoutError(text)
                # In rounds: quarantine ends by the clock, and destructors bring memory back in any thread.
                until = self._quarantine.next_end() - self._clock()
                with anyio.move_on_after(max(0.001, min(left, until, ROUND))):
                    await waiter.event.wait()
                waited = True
                if self._closed:
                    raise MisuseError("the pool was closed while this request waited; close it last")
                if self._returned or self._quarantine.next_end() <= self._clock():
                    self.sweep(self._clock())
            served = True
            return waiter.buffers or []
        finally:
            waiter.account.waiting -= 1
            if not served:
                self._give_up(waiter)

    def _reclaim(self) -> bool:
        return any(reclaim() for reclaim in self.reclaimers)

    def _give_up(self, waiter: Waiter) -> None:
        """The request failed or was cancelled, perhaps just after it was granted: others come next."""
        self._queue.withdraw(waiter)
        for buffer in waiter.buffers or ():
            buffer.release()
        if self._queue.waiting:
            self._serve()

    def _serve(self, favoured: Account | None = None) -> None:
        """Serve those who wait. ``favoured``: memory came back to this account, and elsewhere only as
        ``too_much`` tells; without it, anything may have changed."""

        def hopeless(waiter: Waiter) -> bool:
            return waiter.most >= leasing.too_much and waiter.account is not favoured

        leasing = self._leasing
        if favoured is None:
            leasing.too_much = inf
        self._queue.serve(self._entitled, self._take_for, hopeless)

    def _serve_after(self, span: Span) -> None:
        """Serve those to whom the homecoming of this span may matter."""
        region = span.region
        # Room in a region that stays leased to its principal is of no use to anybody else.
        if not region.live or region.account is self._common or span.account.waiting:
            self._serve(span.account)

    def _entitled(self, waiter: Waiter) -> bool:
        account = waiter.account  # without a quota, it is only the pool that has no room
        return account.ceiling >= self._pages or account.outstanding + waiter.pages <= account.ceiling

    def _take_for(self, waiter: Waiter) -> list[Buffer] | None:
        return self._take(waiter.sizes, waiter.account, waiter.holder, waiter.by_reference_ok)

    def _account(self, principal: Principal) -> Account:
        return self._accounts.get(principal) or self._open_account(principal)

    def _open_account(self, principal: Principal) -> Account:
        if self._closed:
            raise MisuseError("the pool is closed; acquire before closing it, or make a new one")
        self._prune()
        quota = self.size if principal.quota is None else min(principal.quota, self.size)
        region_ceiling = -(-quota // REGION)  # quota is within the size, so this is within the regions
        stranger = principal.kind is PrincipalKind.CONNECTION
        account = Account(principal, quota // PAGE, region_ceiling, stranger)
        self._accounts[principal] = account
        return account

    def _open_tally(self, holder: object) -> Tally:
        self._prune()
        tally = self._tallies[holder] = Tally()
        return tally

    def _prune(self) -> None:
        """Forget holders that hold nothing and principals that own nothing, now and then."""
        if len(self._tallies) + len(self._accounts) < self._prune_at:
            return
        self._tallies = {holder: tally for holder, tally in self._tallies.items() if tally.total()}
        self._accounts = {
            principal: account
            for principal, account in self._accounts.items()
            if account.outstanding or account.leased or account.waiting or account is self._common
        }
        self._prune_at = max(PRUNE, 2 * (len(self._tallies) + len(self._accounts)))

    def _collect(self) -> None:
        """Settle what came back through destructors, and serve those who wait for it."""
        returned = self._returned
        if not returned:
            return
        while returned:
            span, state = returned.popleft()
            tally, pages = span.tally, span.pages
            if state == FILLING:
                tally.filling -= pages
            elif state == VIEWED:
                tally.viewed -= pages
            else:
                tally.in_flight -= pages
                if not self._leasing.is_common(span):
                    self._leasing.taint(span)
            self._take_back(span)
        if self._queue.waiting:
            self._serve()
