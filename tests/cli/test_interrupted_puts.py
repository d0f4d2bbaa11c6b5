"""``zcserver put``, interrupted however often, goes on where it was when it is said again."""

import os
import signal

import pytest

from tests.cli.commands import running, serving, zcserver
from tests.cli.test_get_command import MIB, SLOWLY, kill, reaches


@pytest.fixture
def source(local, random_bytes):
    (local / "big").write_bytes(random_bytes)
    return local / "big"


@pytest.fixture
def server(served):
    with serving(served, "--writable") as server:
        yield server


def interrupt(server, served, source, nbytes, number):
    """A ``put`` that gets the signal when the server has so many bytes; its exit code and last words."""
    with running("put", source, f"{server.url}/", *SLOWLY) as process:
        staging = served / ".zcserver"
        while not os.listdir(staging):
            assert process.poll() is None
        assert reaches(staging / os.listdir(staging)[0], nbytes, process)
        words = kill(process, number)
    return process.returncode, words


def test_killed_again_and_again_it_sends_each_byte_about_once(server, served, source, random_bytes):
    for number in range(1, 7):
        interrupt(server, served, source, 4 * MIB * number, signal.SIGKILL)
    words = zcserver("put", source, f"{server.url}/").stderr
    assert "were there already" in words
    assert (served / "big").read_bytes() == random_bytes
    assert os.listdir(served / ".zcserver") == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_by_its_user_it_can_go_on(server, served, source, random_bytes, number, code):
    assert interrupt(server, served, source, 2 * MIB, number)[0] == code
    assert "were there already" in zcserver("put", source, f"{server.url}/").stderr
    assert (served / "big").read_bytes() == random_bytes


def test_a_server_that_was_stopped_has_forgotten_it(served, source, random_bytes):
    with serving(served, "--writable") as server:
        interrupt(server, served, source, 2 * MIB, signal.SIGINT)
        assert server.stop() == 0
    assert os.listdir(served / ".zcserver") == []
    with serving(served, "--writable") as server:
        assert "already" not in zcserver("put", source, f"{server.url}/").stderr
    assert (served / "big").read_bytes() == random_bytes
