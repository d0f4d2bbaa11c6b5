"""Who gets which region, and that nobody gets what others may still read."""

from contextlib import closing

from tests.memory.principals import acquire, identity, send, stranger
from zcserver.memory import COMMON, PAGE, REGION, Pool, Principal, PrincipalKind

MIB = 1 << 20


class TestWhoGetsWhat:
    def test_known_principals_lease_regions_for_any_size(self) -> None:
        pool = Pool(4 * REGION)
        group = Principal("the cluster", PrincipalKind.TRUSTED)
        with acquire(pool, 1, identity()) as mine, acquire(pool, 1, group) as ours:
            assert mine.by_reference
            assert ours.by_reference
            assert mine.address // REGION != ours.address // REGION
            assert pool.stats().regions_by_principal == {"friend": 1, "the cluster": 1}

    def test_strangers_share_common_regions_for_little(self) -> None:
        pool = Pool(4 * REGION)
        with acquire(pool, PAGE, stranger("a")) as one, acquire(pool, PAGE, stranger("b")) as two:
            assert not one.by_reference
            assert not two.by_reference
            assert one.address // REGION == two.address // REGION
            assert pool.stats().regions_by_principal == {"common": 1}

    def test_a_stranger_leases_from_a_megabyte_on_and_keeps_to_it(self) -> None:
        pool, peer = Pool(4 * REGION), stranger()
        small = acquire(pool, MIB - PAGE, peer)
        assert not small.by_reference
        large = acquire(pool, PAGE, peer)  # a megabyte in all
        assert large.by_reference
        small.release()
        with acquire(pool, PAGE, peer) as after:
            assert after.by_reference
        large.release()

    def test_strangers_lease_no_more_than_their_share(self) -> None:
        pool = Pool(8 * REGION, stranger_share=0.25)
        buffers = [acquire(pool, REGION, stranger(f"number {index}")) for index in range(4)]
        assert [buffer.by_reference for buffer in buffers] == [True, True, False, False]
        buffers[0].release()
        with acquire(pool, REGION, stranger("number 4")) as buffer:
            assert buffer.by_reference  # an idle region of another stranger
        for buffer in buffers[1:]:
            buffer.release()

    def test_beyond_its_quota_of_regions_a_principal_goes_by_the_copy_lane(self) -> None:
        pool, peer = Pool(4 * REGION), identity(quota=REGION)
        half = [acquire(pool, MIB - PAGE, peer) for _ in range(2)]
        assert [buffer.by_reference for buffer in half] == [True, True]
        half[0].release()
        keep = acquire(pool, PAGE, peer)
        with acquire(pool, MIB, peer) as buffer:  # within the quota, but its region has no such run
            assert not buffer.by_reference
        keep.release()
        half[1].release()

    def test_by_copy_if_the_caller_says_so(self) -> None:
        pool = Pool(REGION)
        with acquire(pool, MIB, identity(), by_reference_ok=False) as buffer:
            assert not buffer.by_reference

    def test_a_known_principal_without_a_region_left_goes_by_the_copy_lane(self) -> None:
        pool = Pool(REGION)
        with acquire(pool, PAGE, stranger()), acquire(pool, PAGE, identity()) as buffer:
            assert not buffer.by_reference

    def test_idle_regions_serve_others_before_anybody_waits(self) -> None:
        pool = Pool(2 * REGION)
        one, two, three = identity("one"), identity("two"), identity("three")
        for each in (one, two, one):
            send(acquire(pool, PAGE, each))
        with acquire(pool, PAGE, three) as buffer:
            assert buffer.by_reference
        # That of `two` had been idle for longer.
        assert pool.stats().regions_by_principal == {"one": 1, "three": 1}
        assert pool.stats().cut == 1

    def test_unused_regions_go_first_then_those_that_need_no_cut(self) -> None:
        pool = Pool(3 * REGION)
        send(acquire(pool, PAGE, identity("sent")))
        acquire(pool, PAGE, identity("unsent")).release()
        with acquire(pool, PAGE, identity("a")), acquire(pool, PAGE, identity("b")):
            assert pool.stats().regions_by_principal == {"sent": 1, "a": 1, "b": 1}
            assert pool.stats().cut == 0

    def test_a_region_that_needs_no_cut_is_taken_before_one_that_a_retired_principal_left(self) -> None:
        pool, gone = Pool(2 * REGION), identity("gone")
        send(acquire(pool, PAGE, gone))
        pool.retire(gone)
        with acquire(pool, PAGE, identity("next")):
            assert pool.stats().cut == 0
            with acquire(pool, PAGE, identity("last")):
                assert pool.stats().cut == 1

    def test_a_retired_principal_gives_its_regions_up_as_they_fall_idle(self) -> None:
        pool, peer = Pool(4 * REGION), identity()
        busy, idle = acquire(pool, REGION, peer), acquire(pool, REGION, peer)
        idle.release()
        pool.retire(peer)
        assert pool.stats().regions_by_principal == {"friend": 1}
        busy.seal()
        busy.home()
        assert pool.stats().regions_by_principal == {}
        pool.retire(peer)  # harmless
        pool.retire(COMMON)

    def test_a_principal_may_come_back_after_it_was_retired(self) -> None:
        pool, peer = Pool(4 * REGION), identity()
        send(acquire(pool, PAGE, peer))
        pool.retire(peer)
        with acquire(pool, PAGE, peer) as buffer:
            assert buffer.by_reference

    def test_retired_strangers_free_their_share(self) -> None:
        pool = Pool(2 * REGION, stranger_share=0.5)
        for index in range(5):
            peer = stranger(f"number {index}")
            buffer = acquire(pool, MIB, peer)
            assert buffer.by_reference
            send(buffer)
            pool.retire(peer)


def test_a_size_that_came_home_is_served_from_the_same_pages_but_never_across_principals() -> None:
    with closing(Pool(2 * REGION)) as pool:
        friend, other = identity("friend"), identity("other")
        buffers = [acquire(pool, 64 << 10, friend) for _ in range(2)]
        address = buffers[0].address
        send(buffers[0])
        again = acquire(pool, 64 << 10, friend)
        foreign = acquire(pool, 64 << 10, other)
        assert again.address == address
        assert foreign.address // REGION != address // REGION
        for buffer in (again, foreign, buffers[1]):
            buffer.release()


def test_a_size_that_came_home_is_not_served_from_a_region_that_has_passed_to_another() -> None:
    with closing(Pool(REGION)) as pool:
        friend, other = identity("friend"), identity("other")
        for buffer in [acquire(pool, 64 << 10, friend) for _ in range(2)]:
            send(buffer)
        one, two = (acquire(pool, 64 << 10, other) for _ in range(2))
        assert one.by_reference
        send(one)
        assert pool.try_acquire(64 << 10, friend, "friend") is None
        two.release()
