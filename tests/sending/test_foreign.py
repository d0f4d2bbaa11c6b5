import gc

import pytest

from zcserver.sending.foreign import ForeignMemory, ForeignQuarantine


class Garbage:
    """Itself a cycle, so that the garbage collector alone ends it."""

    def __init__(self, *content):
        self.content = content
        self.itself = self


@pytest.fixture
def quarantine():
    return ForeignQuarantine(1 << 20, seconds=30, clock=lambda: 0)


def test_memory_cannot_move_before_it_is_acknowledged(quarantine):
    data = bytearray(b"abc")
    memory = ForeignMemory(memoryview(data), quarantine)
    with pytest.raises(BufferError):
        data.append(0)
    memory.home()
    data.append(0)
    assert quarantine.in_flight == 0


def test_memory_that_dies_with_its_event_loop_is_collected(quarantine):
    """Before Python 3.12 a view that is garbage must not be exported from: the collector crashed on it."""
    data = bytearray(b"abc")
    for _ in range(100):
        view = memoryview(data)
        Garbage(view, ForeignMemory(view, quarantine))
        del view
        gc.collect()
    data.append(0)
