"""The pool: who gets which memory, and sums that are exact in every state."""

import mmap
import os
from collections import Counter
from contextlib import closing
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tests.memory.principals import acquire, identity, stranger
from zcserver.context import Context
from zcserver.errors import MisuseError, RequestTooLargeError
from zcserver.kernel.calls import Kernel, address_of
from zcserver.memory import (
    COMMON,
    PAGE,
    REGION,
    Buffer,
    BufferState,
    Pool,
    PoolStats,
    Principal,
    PrincipalKind,
)
from zcserver.memory.region import Region

MIB = 1 << 20


class TestRegions:
    def test_are_aligned_so_that_each_can_be_a_huge_page(self) -> None:
        pool = Pool(3 * REGION)
        buffers = [acquire(pool, REGION, identity()) for _ in range(3)]
        assert all(buffer.address % REGION == 0 for buffer in buffers)
        for buffer in buffers:
            buffer.release()

    def test_are_rounded_up_to(self) -> None:
        assert Pool(1).size == REGION
        assert Pool(REGION + 1).size == 2 * REGION
        with pytest.raises(MisuseError, match="at least one region"):
            Pool(0)

    def test_ask_for_huge_pages_and_are_not_inherited_by_forks(self) -> None:
        advised = []

        class Watched(Kernel):
            def madvise(self, mapping: mmap.mmap, advice: int, start: int, length: int) -> None:
                advised.append((advice, (address_of(mapping) + start) % REGION, length))
                super().madvise(mapping, advice, start, length)

        Pool(3 * REGION, kernel=Watched())
        assert advised == [(mmap.MADV_HUGEPAGE, 0, 3 * REGION), (mmap.MADV_DONTFORK, 0, 3 * REGION)]

    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # it may have threads by now
    def test_of_received_messages_are_inherited_by_forks(self) -> None:
        with Context() as context, context.receive_memory.take(MIB) as message:
            message[:5] = b"hello"
            child = os.fork()
            if not child:
                os._exit(message[:5] != b"hello")
            assert os.waitpid(child, 0)[1] == 0

    @pytest.mark.parametrize(("error", "tolerated"), [(22, True), (12, False)])
    def test_do_without_advice_that_the_kernel_does_not_know(self, error: int, tolerated: bool) -> None:
        class Old(Kernel):
            def madvise(self, mapping: mmap.mmap, advice: int, start: int, length: int) -> None:
                raise OSError(error, "as injected")

        if tolerated:
            acquire(Pool(REGION, kernel=Old()), PAGE, identity()).release()
        else:
            with pytest.raises(OSError, match="as injected"):
                Pool(REGION, kernel=Old())

    def test_merge_what_came_home_when_a_larger_run_is_needed(self) -> None:
        pool, friend = Pool(REGION), identity()
        pages = [acquire(pool, PAGE, friend) for _ in range(REGION // PAGE)]
        assert pool.try_acquire(PAGE, friend, "friend") is None
        for buffer in pages[1::2]:
            buffer.release()
        assert pool.try_acquire(2 * PAGE, friend, "friend") is None  # half is free, but no two pages adjoin
        pages[0].release()
        with acquire(pool, 2 * PAGE, friend) as two:
            assert two.address == pages[0].address
        for buffer in pages[2::2]:
            buffer.release()
        with acquire(pool, REGION, friend):
            assert pool.stats().free == 0

    def test_give_the_same_memory_again_to_the_same_size(self) -> None:
        pool, friend = Pool(REGION), identity()
        addresses = set()
        for _ in range(5):
            with acquire(pool, 10 * PAGE, friend) as buffer:
                addresses.add(buffer.address)
        assert len(addresses) == 1

    def test_a_single_search_serves_a_full_region_no_more(self) -> None:
        region = Region(0, 0)
        spans = [region.carve(128) for _ in range(4)]
        assert None not in spans
        assert region.carve(1) is None
        assert region.live == 512

    def test_are_searched_again_once_something_came_home(self) -> None:
        region = Region(0, 0)
        first, between, last, _ = (region.carve(pages) for pages in (100, 150, 100, 162))
        region.give_back(first)
        region.give_back(last)
        assert region.carve(150) is None
        region.give_back(between)
        assert region.carve(350).page == 0

    def test_serve_what_is_left_of_a_merged_run_and_not_a_page_more(self) -> None:
        region = Region(0, 0)
        first, _, _ = (region.carve(pages) for pages in (10, 10, 492))
        region.give_back(first)
        assert region.carve(4).page == 0
        assert region.carve(7) is None
        assert region.carve(6).page == 4


class TestLargeBuffers:
    def test_take_adjacent_whole_regions(self) -> None:
        pool, peer = Pool(4 * REGION), identity()
        with acquire(pool, REGION + 1, peer) as buffer:
            assert buffer.address % REGION == 0
            buffer.view[REGION] = 1
            assert pool.stats().filling == 2 * REGION
            assert pool.stats().regions_by_principal == {"friend": 2}
        assert pool.stats().free == pool.size

    def test_need_them_adjacent(self) -> None:
        pool = Pool(3 * REGION)
        buffers = [acquire(pool, REGION, identity("abc"[index])) for index in range(3)]
        buffers[0].release()
        buffers[2].release()
        assert pool.try_acquire(REGION + 1, identity(), "me") is None
        buffers[1].release()
        with acquire(pool, 3 * REGION, identity()):
            assert pool.stats().free == 0

    def test_of_a_stranger_go_by_the_copy_lane_past_the_share(self) -> None:
        pool = Pool(4 * REGION, stranger_share=0.5)
        with acquire(pool, 2 * REGION, stranger("a")) as one, acquire(pool, 2 * REGION, stranger("b")) as two:
            assert (one.by_reference, two.by_reference) == (True, False)

    def test_count_regions_that_are_their_principals_already_once(self) -> None:
        pool, group = Pool(4 * REGION), Principal("the cluster", PrincipalKind.TRUSTED)
        for buffer in [acquire(pool, REGION, group) for _ in range(3)]:
            buffer.release()
        with acquire(pool, 4 * REGION, group) as whole:
            assert whole.by_reference
        acquire(pool, PAGE, COMMON).release()
        with acquire(pool, 4 * REGION, COMMON):
            assert pool.stats().free == 0

    def test_keep_to_the_quota_with_the_regions_they_add(self) -> None:
        pool, peer = Pool(4 * REGION), identity(quota=2 * REGION)
        acquire(pool, PAGE, peer).release()
        with acquire(pool, 2 * REGION, peer) as run:  # with the one it has
            assert run.by_reference
            assert pool.stats().regions_by_principal["friend"] == 2

    def test_of_a_stranger_count_its_regions_in_the_share_once(self) -> None:
        pool = Pool(4 * REGION, stranger_share=0.5)
        one = stranger("a")
        acquire(pool, REGION, one).release()
        with acquire(pool, 2 * REGION, one) as run:
            assert run.by_reference

    def test_that_can_never_be_had_are_refused(self) -> None:
        pool = Pool(4 * REGION)
        with pytest.raises(RequestTooLargeError, match="pool of 8388608 bytes"):
            pool.try_acquire(4 * REGION + 1, identity(), "me")
        with pytest.raises(RequestTooLargeError, match="quota is 3145728 bytes"):
            pool.try_acquire(REGION + 1, identity(quota=3 * MIB), "me")


class TestTheSums:
    def test_tell_the_peak_and_what_was_recycled(self) -> None:
        pool, peer = Pool(REGION), identity()
        with acquire(pool, MIB, peer), acquire(pool, 1, peer):
            pass
        stats = pool.stats()
        assert (stats.peak, stats.recycled, stats.free) == (MIB + PAGE, 2, pool.size)

    def test_forget_holders_and_principals_that_hold_nothing(self) -> None:
        pool = Pool(2 * REGION)
        kept = pool.try_acquire(PAGE, stranger("kept"), "kept")
        assert kept is not None
        for index in range(2000):
            buffer = pool.try_acquire(PAGE, stranger(f"principal {index}"), f"holder {index}")
            assert buffer is not None
            buffer.release()
        assert len(pool._accounts) + len(pool._tallies) < 600
        assert pool.stats().filling == PAGE
        kept.release()
        assert pool.stats().filling == 0

    def test_keep_a_principal_that_is_new_while_the_others_are_forgotten(self) -> None:
        pool, keep = Pool(2 * REGION), []
        for index in range(1000):
            peer = stranger(f"principal {index}", quota=PAGE)
            buffer = pool.try_acquire(PAGE, peer, f"holder {index}")
            assert buffer is not None
            assert pool.try_acquire(PAGE, peer, f"holder {index}") is None  # its quota is used up
            keep.append(buffer)
            if index % 3:
                keep.pop().release()
        for buffer in keep:
            buffer.release()
        assert pool.stats().free == pool.size

    def test_keep_a_principal_that_only_leases_a_region_while_the_others_are_forgotten(self) -> None:
        pool, friend = Pool(8 * REGION), identity()
        acquire(pool, PAGE, friend).release()
        for index in range(600):
            acquire(pool, PAGE, stranger(f"number {index}")).release()
        with acquire(pool, PAGE, friend):
            assert pool.stats().regions_by_principal["friend"] == 1

    def test_of_what_is_out_include_what_views_keep(self) -> None:
        pool, told = Pool(REGION), []
        pool.on_return(lambda: told.append(True))
        buffer = acquire(pool, 5, identity())
        part = buffer.view[:2]
        buffer.release()
        assert (pool.live, told) == (PAGE, [])
        part.release()
        assert (pool.live, told) == (0, [True])


class TestClosing:
    def test_refuses_further_requests(self) -> None:
        pool = Pool(REGION)
        pool.close()
        pool.close()
        with pytest.raises(MisuseError, match="the pool is closed"):
            pool.try_acquire(PAGE, identity(), "me")

    def test_leaves_the_memory_to_those_who_still_have_it(self) -> None:
        pool = Pool(REGION)
        one, two = (acquire(pool, PAGE, COMMON) for _ in range(2))
        pool.close()
        one.view[:] = b"1" * PAGE
        one.release()
        two.view[:] = b"2" * PAGE
        two.seal()
        assert bytes(two.data) == b"2" * PAGE
        two.home()
        assert pool.stats().free == pool.size


PRINCIPALS = [
    Principal("one identity", PrincipalKind.IDENTITY),
    Principal("another identity", PrincipalKind.IDENTITY, quota=3 * REGION),
    Principal("the group", PrincipalKind.TRUSTED),
    Principal("a stranger", PrincipalKind.CONNECTION, quota=2 * REGION),
    Principal("another stranger", PrincipalKind.CONNECTION),
    COMMON,
]
SIZES = st.one_of(
    st.sampled_from([1, PAGE, 64 << 10, MIB, REGION, REGION + 1, 2 * REGION]), st.integers(1, 3 * REGION)
)


class PoolMachine(RuleBasedStateMachine):
    """Any order of events: no page serves two, no region two principals, and the sums are exact."""

    buffers = Bundle("buffers")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pool = Pool(
            6 * REGION, clock=lambda: self.now, quarantine_limit=2 * REGION, quarantine_seconds=10
        )
        self.live: dict[Buffer, int] = {}
        """Buffers that are out, and the number of their holders."""
        self.slices: list[tuple[memoryview, Buffer]] = []
        self.given_back = 0
        self.sent_to: dict[int, tuple[Principal, int]] = {}
        """Region address → for whom it went by reference last, and the count of cuts then."""

    @rule(target=buffers, nbytes=SIZES, principal=st.sampled_from(PRINCIPALS), by_reference_ok=st.booleans())
    def acquire(self, nbytes: int, principal: Principal, by_reference_ok: bool) -> Buffer | None:
        try:
            buffer = self.pool.try_acquire(nbytes, principal, principal.name, by_reference_ok)
        except RequestTooLargeError:
            assert principal.quota is not None
            return None
        if buffer is None:
            return None
        assert buffer.nbytes == len(buffer.view) == nbytes
        assert not buffer.by_reference or (by_reference_ok and principal is not COMMON)
        self.live[buffer] = 0
        for region in self.regions_of(buffer):
            owner, cuts = self.sent_to.get(region, (principal, -1))
            if owner is not principal or not buffer.by_reference:
                assert self.pool.stats().cut > cuts, "served somebody else without a cut"
        buffer.view[0] = buffer.view[-1] = 0xAA
        return buffer

    @rule(buffer=buffers, extra=st.integers(0, 2))
    def seal(self, buffer: Buffer | None, extra: int) -> None:
        if buffer is not None and buffer.state == BufferState.FILLING:
            buffer.seal()
            for _ in range(extra):
                buffer.hold()
            self.live[buffer] = 1 + extra
            if buffer.by_reference:
                for region in self.regions_of(buffer):
                    self.sent_to[region] = (buffer.principal, self.pool.stats().cut)

    @rule(buffer=buffers, dead=st.booleans())
    def one_holder_is_done(self, buffer: Buffer | None, dead: bool) -> None:
        if buffer is not None and buffer.state == BufferState.SENT:
            if dead:
                buffer.abandon()
            else:
                buffer.home()
            self.live[buffer] -= 1
            if not self.live[buffer]:
                self.gone(buffer)

    @rule(buffer=consumes(buffers))
    def release(self, buffer: Buffer | None) -> None:
        if buffer is not None and buffer.state == BufferState.FILLING:
            buffer.release()
            self.gone(buffer)

    @rule(buffer=consumes(buffers))
    def release_while_a_slice_is_alive(self, buffer: Buffer | None) -> None:
        if buffer is not None and buffer.state == BufferState.FILLING:
            self.slices.append((buffer.view[:1], buffer))
            buffer.release()

    @rule()
    def the_oldest_slice_ends(self) -> None:
        if self.slices:
            part, buffer = self.slices.pop(0)
            part.release()
            self.gone(buffer)

    @rule(principal=st.sampled_from(PRINCIPALS))
    def retire(self, principal: Principal) -> None:
        self.pool.retire(principal)

    @rule(seconds=st.floats(0, 15))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    def gone(self, buffer: Buffer) -> None:
        del self.live[buffer]
        self.given_back += 1

    @staticmethod
    def regions_of(buffer: Buffer) -> range:
        first = buffer.address // REGION * REGION
        return range(first, buffer.address + buffer.nbytes, REGION)

    @staticmethod
    def footprint(buffer: Buffer) -> int:
        unit = PAGE if buffer.nbytes <= REGION else REGION
        return -(-buffer.nbytes // unit) * unit

    @invariant()
    def no_two_buffers_overlap(self) -> None:
        ranges = sorted((buffer.address, buffer.address + self.footprint(buffer)) for buffer in self.live)
        assert all(end <= start for (_, end), (start, _) in pairwise(ranges))

    @invariant()
    def no_region_serves_two_principals(self) -> None:
        owners: dict[int, Principal] = {}
        for buffer in self.live:
            for region in self.regions_of(buffer):
                owner = buffer.principal if buffer.by_reference else COMMON
                assert owners.setdefault(region, owner) is owner

    @invariant()
    def the_sums_are_exact(self) -> None:
        stats = self.pool.stats()
        assert stats.free + stats.filling + stats.in_flight + stats.viewed + stats.quarantined == stats.size
        held: Counter[BufferState] = Counter()
        for buffer in self.live:
            held[BufferState(buffer.state)] += self.footprint(buffer)
        assert (stats.filling, stats.in_flight) == (held[BufferState.FILLING], held[BufferState.SENT])
        assert stats.viewed == held[BufferState.RELEASED]
        assert stats.recycled == self.given_back
        assert stats.free >= 0
        assert stats.peak >= stats.filling + stats.in_flight

    @invariant()
    def what_is_kept_beside_the_regions_agrees_with_them(self) -> None:
        leasing = self.pool._leasing
        idle = [
            region
            for region in leasing.regions
            if not region.live and not region.tainted and not leasing.quarantine.is_resting(region)
        ]
        assert leasing._idle == len(idle)
        accounts = {region.account for region in leasing.regions if region.account is not None}
        for account in accounts:
            owned = [region for region in leasing.regions if region.account is account]
            assert account.leased == len(owned)
            assert set(account.open) == {region for region in owned if region.open}
        strangers = [region for region in leasing.regions if region.account and region.account.stranger]
        assert leasing._strangers == len(strangers) <= leasing.stranger_ceiling

    def teardown(self) -> None:
        while self.slices:
            self.the_oldest_slice_ends()
        for buffer, holders in self.live.items():
            if holders:
                for _ in range(holders):
                    buffer.home()
            else:
                buffer.release()
        self.live.clear()
        self.pool.stats()  # what the slices kept comes home now, and perhaps into quarantine
        self.now += 1000
        stats: PoolStats = self.pool.stats()
        assert (stats.free, stats.pinned) == (stats.size, 0)
        for principal in PRINCIPALS:
            self.pool.retire(principal)
        with acquire(self.pool, self.pool.size, identity()):
            assert self.pool.stats().free == 0
        self.pool.close()


TestAnyOrderOfEvents = PoolMachine.TestCase
TestAnyOrderOfEvents.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_lent_memory_comes_home_with_the_last_view_of_it() -> None:
    with closing(Pool(4 * MIB)) as pool:
        view = pool.lend(3 * MIB, "somebody")
        assert view is not None
        part = view[100:200]
        part[:] = b"x" * 100
        assert (pool.live, pool.stats().viewed) == (4 * MIB, 4 * MIB)
        assert pool.lend(PAGE, "somebody else") is None
        del view
        assert (pool.live, bytes(part)) == (4 * MIB, b"x" * 100)
        del part
        assert (pool.live, pool.stats().free) == (0, 4 * MIB)


@pytest.mark.anyio
async def test_memory_that_a_view_kept_is_had_at_once_when_the_view_is_gone() -> None:
    with closing(Pool(REGION)) as pool:

        def keep_and_drop_a_view() -> None:
            buffer = acquire(pool, REGION, COMMON)
            part = buffer.view[:1]
            buffer.release()
            part.release()

        keep_and_drop_a_view()
        acquire(pool, REGION, COMMON).release()
        keep_and_drop_a_view()
        assert pool.lend(REGION, "me") is not None
        keep_and_drop_a_view()
        (buffer,) = await pool.acquire_many([REGION], COMMON, "me", timeout=0)
        buffer.release()


@pytest.mark.anyio
async def test_what_is_only_kept_is_given_back_to_whoever_would_have_to_wait():
    with closing(Pool(2 * REGION)) as pool:
        kept = [acquire(pool, REGION, identity("cache")) for _ in range(2)]

        def reclaim() -> bool:
            if kept:
                kept.pop().release()
                return True
            return False

        pool.reclaimers.append(reclaim)
        assert pool.try_acquire(REGION, identity(), "impatient") is None
        (await pool.acquire(REGION, identity(), "patient", timeout=60)).release()
        assert len(kept) == 1
        for buffer in await pool.acquire_many([REGION, REGION], identity(), "patient", timeout=60):
            buffer.release()
        assert not kept


@pytest.mark.anyio
@pytest.mark.parametrize("nbytes", ["10", 1.5, None])
async def test_a_size_that_is_no_integer_is_refused_and_takes_nothing(nbytes: object) -> None:
    pool = Pool(REGION)
    words = f"'{type(nbytes).__name__}' object cannot be interpreted as an integer"
    with pytest.raises(TypeError, match=words):
        await pool.acquire(nbytes, identity(), "holder")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=words):
        await pool.acquire_many([5, nbytes], identity(), "holder")  # type: ignore[list-item]
    with pytest.raises(TypeError, match=words):
        await pool.acquire_many([nbytes], identity(), "holder")  # type: ignore[list-item]
    assert pool.live == 0
