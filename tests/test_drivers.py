"""What the event loops do for engines."""

import errno
import threading

import pytest
import trio

from tests.raw_peer import until
from zcserver.drivers import TrioLoop

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "trio"


async def test_work_cancelled_while_it_waits_for_a_thread_says_so():
    """Else nobody closes the file that was to be read."""
    gate = threading.Event()
    outcomes = []
    begun = []

    def work():
        begun.append(1)
        return gate.wait(60) and 1

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as tasks:
            loop = TrioLoop(tasks)
            readers = int(loop._readers().total_tokens)
            for _ in range(readers + 1):
                loop.offload(work, lambda count, error: outcomes.append(error))
            await until(lambda: len(begun) == readers)
            scope.cancel()
            gate.set()
    assert len(outcomes) == readers + 1
    (error,) = filter(None, outcomes)
    assert error.errno == errno.ECANCELED
