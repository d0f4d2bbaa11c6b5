"""A buffer's life: filling, sent, home; and nobody can write to what is in flight."""

import ctypes
import gc
import warnings

import numpy as np
import pytest

from zcserver.errors import BufferStateError, ViewsAliveError
from zcserver.memory import COMMON, PAGE, REGION, Buffer, BufferState, Pool, Principal, PrincipalKind

SIZE = 64 << 10
FRIEND = Principal("friend", PrincipalKind.IDENTITY)


@pytest.fixture
def pool():
    pool = Pool(4 * REGION)
    yield pool
    gc.collect()
    stats = pool.stats()
    assert stats.free + stats.quarantined == pool.size
    pool.close()


def acquire(pool: Pool, nbytes: int = SIZE, principal: Principal = FRIEND) -> Buffer:
    buffer = pool.try_acquire(nbytes, principal, "the test")
    assert buffer is not None
    return buffer


class TestItsLife:
    def test_it_is_filled_through_its_view_and_read_as_data_once_sealed(self, pool: Pool) -> None:
        buffer = acquire(pool, 5)
        buffer.view[:] = b"hello"
        buffer.seal()
        assert bytes(buffer.data) == b"hello"
        assert buffer.data.readonly
        assert len(buffer) == buffer.nbytes == 5
        buffer.home()

    def test_it_starts_on_a_page_of_its_own(self, pool: Pool) -> None:
        with acquire(pool, 1) as one, acquire(pool, 1) as two:
            assert one.address % PAGE == two.address % PAGE == 0
            assert one.address != two.address

    def test_leaving_its_block_releases_it(self, pool: Pool) -> None:
        with acquire(pool) as buffer:
            assert pool.stats().filling == SIZE
        assert buffer.state == BufferState.RELEASED
        assert pool.stats().free == pool.size

    def test_leaving_its_block_after_it_was_sent_leaves_it_in_flight(self, pool: Pool) -> None:
        with acquire(pool) as buffer:
            buffer.seal()
        assert buffer.state == BufferState.SENT
        assert pool.stats().in_flight == SIZE
        buffer.home()

    def test_it_comes_home_with_the_last_of_its_holders(self, pool: Pool) -> None:
        buffer = acquire(pool)
        buffer.seal()
        buffer.hold()
        buffer.hold()
        for _ in range(2):
            buffer.home()
            assert buffer.state == BufferState.SENT
        assert pool.stats().in_flight == SIZE
        buffer.home()
        assert buffer.state == BufferState.HOME
        assert pool.stats().free == pool.size

    @pytest.mark.parametrize(
        ("before", "verb", "words"),
        [
            (["seal"], "seal", "sent already"),
            (["seal"], "release", "comes home by itself"),
            (["seal", "home"], "seal", "come home"),
            (["seal", "home"], "release", "drop it"),
            (["release"], "seal", "was released"),
            (["release"], "release", "released already"),
            ([], "home", "home is for a buffer that is sent"),
            ([], "hold", "hold is for a buffer that is sent"),
            ([], "abandon", "abandon is for a buffer that is sent"),
            (["seal", "home"], "home", "it is home"),
            (["release"], "abandon", "it is released"),
        ],
    )
    def test_a_wrong_verb_says_what_was_done_wrong_and_changes_nothing(
        self, pool: Pool, before: list[str], verb: str, words: str
    ) -> None:
        buffer = acquire(pool)
        for step in before:
            getattr(buffer, step)()
        state, stats = buffer.state, pool.stats()
        with pytest.raises(BufferStateError, match=words):
            getattr(buffer, verb)()
        assert (buffer.state, pool.stats()) == (state, stats)
        if state == BufferState.FILLING:
            buffer.release()
        elif state == BufferState.SENT:
            buffer.home()

    def test_data_is_for_sealed_buffers(self, pool: Pool) -> None:
        with acquire(pool) as buffer, pytest.raises(BufferStateError, match="cannot data"):
            _ = buffer.data

    def test_its_content_cannot_be_read_once_it_is_home(self, pool: Pool) -> None:
        buffer = acquire(pool)
        buffer.seal()
        data = buffer.data
        buffer.home()
        with pytest.raises(ValueError, match="released"):
            bytes(data)

    def test_it_knows_whom_it_is_for_and_how_it_may_go(self, pool: Pool) -> None:
        with acquire(pool) as leased, acquire(pool, principal=COMMON) as common:
            assert (leased.principal, leased.by_reference, leased.holder) == (FRIEND, True, "the test")
            assert (common.principal, common.by_reference) == (COMMON, False)
            assert "by reference" in repr(leased)
            assert "by copy" in repr(common)


def _slice(buffer: Buffer) -> object:
    return buffer.view[10:20]


def _cast(buffer: Buffer) -> object:
    return buffer.view.cast("I")


def _second_view(buffer: Buffer) -> object:
    return memoryview(buffer.view)


def _array(buffer: Buffer) -> object:
    return np.frombuffer(buffer.view, dtype=np.float32)


def _array_of_a_slice(buffer: Buffer) -> object:
    return np.asarray(buffer.view[:64])[3:].reshape(61, 1)


