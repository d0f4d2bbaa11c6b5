"""Waiting for memory: first come first served, in turn, cancellable, atomic, with words when it fails."""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import anyio
import numpy as np
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from tests.raw_peer import deadline, until
from zcserver.errors import MisuseError, PoolTimeoutError, RequestTooLargeError
from zcserver.memory import COMMON, PAGE, REGION, Buffer, Pool, Principal, PrincipalKind
from zcserver.memory.waiting import PATIENCE

pytestmark = pytest.mark.anyio

MIB = 1 << 20
FRIEND = Principal("friend", PrincipalKind.IDENTITY)


class Requests:
    """Requests that run as tasks, and the order in which they were granted."""

    def __init__(self, pool: Pool, tasks: anyio.abc.TaskGroup) -> None:
        self.pool = pool
        self.tasks = tasks
        self.granted: list[str] = []
        self.buffers: dict[str, list[Buffer]] = {}
        self.scopes: dict[str, anyio.CancelScope] = {}

    async def ask(self, name: str, *sizes: int, holder: str, principal: Principal = FRIEND) -> None:
        """Start a request, and return once it waits."""
        self.tasks.start_soon(self._run, name, sizes, holder, principal)
        await wait_all_tasks_blocked()

    async def _run(self, name: str, sizes: tuple[int, ...], holder: str, principal: Principal) -> None:
        with anyio.CancelScope() as scope:
            self.scopes[name] = scope
            if len(sizes) == 1:
                buffers = [await self.pool.acquire(sizes[0], principal, holder)]
            else:
                buffers = await self.pool.acquire_many(sizes, principal, holder)
            self.buffers[name] = buffers
            self.granted.append(name)

    async def give_back(self, name: str) -> None:
        for buffer in self.buffers.pop(name):
            buffer.release()
        await wait_all_tasks_blocked()


def fill(pool: Pool, size: int = MIB, holder: str = "connection 127.0.0.1:5") -> list[Buffer]:
    """Take everything, in buffers of ``size``."""
    buffers = []
    while (buffer := pool.try_acquire(size, FRIEND, holder)) is not None:
        buffers.append(buffer)
    return buffers


def release(buffers: list[Buffer]) -> None:
    for buffer in buffers:
        if buffer.state == 0:
            buffer.release()


async def test_what_is_free_is_had_at_once() -> None:
    pool = Pool(REGION)
    with await pool.acquire(MIB, FRIEND, "me"):
        both = await pool.acquire_many([PAGE, 2 * PAGE], FRIEND, "me")
        assert [buffer.nbytes for buffer in both] == [PAGE, 2 * PAGE]
        release(both)
    assert await pool.acquire_many([], FRIEND, "me") == []


async def test_a_request_waits_until_a_buffer_comes_home() -> None:
    pool = Pool(REGION)
    held = fill(pool)
    async with anyio.create_task_group() as tasks:
        requests = Requests(pool, tasks)
        await requests.ask("one", MIB, holder="me")
        assert (requests.granted, pool.stats().waiters) == ([], 1)
        held[0].seal()
        held[0].home()
        await wait_all_tasks_blocked()
        assert (requests.granted, pool.stats().waiters) == (["one"], 0)
    release(held)
    check_all_is_free(pool, requests)


def check_all_is_free(pool: Pool, requests: Requests) -> None:
    """Everything can be given back, and is free then."""
    for buffers in requests.buffers.values():
        release(buffers)
    assert pool.stats().free == pool.size


async def test_a_small_request_does_not_overtake_an_earlier_one_of_the_same_holder() -> None:
    pool = Pool(2 * REGION)
    held = fill(pool)
    async with anyio.create_task_group() as tasks:
        requests = Requests(pool, tasks)
        await requests.ask("large", REGION, holder="me")
        await requests.ask("small", PAGE, holder="me")
        assert pool.try_acquire(PAGE, FRIEND, "me") is None
        held.pop().release()
        await wait_all_tasks_blocked()
        assert requests.granted == []  # there is room for the small one
        assert pool.try_acquire(PAGE, FRIEND, "me") is None
        held.pop().release()
        await wait_all_tasks_blocked()
        assert requests.granted == ["large"]
        held.pop().release()
        await wait_all_tasks_blocked()
        assert requests.granted == ["large", "small"]
    release(held)
    check_all_is_free(pool, requests)


