"""A reader that stops makes the writer's memory stop at the high-water mark : 10 GiB are attempted."""

import json
import subprocess
import sys

import pytest

from tests.transport.recorders import MIB

GIB = 1 << 30


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_ten_gib_for_a_stopped_reader_cost_no_more_than_the_high_water_mark(loop: str) -> None:
    command = [sys.executable, "-m", "tests.transport.stopped_reader", str(10 * GIB), loop]
    cost = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=100).stdout)
    accepted = (
        cost["high"] + cost["received"] + 2 * MIB
    )  # what waits here, what arrived there, the last piece
    assert cost["high"] <= cost["written"] <= accepted
    assert cost["resident"] <= accepted + 8 * MIB, "more is kept than was accepted"
    assert cost["available"] <= GIB, "the kernel keeps it instead; a tenth of the attempt is far beyond noise"