def _array_over_the_exporter(buffer: Buffer) -> object:
    return np.frombuffer(buffer.view.obj, dtype=np.uint8)


def _direct_export(buffer: Buffer) -> object:
    return (ctypes.c_char * 16).from_buffer(buffer.view)  # makes view.release() itself fail


VIEWS = [_slice, _cast, _second_view, _array, _array_of_a_slice, _array_over_the_exporter, _direct_export]


class TestViews:
    def test_its_own_view_ends_when_it_is_sealed(self, pool: Pool) -> None:
        buffer = acquire(pool)
        view = buffer.view
        buffer.seal()
        for ended in (view, buffer.view):
            with pytest.raises(ValueError, match="released"):
                ended[0] = 1
        buffer.home()

    @pytest.mark.parametrize("take", VIEWS)
    def test_it_is_not_sent_while_something_could_still_write_to_it(self, pool: Pool, take) -> None:
        buffer = acquire(pool)
        alive = take(buffer)
        with pytest.raises(ViewsAliveError, match="65536 bytes"):
            buffer.seal()
        assert buffer.state == BufferState.FILLING
        buffer.view[:4] = b"more"
        del alive
        buffer.seal()
        assert bytes(buffer.data[:4]) == b"more"
        buffer.home()

    @pytest.mark.parametrize("take", VIEWS)
    def test_views_that_are_gone_are_no_obstacle(self, pool: Pool, take) -> None:
        for _ in range(3):  # the second and third time on memory that was viewed before
            buffer = acquire(pool)
            take(buffer)
            buffer.seal()
            buffer.home()

    def test_a_released_slice_is_no_obstacle_although_its_name_lives_on(self, pool: Pool) -> None:
        buffer = acquire(pool)
        with buffer.view[:4] as part:
            part[:] = b"head"
        buffer.seal()
        assert bytes(buffer.data[:4]) == b"head"
        buffer.home()
        del part

    def test_a_view_released_by_hand_is_no_obstacle(self, pool: Pool) -> None:
        buffer = acquire(pool)
        buffer.view.release()
        buffer.seal()
        buffer.home()

    @pytest.mark.parametrize("take", VIEWS)
    def test_views_may_be_allowed_and_keep_the_memory_until_they_are_gone(self, pool: Pool, take) -> None:
        buffer = acquire(pool)
        alive = take(buffer)
        buffer.seal(allow_views=True)
        buffer.home()
        stats = pool.stats()
        assert (stats.viewed, stats.free) == (SIZE, pool.size - SIZE)
        with acquire(pool) as other:
            assert other.address != buffer.address
        del alive, buffer
        assert pool.stats().free == pool.size

    @pytest.mark.parametrize("take", VIEWS)
    def test_memory_released_with_views_alive_waits_for_them(self, pool: Pool, take) -> None:
        buffer = acquire(pool)
        alive = take(buffer)
        buffer.release()
        assert pool.stats().viewed == SIZE
        del alive, buffer
        assert pool.stats().free == pool.size

    def test_a_slice_of_its_data_keeps_the_memory_too(self, pool: Pool) -> None:
        buffer = acquire(pool)
        buffer.seal()
        rest = buffer.data[100:]
        buffer.home()
        assert pool.stats().viewed == SIZE
        rest.release()
        assert pool.stats().free == pool.size


class TestDropped:
    def test_dropped_unsent_it_goes_back_with_a_warning(self, pool: Pool) -> None:
        buffer = acquire(pool)
        with pytest.warns(ResourceWarning, match="held by the test, was dropped without being sent"):
            del buffer
        assert pool.stats().free == pool.size

    def test_dropped_in_a_cycle_it_goes_back_when_it_is_collected(self, pool: Pool) -> None:
        ring: list[object] = [acquire(pool)]
        ring.append(ring)
        del ring
        with pytest.warns(ResourceWarning, match="dropped"):
            gc.collect()
        assert pool.stats().free == pool.size

    def test_dropped_with_an_array_alive_it_goes_back_after_the_array(self, pool: Pool) -> None:
        buffer = acquire(pool)
        array = np.frombuffer(buffer.view, dtype=np.uint8)
        with pytest.warns(ResourceWarning):
            del buffer
        assert pool.stats().filling == SIZE
        array[:] = 7  # still its own memory
        del array
        assert pool.stats().free == pool.size

    def test_dropped_in_flight_its_region_is_cut(self, pool: Pool) -> None:
        buffer = acquire(pool)
        buffer.seal()
        with pytest.warns(ResourceWarning, match="1 holders had it in flight"):
            del buffer
        stats = pool.stats()
        assert (stats.in_flight, stats.quarantined, stats.cut) == (0, REGION, 1)

    def test_used_up_buffers_are_dropped_in_silence(self, pool: Pool) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sent, released = acquire(pool), acquire(pool)
            sent.seal()
            sent.home()
            released.release()
            del sent, released

    def test_an_array_may_outlive_the_pool(self) -> None:
        pool = Pool(REGION)
        buffer = acquire(pool)
        array = np.frombuffer(buffer.view, dtype=np.uint8)
        buffer.release()
        pool.close()
        del buffer, pool
        gc.collect()
        array[:] = 1
        assert array.sum() == SIZE