async def test_holders_take_turns() -> None:
    pool = Pool(2 * REGION)
    held = fill(pool)
    async with anyio.create_task_group() as tasks:
        requests = Requests(pool, tasks)
        for name in ("a1", "a2", "a3", "b1", "b2", "c1"):
            await requests.ask(name, MIB, holder=name[0])
        while held:
            held.pop().release()
            await wait_all_tasks_blocked()
        while len(requests.granted) < 6:
            await requests.give_back(requests.granted[-1])
        assert requests.granted == ["a1", "b1", "c1", "a2", "b2", "a3"]
    check_all_is_free(pool, requests)


async def test_a_small_request_of_another_holder_may_pass_a_large_one() -> None:
    pool = Pool(2 * REGION)
    held = fill(pool)
    async with anyio.create_task_group() as tasks:
        requests = Requests(pool, tasks)
        await requests.ask("large", REGION, holder="me")
        await requests.ask("small", MIB, holder="you")
        held.pop().release()
        await wait_all_tasks_blocked()
        assert requests.granted == ["small"]
        release(held)
    check_all_is_free(pool, requests)


async def test_but_not_for_ever() -> None:
    """Two small ones that relieve each other would keep a large one waiting until its deadline."""
    pool = Pool(REGION)
    small = pool.try_acquire(MIB, FRIEND, "you")
    assert small is not None
    async with anyio.create_task_group() as tasks:
        requests = Requests(pool, tasks)
        await requests.ask("large", REGION, holder="me")
        passed = 0
        while (another := pool.try_acquire(MIB, FRIEND, "you")) is not None:
            small.release()
            small = another
            passed += 1
        assert PATIENCE // 2 <= passed <= 2 * PATIENCE
        small.release()
        await wait_all_tasks_blocked()
        assert requests.granted == ["large"]
    check_all_is_free(pool, requests)


async def test_who_is_over_its_quota_holds_up_nobody() -> None:
    pool = Pool(2 * REGION)
    modest = Principal("modest", PrincipalKind.IDENTITY, quota=MIB)
    mine = pool.try_acquire(MIB, modest, "me")
    assert mine is not None
    async with anyio.create_task_group() as tasks:
        requests = Requests(pool, tasks)
        await requests.ask("over", PAGE, holder="me", principal=modest)
        for _ in range(2 * PATIENCE):
            other = pool.try_acquire(MIB, FRIEND, "you")
            assert other is not None
            other.release()
        assert requests.granted == []
        mine.release()
        await wait_all_tasks_blocked()
        assert requests.granted == ["over"]
    check_all_is_free(pool, requests)


async def test_many_are_had_together_or_not_at_all() -> None:
    """The fifth deadlock: two holders with one buffer each, both waiting for a second one."""
    pool = Pool(REGION)
    held = fill(pool)
    async with anyio.create_task_group() as tasks:
        requests = Requests(pool, tasks)
        await requests.ask("a", MIB, MIB, holder="a")
        await requests.ask("b", MIB, MIB, holder="b")
        held.pop().release()
        await wait_all_tasks_blocked()
        stats = pool.stats()
        assert (requests.granted, stats.filling, stats.free) == ([], MIB, MIB)
        held.pop().release()
        await wait_all_tasks_blocked()
        assert requests.granted == ["a"]
        await requests.give_back("a")
        assert requests.granted == ["a", "b"]
        assert [buffer.nbytes for buffer in requests.buffers["b"]] == [MIB, MIB]
    check_all_is_free(pool, requests)


async def test_many_that_do_not_all_fit_leave_what_fitted_to_others() -> None:
    pool = Pool(REGION)
    with await pool.acquire(MIB, COMMON, "other"):
        with pytest.raises(PoolTimeoutError):
            await pool.acquire_many([MIB, MIB], FRIEND, "me", timeout=0)
        (await pool.acquire(MIB, FRIEND, "me", timeout=0)).release()
    assert pool.stats().free == pool.size


