"""The account of receive memory: who found it full hears when that has changed."""

import threading

import pytest

from zcserver.memory import Pool
from zcserver.receiving.memory import ReceiveMemory

SIZE = 1 << 20


@pytest.fixture
def memory():
    pool = Pool(SIZE)
    yield ReceiveMemory(SIZE, pool)
    pool.close()


def test_who_waits_is_called_once_when_the_last_view_is_gone(memory):
    called = []
    view = memory.take(SIZE)
    assert not memory.reserve(1)
    memory.when_free(lambda: called.append(1))
    assert not called
    del view
    assert called == [1]
    memory.unreserve(0)
    assert called == [1]
    assert memory.reserve(SIZE)


def test_memory_that_another_thread_gave_back_before_one_could_wait_is_not_missed(memory):
    called = []
    views = [memory.take(SIZE)]
    assert not memory.reserve(1)
    thread = threading.Thread(target=views.clear)
    thread.start()
    thread.join()
    memory.when_free(lambda: called.append(1))
    assert called == [1]


def test_nobody_is_called_while_nothing_has_come_back(memory):
    called = []
    view = memory.take(SIZE)
    for _ in range(3):
        assert not memory.reserve(1)
        memory.when_free(lambda: called.append(1))
    assert not called
    del view
    assert called == [1, 1, 1]
