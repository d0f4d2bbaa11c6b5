"""What dead peers may still read: proved with a pipe in the place of a peer that does not read."""

import fcntl
import os

import pytest

from zcserver.kernel.calls import DEFAULT, IoVec, Kernel, address_of
from zcserver.memory import PAGE, REGION, Buffer, Pool, Principal, PrincipalKind
from zcserver.memory.quarantine import Quarantine
from zcserver.memory.region import Region

OLD = b"old bytes of one principal".ljust(PAGE, b".")
ALICE = Principal("alice", PrincipalKind.IDENTITY)
BOB = Principal("bob", PrincipalKind.IDENTITY)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Peer:
    """A pipe: what was vmspliced into it is by reference, like bytes in a dead peer's socket queue."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = DEFAULT.pipe()
        fcntl.fcntl(self.read_fd, fcntl.F_SETPIPE_SZ, 1 << 20)
        self._iovec = IoVec(1)

    def is_sent(self, buffer: Buffer) -> None:
        buffer.seal()
        self._iovec.fill([buffer.address, buffer.nbytes])
        assert DEFAULT.vmsplice(self.write_fd, self._iovec.cdata, 1) == buffer.nbytes

    def reads(self, nbytes: int = PAGE) -> bytes:
        return os.read(self.read_fd, nbytes)

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


def goes_by_reference() -> bool:
    page = memoryview(bytearray(2 * PAGE))
    start = -address_of(page) % PAGE
    page[start] = ord("A")
    read_fd, write_fd = os.pipe()
    try:
        iovec = IoVec(1)
        iovec.fill([address_of(page) + start, 1])
        DEFAULT.vmsplice(write_fd, iovec.cdata, 1)
        page[start] = ord("B")
        return os.read(read_fd, 1) == b"B"
    except OSError:
        return False
    finally:
        os.close(read_fd)
        os.close(write_fd)


by_reference = pytest.mark.skipif(not goes_by_reference(), reason="vmsplice is forbidden or copies here")


@pytest.fixture
def peer():
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def acquire(pool: Pool, principal: Principal = ALICE, nbytes: int = PAGE) -> Buffer:
    buffer = pool.try_acquire(nbytes, principal, principal.name)
    assert buffer is not None
    return buffer


def content(buffer: Buffer) -> bytes:
    return bytes(buffer.view)


class TestWhatAPeerCanStillRead:
    @by_reference
    def test_an_abandoned_page_keeps_its_bytes_for_the_peer_and_is_zero_for_us(
        self, peer: Peer, clock: Clock
    ) -> None:
        pool = Pool(REGION, clock=clock, quarantine_seconds=30)
        buffer = acquire(pool)
        buffer.view[:] = OLD
        peer.is_sent(buffer)
        address = buffer.address
        buffer.abandon()
        clock.now += 30
        with acquire(pool) as again:
            assert again.address == address
            assert content(again) == bytes(PAGE)
            again.view[:] = b"n" * PAGE
        assert peer.reads() == OLD

    @by_reference
    def test_without_the_cut_the_peer_would_read_what_comes_next(self, peer: Peer) -> None:
        """The control of the test above: a page that came home by a lying acknowledgement, same principal."""
        pool = Pool(REGION)
        buffer = acquire(pool)
        buffer.view[:] = OLD
        peer.is_sent(buffer)
        buffer.home()
        with acquire(pool) as again:
            assert content(again) == OLD
            again.view[:] = b"n" * PAGE
        assert peer.reads() == b"n" * PAGE

    @by_reference
    def test_a_region_is_cut_before_another_principal_gets_it(self, peer: Peer) -> None:
        pool = Pool(REGION)
        buffer = acquire(pool, ALICE)
        buffer.view[:] = OLD
        peer.is_sent(buffer)
        buffer.home()  # acknowledged, perhaps by a liar
        with acquire(pool, BOB) as other:
            assert other.by_reference
            assert content(other) == bytes(PAGE)
            other.view[:] = b"secret of bob".ljust(PAGE)
        assert peer.reads() == OLD
        assert pool.stats().cut == 1

    @by_reference
    def test_a_region_is_cut_before_it_becomes_common(self, peer: Peer) -> None:
        pool = Pool(REGION)
        buffer = acquire(pool, ALICE)
        buffer.view[:] = OLD
        peer.is_sent(buffer)
        buffer.home()
        with acquire(pool, Principal("a stranger", PrincipalKind.CONNECTION)) as other:
            assert not other.by_reference
            other.view[:] = b"secret".ljust(PAGE)
        assert peer.reads() == OLD

    @by_reference
    def test_poison_shows_a_page_released_too_early(self, peer: Peer) -> None:
        pool = Pool(REGION, poison=True)
        buffer = acquire(pool)
        buffer.view[:] = OLD
        peer.is_sent(buffer)
        buffer.home()
        assert peer.reads() == b"\xdb" * PAGE

    @by_reference
    def test_poison_is_not_written_to_what_a_dead_peer_may_read(self, peer: Peer) -> None:
        pool = Pool(REGION, poison=True)
        buffer, other = acquire(pool), acquire(pool)
        buffer.view[:] = OLD
        peer.is_sent(buffer)
        buffer.abandon()
        assert peer.reads() == OLD
        other.release()

    @by_reference
    def test_a_large_buffer_is_cut_in_all_its_regions(self, peer: Peer, clock: Clock) -> None:
        pool = Pool(2 * REGION, clock=clock)
        buffer = acquire(pool, nbytes=REGION + PAGE)
        buffer.view[-PAGE:] = OLD
        buffer.seal()
        iovec = IoVec(1)
        iovec.fill([buffer.address + REGION, PAGE])
        DEFAULT.vmsplice(peer.write_fd, iovec.cdata, 1)
        buffer.abandon()
        assert (pool.stats().cut, pool.stats().quarantined) == (2, 2 * REGION)
        clock.now += 30
        with acquire(pool, nbytes=REGION + PAGE) as again:
            assert bytes(again.view[-PAGE:]) == bytes(PAGE)
            again.view[-PAGE:] = b"n" * PAGE
        assert peer.reads() == OLD

    def test_every_region_of_a_large_buffer_is_cut_before_others_get_it(self) -> None:
        pool = Pool(2 * REGION)
        buffer = acquire(pool, ALICE, REGION + PAGE)
        buffer.seal()
        buffer.home()
        with acquire(pool, BOB, REGION), acquire(pool, BOB, REGION):
            assert pool.stats().cut == 2

    def test_a_region_never_sent_is_not_cut(self) -> None:
        pool = Pool(REGION)
        acquire(pool, ALICE).release()
        acquire(pool, BOB).release()
        assert pool.stats().cut == 0

    def test_closing_the_pool_leaves_the_bytes_to_the_peer(self, peer: Peer) -> None:
        pool = Pool(REGION)
        buffer = acquire(pool)
        buffer.view[:] = OLD
        peer.is_sent(buffer)
        pool.close()
        buffer.abandon()
        assert peer.reads() == OLD


class TestATaintedRegion:
    def test_serves_nobody_and_is_cut_with_its_last_buffer(self, clock: Clock) -> None:
        pool = Pool(2 * REGION, clock=clock, quarantine_seconds=30)
        dead, other = acquire(pool), acquire(pool)
        dead.seal()
        dead.abandon()
        stats = pool.stats()
        assert (stats.cut, stats.quarantined, stats.filling) == (0, REGION - PAGE, PAGE)
        with acquire(pool) as elsewhere:
            assert elsewhere.address // REGION != other.address // REGION
        other.view[:4] = b"safe"  # not cut under its holder
        assert bytes(other.view[:4]) == b"safe"
        other.release()
        stats = pool.stats()
        assert (stats.cut, stats.quarantined, stats.pinned) == (1, REGION, REGION)

    def test_comes_back_when_its_time_is_over(self, clock: Clock) -> None:
        pool = Pool(2 * REGION, clock=clock, quarantine_seconds=30)
        buffer = acquire(pool)
        buffer.seal()
        buffer.abandon()
        clock.now += 29.9
        assert pool.stats().quarantined == REGION
        clock.now += 0.1
        stats = pool.stats()
        assert (stats.quarantined, stats.pinned, stats.free) == (0, 0, pool.size)

    def test_waits_for_the_other_holders_of_the_buffer(self, clock: Clock) -> None:
        pool = Pool(2 * REGION, clock=clock)
        buffer = acquire(pool)
        buffer.seal()
        buffer.hold()
        buffer.abandon()
        stats = pool.stats()
        assert (stats.cut, stats.in_flight) == (0, PAGE)
        buffer.home()
        assert pool.stats().cut == 1

    def test_a_copied_buffer_taints_nothing(self, clock: Clock) -> None:
        pool = Pool(REGION, clock=clock)
        buffer = pool.try_acquire(PAGE, ALICE, "alice", False)
        assert buffer is not None
        buffer.seal()
        buffer.abandon()
        assert (pool.stats().cut, pool.stats().free) == (0, pool.size)


class TestNobodyStarvesOfDeadPeers:
    def abandon_region(self, pool: Pool, principal: Principal) -> None:
        buffer = acquire(pool, principal, REGION)
        buffer.seal()
        buffer.abandon()

    def test_a_resting_region_is_used_early_if_there_is_no_other(self, clock: Clock) -> None:
        pool = Pool(2 * REGION, clock=clock, quarantine_limit=REGION)
        self.abandon_region(pool, ALICE)
        with acquire(pool, ALICE, REGION):
            assert pool.stats().quarantined == REGION  # there was another
            with acquire(pool, ALICE, REGION):
                stats = pool.stats()
                assert (stats.quarantined, stats.pinned) == (0, REGION)

    def test_only_as_many_as_the_limit_allows(self, clock: Clock) -> None:
        pool = Pool(2 * REGION, clock=clock, quarantine_limit=REGION, quarantine_seconds=30)
        for _ in range(2):
            self.abandon_region(pool, ALICE)
        with acquire(pool, ALICE, REGION):
            assert pool.try_acquire(PAGE, BOB, "bob") is None
            clock.now += 30
            with acquire(pool, BOB):
                pass

    def test_past_the_limit_strangers_go_by_the_copy_lane(self, clock: Clock) -> None:
        stranger = Principal("stranger", PrincipalKind.CONNECTION)
        pool = Pool(8 * REGION, clock=clock, quarantine_limit=REGION, quarantine_seconds=30)
        self.abandon_region(pool, stranger)
        with acquire(pool, stranger, REGION) as buffer:
            assert buffer.by_reference  # at the limit, not past it
        self.abandon_region(pool, stranger)
        with acquire(pool, stranger, REGION) as buffer, acquire(pool, ALICE) as friend:
            assert not buffer.by_reference
            assert friend.by_reference
        clock.now += 30
        with acquire(pool, stranger, REGION) as buffer:
            assert buffer.by_reference

    def test_past_the_limit_it_does_not_matter_what_came_home_to_them_before(self, clock: Clock) -> None:
        stranger = Principal("stranger", PrincipalKind.CONNECTION)
        pool = Pool(8 * REGION, clock=clock, quarantine_limit=REGION)
        half, other = acquire(pool, stranger, REGION // 2), acquire(pool, stranger)
        assert other.by_reference
        for _ in range(2):
            self.abandon_region(pool, ALICE)
        half.seal()
        half.home()
        with acquire(pool, stranger, REGION // 2) as again:
            assert not again.by_reference
        other.release()

    def test_strangers_never_end_a_quarantine_early(self, clock: Clock) -> None:
        stranger = Principal("stranger", PrincipalKind.CONNECTION)
        pool = Pool(2 * REGION, clock=clock, stranger_share=1.0)
        self.abandon_region(pool, stranger)
        with acquire(pool, ALICE, REGION), acquire(pool, stranger, REGION) as buffer:
            assert not buffer.by_reference


class TestAKernelThatRefusesToCut:
    class Locked(Kernel):
        """Memory under ``mlockall``: ``MADV_DONTNEED`` is ``EINVAL``."""

        locked = True

        def madvise(self, mapping, advice: int, start: int, length: int) -> None:
            if self.locked:
                raise OSError(22, "Invalid argument")
            super().madvise(mapping, advice, start, length)

    def test_keeps_the_region_out_of_use_until_it_does(self, clock: Clock) -> None:
        kernel = self.Locked()
        pool = Pool(REGION, kernel=kernel, clock=clock, quarantine_seconds=30)
        buffer = acquire(pool)
        buffer.seal()
        buffer.abandon()
        clock.now += 60
        assert (pool.stats().quarantined, pool.stats().cut) == (REGION, 0)
        assert pool.try_acquire(PAGE, ALICE, "alice") is None
        kernel.locked = False
        assert pool.stats().cut == 1
        clock.now += 30
        acquire(pool).release()

    def test_keeps_the_region_with_its_principal(self, clock: Clock) -> None:
        pool = Pool(REGION, kernel=self.Locked(), clock=clock)
        buffer = acquire(pool, ALICE)
        buffer.seal()
        buffer.home()
        assert pool.try_acquire(PAGE, BOB, "bob") is None
        acquire(pool, ALICE).release()


class TestTheBookkeeping:
    def test_tells_when_it_has_something_to_do(self) -> None:
        quarantine = Quarantine(30.0, limit=REGION)
        first, second = Region(0, 0), Region(1, REGION)
        assert quarantine.next_end() == float("inf")
        quarantine.rest(first, 1.0)
        quarantine.rest(second, 2.0)
        assert quarantine.next_end() == 31.0
        quarantine.end_early(second)
        assert (quarantine.resting, quarantine.pinned, quarantine.early_room()) == (1, 2 * REGION, 0)
        assert quarantine.sweep(31.0) == [first]
        assert quarantine.next_end() == 32.0
        assert quarantine.sweep(32.0) == []
        assert quarantine.pinned == 0