async def test_common_room_goes_to_whoever_waits() -> None:
    pool = Pool(REGION)
    held = [await pool.acquire(MIB, COMMON, "other", timeout=0) for _ in range(2)]
    async with anyio.create_task_group() as tasks:
        requests = Requests(pool, tasks)
        for name in ("one", "two"):
            await requests.ask(name, MIB, holder=name, principal=Principal(name, PrincipalKind.CONNECTION))
        for expected in (["one"], ["one", "two"]):
            held.pop().release()
            await wait_all_tasks_blocked()
            assert requests.granted == expected
    check_all_is_free(pool, requests)


async def test_common_room_goes_to_whoever_waits_although_more_of_it_was_free() -> None:
    pool = Pool(REGION)
    (await pool.acquire(MIB, COMMON, "other", timeout=0)).release()
    held = [await pool.acquire(size, COMMON, "other", timeout=0) for size in (MIB // 2, MIB)]
    async with anyio.create_task_group() as tasks:
        requests = Requests(pool, tasks)
        await requests.ask("one", MIB, holder="you", principal=Principal("one", PrincipalKind.CONNECTION))
        held.pop().release()
        await wait_all_tasks_blocked()
        assert requests.granted == ["one"]
    release(held)
    check_all_is_free(pool, requests)


async def test_room_in_a_leased_region_goes_to_its_principal_alone() -> None:
    pool = Pool(2 * REGION)
    other = Principal("other", PrincipalKind.IDENTITY)
    mine = [await pool.acquire(MIB, FRIEND, "me", timeout=0) for _ in range(2)]
    others = [await pool.acquire(MIB, other, "you", timeout=0) for _ in range(2)]
    async with anyio.create_task_group() as tasks:
        requests = Requests(pool, tasks)
        await requests.ask("other's", MIB, holder="you", principal=other)
        await requests.ask("mine", MIB, holder="me")
        mine.pop().release()
        await wait_all_tasks_blocked()
        assert requests.granted == ["mine"]
        others.pop().release()
        await wait_all_tasks_blocked()
        assert requests.granted == ["mine", "other's"]
    release(mine + others)
    check_all_is_free(pool, requests)


async def test_a_cancelled_request_lets_the_next_one_through() -> None:
    pool = Pool(REGION)
    held = fill(pool)
    async with anyio.create_task_group() as tasks:
        requests = Requests(pool, tasks)
        await requests.ask("large", REGION, holder="me")
        await requests.ask("small", MIB, holder="me")
        held.pop().release()
        await wait_all_tasks_blocked()
        assert requests.granted == []
        requests.scopes["large"].cancel()
        await wait_all_tasks_blocked()
        assert requests.granted == ["small"]
    release(held)
    check_all_is_free(pool, requests)


async def test_memory_granted_to_a_cancelled_request_goes_to_the_next() -> None:
    pool = Pool(REGION)
    held = fill(pool)
    async with anyio.create_task_group() as tasks:
        requests = Requests(pool, tasks)
        await requests.ask("first", MIB, holder="a")
        await requests.ask("second", MIB, holder="b")
        requests.scopes["first"].cancel()
        held.pop().release()  # granted to the first, which has not run since it was cancelled
        await wait_all_tasks_blocked()
        assert requests.granted == ["second"]
        assert pool.stats().filling == 2 * MIB
    release(held)
    check_all_is_free(pool, requests)


async def test_a_request_cancelled_just_after_it_was_granted_loses_nothing() -> None:
    pool = Pool(REGION)
    held = fill(pool)
    async with anyio.create_task_group() as tasks:
        requests = Requests(pool, tasks)
        await requests.ask("first", MIB, holder="a")
        await requests.ask("second", MIB, holder="b")
        held.pop().release()
        requests.scopes["first"].cancel()
        await wait_all_tasks_blocked()
        assert requests.granted == ["first"]
        assert pool.stats().filling == 2 * MIB
        await requests.give_back("first")
        release(held)
        await wait_all_tasks_blocked()
    check_all_is_free(pool, requests)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_plain_asyncio_cancellation_just_after_the_grant_loses_nothing(anyio_backend: str) -> None:
    """Unlike a cancel scope, it reaches a task whose wait is over already."""
    pool = Pool(REGION)
    held = fill(pool)
    first, second = (asyncio.create_task(pool.acquire(MIB, FRIEND, name)) for name in "ab")
    await wait_all_tasks_blocked()
    held.pop().release()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    (await second).release()
    release(held)
    assert pool.stats().free == pool.size


async def test_the_timeout_names_who_holds_what() -> None:
    pool = Pool(4 * REGION)
    held = fill(pool)
    for buffer in held[:6]:
        buffer.seal()
    with pytest.raises(PoolTimeoutError) as caught:
        await pool.acquire(MIB, FRIEND, "connection 127.0.0.1:6", timeout=0.01)
    text = str(caught.value)
    assert "no 1.0 MiB for connection 127.0.0.1:6 within 0.01 s" in text
    assert "connection 127.0.0.1:5: 6.0 MiB in flight, 2.0 MiB filling" in text
    assert "the pool of 8.0 MiB has 0 bytes free" in text
    assert pool.stats().waiters == 0
    release(held)
    for buffer in held[:6]:
        buffer.home()


async def test_the_timeout_of_a_quota_names_the_quota() -> None:
    pool = Pool(4 * REGION)
    modest = Principal("modest", PrincipalKind.IDENTITY, quota=REGION)
    held = await pool.acquire(MIB + PAGE, modest, "me")
    with pytest.raises(PoolTimeoutError, match=r"modest holds 1\.0 MiB of its quota of 2\.0 MiB"):
        await pool.acquire(MIB, modest, "me", timeout=0)
    held.release()


async def test_a_timeout_of_zero_is_enough_for_what_is_free() -> None:
    pool = Pool(REGION)
    (await pool.acquire(REGION, FRIEND, "me", timeout=0)).release()


@pytest.mark.parametrize(
    ("sizes", "error", "words"),
    [
        ([9 * MIB], RequestTooLargeError, "pool of 8388608 bytes"),
        ([5 * MIB, 4 * MIB], RequestTooLargeError, "never"),
        ([1300 << 10] * 5, RequestTooLargeError, "never"),  # 6.3 MiB, but each needs a region of its own
        ([0], MisuseError, "at least 1 byte"),
        ([PAGE, -1], MisuseError, "at least 1 byte"),
    ],
)
async def test_what_can_never_be_had_is_refused_at_once(
    sizes: list[int], error: type[Exception], words: str
) -> None:
    pool = Pool(8 * MIB)
    with pytest.raises(error, match=words):
        await pool.acquire_many(sizes, FRIEND, "me")
    if len(sizes) == 1:
        with pytest.raises(error, match=words):
            await pool.acquire(sizes[0], FRIEND, "me")
    assert pool.stats().free == pool.size


async def test_more_than_the_quota_is_refused_with_the_quota() -> None:
    modest = Principal("modest", PrincipalKind.CONNECTION, quota=MIB)
    pool = Pool(8 * MIB)
    for request in (pool.acquire(MIB + 1, modest, "me"), pool.acquire_many([MIB, 1], modest, "me")):
        with pytest.raises(RequestTooLargeError, match="modest, whose quota is 1048576 bytes"):
            await request


async def test_the_largest_set_that_fits_is_had() -> None:
    pool = Pool(8 * MIB)
    sizes = [PAGE, MIB, 1300 << 10, 700 << 10, MIB, 1300 << 10, 700 << 10, MIB - PAGE]
    buffers = await pool.acquire_many(sizes, FRIEND, "me")
    assert [buffer.nbytes for buffer in buffers] == sizes
    release(buffers)


async def test_a_waiter_gets_what_an_array_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end is seen by a destructor, which cannot wake anybody itself."""
    monkeypatch.setattr("zcserver.memory.pool.ROUND", 0.01)
    pool = Pool(REGION)
    buffer = pool.try_acquire(REGION, FRIEND, "me")
    assert buffer is not None
    array: Any = np.frombuffer(buffer.view, dtype=np.uint8)
    buffer.release()
    async with anyio.create_task_group() as tasks:
        requests = Requests(pool, tasks)
        await requests.ask("one", REGION, holder="you")
        assert requests.granted == []
        del array, buffer
        with deadline():
            await until(lambda: requests.granted)
    check_all_is_free(pool, requests)


async def test_a_waiter_gets_what_somebody_else_found_to_be_back() -> None:
    pool = Pool(REGION)
    buffer = pool.try_acquire(REGION, FRIEND, "me")
    assert buffer is not None
    part = buffer.view[:1]
    buffer.release()
    async with anyio.create_task_group() as tasks:
        requests = Requests(pool, tasks)
        await requests.ask("one", REGION, holder="you")
        part.release()
        assert pool.live == REGION  # collected here, and given to the one who waits
        await wait_all_tasks_blocked()
        assert requests.granted == ["one"]
    check_all_is_free(pool, requests)


async def test_a_waiter_gets_what_leaves_quarantine(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock, which wakes nobody."""
    monkeypatch.setattr("zcserver.memory.pool.ROUND", 0.01)
    now = [0.0]
    pool = Pool(REGION, clock=lambda: now[0], quarantine_seconds=30, quarantine_limit=0)
    buffer = pool.try_acquire(PAGE, FRIEND, "me")
    assert buffer is not None
    buffer.seal()
    buffer.abandon()
    async with anyio.create_task_group() as tasks:
        requests = Requests(pool, tasks)
        await requests.ask("one", PAGE, holder="you")
        now[0] = 29.0
        pool.sweep(now[0])
        await wait_all_tasks_blocked()
        assert requests.granted == []
        now[0] = 30.0
        with deadline():
            await until(lambda: requests.granted)
    check_all_is_free(pool, requests)


async def test_what_is_only_kept_stays_while_there_is_hope_for_what_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zcserver.memory.pool.ROUND", 1e6)
    pool = Pool(REGION)
    held, asked = fill(pool), []
    pool.reclaimers.append(lambda: bool(asked.append(True)))
    async with anyio.create_task_group() as tasks:
        requests = Requests(pool, tasks)
        await requests.ask("one", MIB, holder="you")
        held.pop().release()
        await wait_all_tasks_blocked()
        assert (requests.granted, asked) == (["one"], [])
    release(held)
    check_all_is_free(pool, requests)


async def test_a_retired_principals_regions_go_to_those_who_wait() -> None:
    pool = Pool(REGION)
    held = fill(pool)
    other = Principal("other", PrincipalKind.IDENTITY)
    async with anyio.create_task_group() as tasks:
        requests = Requests(pool, tasks)
        await requests.ask("one", MIB, holder="you", principal=other)
        pool.retire(FRIEND)
        held.pop().release()
        await wait_all_tasks_blocked()
        assert requests.granted == []  # the region still serves the old principal
        held.pop().release()
        await wait_all_tasks_blocked()
        assert requests.granted == ["one"]
        assert pool.stats().regions_by_principal == {"other": 1}
    check_all_is_free(pool, requests)


async def test_closing_the_pool_ends_the_waiting() -> None:
    pool = Pool(REGION)
    held = fill(pool)
    async with anyio.create_task_group() as tasks:

        async def ask() -> None:
            with pytest.raises(MisuseError, match="closed while"):
                await pool.acquire(MIB, FRIEND, "me")

        tasks.start_soon(ask)
        await wait_all_tasks_blocked()
        pool.close()
    release(held)


async def test_nothing_is_lost_under_a_storm_of_cancelled_requests() -> None:
    pool = Pool(2 * REGION)

    async def storm(holder: str, patience: Callable[[int], int]) -> None:
        for round_number in range(30):
            with anyio.CancelScope() as scope:
                tasks.start_soon(cancel_after, scope, patience(round_number))
                with await pool.acquire((round_number % 4 + 1) * (MIB // 2), FRIEND, holder):
                    await checkpoint()
                with ExitStack() as stack:
                    for buffer in await pool.acquire_many([MIB, PAGE, MIB // 2], FRIEND, holder):
                        stack.enter_context(buffer)
                    await checkpoint()

    async def cancel_after(scope: anyio.CancelScope, steps: int) -> None:
        for _ in range(steps):
            await checkpoint()
        scope.cancel()

    async with anyio.create_task_group() as tasks:
        for index in range(8):
            tasks.start_soon(storm, f"holder {index}", lambda turn, index=index: (turn * 7 + index) % 11)
    assert pool.stats().waiters == 0
    assert pool.stats().free == pool.size
