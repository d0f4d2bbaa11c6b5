import dataclasses
import errno
import socket
import weakref

import pytest

from tests.kernels import FailingKernel
from zcserver.kernel.calls import DEFAULT, Kernel
from zcserver.kernel.probe import probe
from zcserver.kernel.sockets import begin_unpaced, is_same_host, prepare, settle


def connected(family: int, host: str) -> tuple[socket.socket, socket.socket]:
    with socket.create_server((host, 0), family=family) as listener:
        ours = socket.create_connection(listener.getsockname()[:2])
        theirs, _ = listener.accept()
    return ours, theirs


@pytest.fixture
def sock():
    ours, theirs = connected(socket.AF_INET, "127.0.0.1")
    with ours, theirs:
        yield ours


@pytest.fixture(scope="module")
def paced():
    """A system whose default is paced, and which lets one choose reno."""
    return dataclasses.replace(probe(), congestion_default="bbr", congestion_unpaced="reno")


class PeerAt:
    """A connected socket as far as addresses go."""

    def __init__(self, family: int, ours: str, peer: str) -> None:
        self.family, self._ours, self._peer = family, ours, peer

    def getsockname(self):
        return self._ours, 1

    def getpeername(self):
        return self._peer, 2


@pytest.mark.parametrize(
    ("ours", "peer", "answer"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.8.9.10", True),
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::1", "::1", True),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", False),
        ("fe80::1%eth0", "fe80::1%eth0", True),
    ],
)
def test_a_peer_with_a_loopback_address_or_our_own_is_on_this_host(ours, peer, answer):
    family = socket.AF_INET6 if ":" in ours else socket.AF_INET
    assert is_same_host(PeerAt(family, ours, peer)) is answer


def test_a_socket_without_a_peer_is_not_on_this_host():
    with socket.socket() as sock:
        assert not is_same_host(sock)


def test_a_unix_socket_is_on_this_host():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert is_same_host(ours)


def test_prepared_sockets_neither_block_nor_wait_for_company(sock, paced):
    prepare(sock, paced)
    assert sock.getblocking() is False
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_peer_on_this_host_gets_unpaced_congestion_control(sock, paced):
    assert prepare(sock, paced) == "reno"


def test_nothing_is_changed_where_the_default_is_unpaced_or_nothing_better_is_known(sock, paced):
    for known in ("reno", None):
        kernel = FailingKernel("set_congestion", 1, error=errno.EPERM)
        default = "reno" if known else "bbr"
        settled = dataclasses.replace(paced, congestion_default=default, congestion_unpaced=known)
        prepare(sock, settled, kernel)
        assert not kernel.fired


def test_a_remote_peer_keeps_what_the_administrator_chose(sock, paced, monkeypatch):
    monkeypatch.setattr("zcserver.kernel.sockets.is_same_host", lambda sock: False)
    kernel = FailingKernel("set_congestion", 1, error=errno.EPERM)
    prepare(sock, paced, kernel)
    assert not kernel.fired


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOENT])
def test_a_refused_congestion_control_leaves_the_one_in_use(sock, paced, number):
    before = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
    assert prepare(sock, paced, FailingKernel("set_congestion", 1, error=number)) == before
    assert sock.getblocking() is False


def test_a_socket_that_does_not_name_its_congestion_control_still_works(sock, paced):
    assert not prepare(sock, paced, FailingKernel("get_congestion", 1, error=errno.ENOPROTOOPT))


class ChoiceOfTwo(Kernel):
    """The default is "bbr", whatever the machine's is; notes what is chosen, and whether for a connection."""

    def __init__(self):
        self.current = weakref.WeakKeyDictionary()
        self.chosen = []

    def get_congestion(self, sock):
        return self.current.get(sock, "bbr")

    def set_congestion(self, sock, name):
        self.current[sock] = name
        try:
            sock.getpeername()
            self.chosen.append((name, "connected"))
        except OSError:
            self.chosen.append((name, "before"))


def test_pacing_is_left_out_before_there_is_a_connection(paced):
    kernel = ChoiceOfTwo()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as ours:
        assert begin_unpaced(listener, paced, kernel)
        assert begin_unpaced(ours, paced, kernel)
        ours.connect(listener.getsockname())
        settle(ours, paced, kernel)
    assert kernel.chosen == [("reno", "before"), ("reno", "before")]


def test_what_somebody_chose_for_the_socket_stays(paced):
    kernel = ChoiceOfTwo()
    with socket.socket() as sock:
        kernel.current[sock] = "vegas"
        assert not begin_unpaced(sock, paced, kernel)
    assert not kernel.chosen


@pytest.mark.parametrize(("has", "gets"), [("reno", ["bbr"]), ("vegas", [])], ids=["ours", "a route's"])
def test_remote_peers_get_the_default_unless_a_route_says_otherwise(sock, paced, monkeypatch, has, gets):
    monkeypatch.setattr("zcserver.kernel.sockets.is_same_host", lambda sock: False)
    kernel = ChoiceOfTwo()
    kernel.current[sock] = has
    settle(sock, paced, kernel)
    assert [name for name, _ in kernel.chosen] == gets


@pytest.mark.parametrize("method", ["get_congestion", "set_congestion"])
def test_a_refusal_before_connecting_changes_nothing(sock, paced, method):
    paced = dataclasses.replace(paced, congestion_default=DEFAULT.get_congestion(sock))
    assert not begin_unpaced(sock, paced, FailingKernel(method, 1, error=errno.EPERM))
    settle(sock, paced, FailingKernel(method, 1, error=errno.EPERM))
