"""The limit of bytes per second: each connection's transfers share one, with the clock in the test's hand."""

import anyio
import pytest

import zcserver
from tests.server.requests import MIB, ask, get, put
from zcserver.file_protocol import DIGEST
from zcserver.pace import Pace
from zcserver.server import FileServer, Root

pytestmark = pytest.mark.anyio


class Clock:
    """The time goes on only when somebody sleeps."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        self.slept = []
        monkeypatch.setattr("zcserver.pace.anyio.current_time", lambda: self.now)
        monkeypatch.setattr("zcserver.pace.anyio.sleep", self.sleep)

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    # Not through anyio itself, which everything else uses, too.
    import types

    monkeypatch.setattr("zcserver.pace.anyio", types.SimpleNamespace())
    monkeypatch.setattr("zcserver.pace.anyio.current_time", None, raising=False)
    monkeypatch.setattr("zcserver.pace.anyio.sleep", None, raising=False)
    return Clock(monkeypatch)


async def test_bytes_take_the_time_that_the_rate_says_after_a_small_burst(clock):
    pace = Pace(1000)
    for _ in range(20):
        await pace.spend(500)
    assert clock.now - 1000 == pytest.approx(20 * 500 / 1000 - 0.1)


async def test_time_that_was_not_used_is_not_saved_up(clock):
    pace = Pace(1000)
    await pace.spend(500)
    clock.now += 3600
    begin = clock.now
    await pace.spend(1000)
    assert clock.now - begin == pytest.approx(0.9)


async def test_without_a_rate_nobody_waits(clock):
    pace = Pace(0)
    await pace.spend(1 << 40)
    assert not clock.slept
    assert pace.piece > 1 << 50


async def test_a_connection_s_transfers_share_its_rate_and_arrive_whole(clock, tmp_path, make_context):
    content = bytes(range(256)) * 4096
    (tmp_path / "file").write_bytes(content)
    with Root(tmp_path) as root, anyio.fail_after(60):
        files = FileServer(root, writable=True, rate=MIB)
        async with (
            zcserver.serve(files.handle, port=0, context=make_context()) as server,
            zcserver.connect(port=server.port, context=make_context()) as connection,
        ):
            assert (await get(connection, "/file"))[1] == content
            assert clock.now - 1000 == pytest.approx(1 - 0.1)
            assert len(clock.slept) >= 8  # evenly, not all at once
            await put(connection, "/copy", content)
            assert clock.now - 1000 == pytest.approx(2 - 0.1)
            assert (await get(connection, "/copy", stable=True))[1][:MIB] == content
            assert clock.now - 1000 == pytest.approx(3 - 0.1)
            assert (await ask(connection, DIGEST, "/copy"))["size"] == MIB
            assert clock.now - 1000 == pytest.approx(4 - 0.1)
        files.close()


async def test_each_connection_has_a_rate_of_its_own(clock, tmp_path, make_context):
    (tmp_path / "file").write_bytes(bytes(MIB))
    with Root(tmp_path) as root, anyio.fail_after(60):
        files = FileServer(root, rate=MIB)
        async with zcserver.serve(files.handle, port=0, context=make_context()) as server:
            for _ in range(2):
                begin = clock.now
                async with zcserver.connect(port=server.port, context=make_context()) as connection:
                    await get(connection, "/file")
                assert clock.now - begin == pytest.approx(1 - 0.1)
