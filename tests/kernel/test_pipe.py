import errno
import json
import mmap
import os
import socket
import subprocess
import sys

import pytest

from tests.kernels import METHODS, CopyingKernel, FailingKernel, iovec_of
from zcserver.errors import MisuseError
from zcserver.kernel.calls import DEFAULT, Kernel
from zcserver.kernel.pipe import UNKNOWN, Pipe, PipeShare

MIB = 1 << 20


class QuotaKernel(Kernel):
    """A user past the pipe quota: new pipes have 2 slots, and only up to ``allowed`` bytes are granted."""

    def __init__(self, allowed: int = 8192) -> None:
        self.allowed = allowed

    def pipe(self) -> tuple[int, int]:
        ends = super().pipe()
        super().set_pipe_size(ends[1], 8192)
        return ends

    def set_pipe_size(self, fd: int, size: int) -> int:
        if size > self.allowed:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        return super().set_pipe_size(fd, size)


class InterruptedKernel(Kernel):
    """Control-C arrives inside one call, after the kernel has done its work."""

    def vmsplice(self, fd, iov, count):
        super().vmsplice(fd, iov, count)
        raise KeyboardInterrupt

    def splice(self, source, target, count, offset=None):
        super().splice(source, target, count, offset)
        raise KeyboardInterrupt


@pytest.fixture
def pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def memory():
    """A 1 MiB page-aligned iovec."""
    with mmap.mmap(-1, MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapping:
        mapping[:4] = b"data"
        yield iovec_of(mapping)


@pytest.fixture
def make():
    made = []

    def make_pipe(kernel=DEFAULT, size=MIB):
        made.append(Pipe(kernel, size))
        return made[-1]

    yield make_pipe
    for pipe in made:
        pipe.close()


def fill_socket(sock: socket.socket) -> None:
    while True:
        try:
            sock.send(bytes(MIB))
        except BlockingIOError:
            return


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("kernel", [DEFAULT, CopyingKernel()], ids=["reference", "copies"])
def test_bytes_from_memory_reach_the_socket(make, pair, kernel):
    pipe = make(kernel)
    iovec = iovec_of(b"header", b"payload")
    assert pipe.fill_from_memory(iovec.cdata, 2) == 13
    assert (pipe.queued, pipe.dirty) == (13, True)
    assert pipe.drain_to(pair[0].fileno(), 13) == 13
    assert (pipe.queued, pipe.dirty) == (0, False)
    assert pair[1].recv(100) == b"headerpayload"


@pytest.mark.parametrize("flavour", ["fill_from_file", "fill_from_file_blocking"])
def test_bytes_of_a_file_reach_the_socket(make, pair, tmp_path, flavour):
    pipe = make()
    (tmp_path / "file").write_bytes(b"0123456789")
    with (tmp_path / "file").open("rb") as file:
        fill = getattr(pipe, flavour)
        assert fill(file.fileno(), 4, 100) == 6
        assert fill(file.fileno(), 10, 100) == 0, "the end of the file"
    assert pipe.queued == 6
    assert pipe.drain_to(pair[0].fileno(), 6) == 6
    assert pair[1].recv(100) == b"456789"


def test_drain_never_asks_for_more_than_is_queued(make, pair):
    asked = []

    class Watching(Kernel):
        def splice(self, source, target, count, offset=None):
            asked.append(count)
            return super().splice(source, target, count, offset)

    pipe = make(Watching())
    pipe.fill_from_memory(iovec_of(b"123456").cdata, 1)
    assert pipe.drain_to(pair[0].fileno(), 4) == 4
    assert pipe.drain_to(pair[0].fileno(), MIB) == 2
    assert pipe.drain_to(pair[0].fileno(), MIB) == 0
    assert asked == [4, 2]


def test_a_page_aligned_mebibyte_fills_a_pipe_exactly(make, memory):
    pipe = make()
    assert pipe.slots == 256
    assert pipe.fill_from_memory(memory.cdata, 1) == MIB
    with pytest.raises(BlockingIOError):
        pipe.fill_from_memory(memory.cdata, 1)
    assert (pipe.queued, pipe.usable) == (MIB, True)


def test_a_full_socket_blocks_and_changes_nothing(make, memory, pair):
    pipe = make()
    fill_socket(pair[0])
    pipe.fill_from_memory(memory.cdata, 1)
    with pytest.raises(BlockingIOError):
        pipe.drain_to(pair[0].fileno(), MIB)
    assert (pipe.queued, pipe.usable) == (MIB, True)
    pipe.discard()
    assert (pipe.queued, pipe.usable) == (0, True)
    with pytest.raises(BlockingIOError):
        os.read(pipe.read_fd, 1)


def test_a_file_waits_for_room_in_the_pipe_and_changes_nothing(make, tmp_path):
    pipe = make(size=4096)
    (tmp_path / "file").write_bytes(bytes(8192))
    with (tmp_path / "file").open("rb") as file:
        assert pipe.fill_from_file(file.fileno(), 0, 8192) == 4096
        with pytest.raises(BlockingIOError):
            pipe.fill_from_file(file.fileno(), 4096, 4096)
    assert pipe.queued == 4096


def test_an_error_while_draining_makes_the_pipe_unusable(make, memory, pair):
    pipe = make()
    pipe.fill_from_memory(memory.cdata, 1)
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(BrokenPipeError):
        pipe.drain_to(pair[0].fileno(), MIB)
    assert (pipe.usable, pipe.dirty, pipe.queued) == (False, True, UNKNOWN)
    for use in (
        lambda: pipe.fill_from_memory(memory.cdata, 1),
        lambda: pipe.fill_from_file(0, 0, 1),
        lambda: pipe.drain_to(pair[0].fileno(), 1),
    ):
        with pytest.raises(MisuseError, match="failed"):
            use()
    pipe.discard()
    assert pipe.closed


def test_an_error_while_filling_makes_the_pipe_unusable(make, memory):
    pipe = make(FailingKernel("vmsplice", 1, error=errno.ENOMEM))
    with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
        pipe.fill_from_memory(memory.cdata, 1)
    assert not pipe.usable


def test_an_interruption_leaves_the_count_unknown(make, memory, pair):
    pipe = make(InterruptedKernel())
    with pytest.raises(KeyboardInterrupt):
        pipe.fill_from_memory(memory.cdata, 1)
    assert not pipe.usable
    pipe = make(InterruptedKernel())
    pipe.queued = 4
    os.write(pipe.write_fd, b"data")
    with pytest.raises(KeyboardInterrupt):
        pipe.discard()
    assert not pipe.usable


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EINTR])
def test_calls_that_did_nothing_leave_the_count_as_it_was(make, pair, number):
    pipe = make(FailingKernel("splice", 1, error=number))
    pipe.fill_from_memory(iovec_of(b"abc").cdata, 1)
    with pytest.raises((BlockingIOError, InterruptedError)):
        pipe.drain_to(pair[0].fileno(), 3)
    assert pipe.queued == 3
    assert pipe.drain_to(pair[0].fileno(), 3) == 3


@pytest.mark.parametrize("short", [0, 1, 2])
def test_a_short_splice_is_a_retry(make, pair, short):
    pipe = make(FailingKernel("splice", 1, short=short))
    pipe.fill_from_memory(iovec_of(b"abc").cdata, 1)
    assert pipe.drain_to(pair[0].fileno(), 3) == short
    assert pipe.drain_to(pair[0].fileno(), 3) == 3 - short
    assert pair[1].recv(100) == b"abc"


@pytest.mark.parametrize("trouble", [{"error": errno.EIO}, {"error": errno.EAGAIN}, {"short": 0}])
def test_a_discard_that_fails_closes_the_pipe(make, memory, trouble):
    pipe = make(FailingKernel("splice", 1, **trouble))
    pipe.fill_from_memory(memory.cdata, 1)
    pipe.discard()
    assert pipe.closed


def test_a_discard_goes_on_after_a_short_splice(make, memory):
    pipe = make(FailingKernel("splice", 1, short=5000))
    pipe.fill_from_memory(memory.cdata, 1)
    pipe.discard()
    assert (pipe.queued, pipe.closed) == (0, False)


def test_closing_forgets_the_descriptors_and_works_twice(make, memory, pair):
    before = open_descriptors()
    pipe = make()
    pipe.close()
    pipe.close()
    assert (pipe.read_fd, pipe.write_fd, pipe.closed, pipe.usable, pipe.dirty) == (-1, -1, True, False, False)
    assert open_descriptors() == before
    for use in (
        lambda: pipe.fill_from_memory(memory.cdata, 1),
        lambda: pipe.fill_from_file_blocking(0, 0, 1),
        lambda: pipe.drain_to(pair[0].fileno(), 1),
    ):
        with pytest.raises(MisuseError, match="closed"):
            use()


def test_a_pipe_nobody_holds_is_closed():
    before = open_descriptors()
    pipe = Pipe()
    assert open_descriptors() == before + 2
    del pipe
    assert open_descriptors() == before


@pytest.mark.parametrize("method", ["pipe", "get_pipe_size", "set_pipe_size"])
def test_a_pipe_that_cannot_be_made_leaks_nothing(method):
    before = open_descriptors()
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        Pipe(FailingKernel(method, 1, error=errno.EMFILE))
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("allowed", "slots", "worthwhile"), [(8192, 2, False), (65536, 16, True), (300_000, 64, True)]
)
def test_a_refused_size_is_halved_until_it_is_granted(make, allowed, slots, worthwhile):
    pipe = make(QuotaKernel(allowed))
    assert (pipe.slots, pipe.size, pipe.worthwhile) == (slots, slots * 4096, worthwhile)
    assert DEFAULT.get_pipe_size(pipe.write_fd) == pipe.size


@pytest.fixture
def share():
    with_default = PipeShare()
    yield with_default
    with_default.close()


def test_the_shared_pipe_is_the_same_while_it_is_left_clean(share, pair):
    pipe = share.take()
    pipe.fill_from_memory(iovec_of(b"abc").cdata, 1)
    pipe.drain_to(pair[0].fileno(), 3)
    assert share.take() is pipe
    assert (share.memory_pipes, share.replaced) == (1, 0)


def test_a_shared_pipe_left_dirty_is_replaced_and_its_bytes_reach_nobody(share, pair):
    dirty = share.take()
    dirty.fill_from_memory(iovec_of(b"secret").cdata, 1)
    fresh = share.take()
    assert fresh is not dirty
    assert dirty.closed
    assert share.replaced == 1
    fresh.fill_from_memory(iovec_of(b"public").cdata, 1)
    fresh.drain_to(pair[0].fileno(), 100)
    assert pair[1].recv(100) == b"public"


def test_a_shared_pipe_that_somebody_closed_is_replaced(share):
    share.take().close()
    assert share.memory_pipes == 0
    assert share.take().usable
    assert (share.memory_pipes, share.replaced) == (1, 1)


def test_a_shared_pipe_made_small_by_the_quota_grows_when_the_quota_is_free_again():
    kernel = QuotaKernel()
    share = PipeShare(kernel)
    small = share.take()
    assert not small.worthwhile
    kernel.allowed = MIB
    assert share.take() is small
    assert (small.worthwhile, small.slots) == (True, 256)
    share.close()


def test_leases_are_capped_and_come_back():
    share = PipeShare(file_pipes=2)
    first, second = share.lease(), share.lease()
    assert share.lease() is None
    assert share.file_pipes == 2
    share.give_back(first)
    assert share.lease() is first, "a clean pipe is used again"
    share.give_back(first)
    share.give_back(second)
    assert share.file_pipes == 0
    share.close()
    assert first.closed
    assert second.closed


def test_a_lease_given_back_dirty_is_closed_and_not_lent_again():
    share = PipeShare(file_pipes=1)
    pipe = share.lease()
    pipe.fill_from_memory(iovec_of(b"abc").cdata, 1)
    share.give_back(pipe)
    assert pipe.closed
    other = share.lease()
    assert other is not pipe
    share.give_back(other)
    share.close()


def test_a_pipe_is_given_back_once_and_only_where_it_came_from(share, make):
    pipe = share.lease()
    share.give_back(pipe)
    with pytest.raises(MisuseError):
        share.give_back(pipe)
    with pytest.raises(MisuseError):
        share.give_back(make())


def test_no_lease_is_given_that_is_worse_than_copying():
    before = open_descriptors()
    share = PipeShare(QuotaKernel())
    assert share.lease() is None
    assert share.file_pipes == 0
    assert open_descriptors() == before


def test_no_lease_is_given_when_descriptors_run_out():
    share = PipeShare(FailingKernel("pipe", 1, error=errno.EMFILE))
    assert share.lease() is None
    pipe = share.lease()
    share.give_back(pipe)
    share.close()


def test_leases_smaller_than_usual_are_not_kept():
    kernel = QuotaKernel(allowed=65536)
    share = PipeShare(kernel)
    pipe = share.lease()
    assert pipe.slots == 16
    share.give_back(pipe)
    assert pipe.closed
    share.close()


def test_a_closed_share_lends_nothing_and_closes_what_comes_back():
    before = open_descriptors()
    share = PipeShare()
    share.take()
    leased = share.lease()
    share.close()
    share.close()
    assert share.lease() is None
    with pytest.raises(MisuseError, match="closed"):
        share.take()
    share.give_back(leased)
    assert open_descriptors() == before


def scenario(kernel: Kernel, source: int, target: int) -> bytes:
    """Send a piece of memory and a piece of a file, as a connection would, dropping what fails."""
    share = PipeShare(kernel)
    try:
        pipe = share.take()
        pipe.fill_from_memory(iovec_of(b"memory").cdata, 1)
        while pipe.queued:
            pipe.drain_to(target, pipe.queued)
        lease = share.lease()
        if lease is not None:
            try:
                lease.fill_from_file_blocking(source, 0, 4)
                while lease.queued:
                    lease.drain_to(target, lease.queued)
            finally:
                share.give_back(lease)
    finally:
        share.close()
    return b"memoryfile"


@pytest.mark.parametrize("number", [errno.EIO, errno.EPIPE, errno.ENOMEM, errno.EPERM, errno.EMFILE])
def test_whichever_call_fails_nothing_leaks_and_no_dirty_pipe_survives(pair, tmp_path, number):
    (tmp_path / "file").write_bytes(b"file")
    before = open_descriptors()
    with (tmp_path / "file").open("rb") as file:
        failed = set()
        for nth in range(1, 100):
            kernel = FailingKernel(None, nth, error=number)
            try:
                scenario(kernel, file.fileno(), pair[0].fileno())
            except OSError as error:
                assert error.errno == number  # noqa: PT017
            assert open_descriptors() == before + 1
            if not kernel.fired:
                break
            failed.add(kernel.failed)
    assert failed == {"pipe", "get_pipe_size", "set_pipe_size", "vmsplice", "splice", "splice_blocking"}
    assert failed <= set(METHODS)


QUOTA_SCRIPT = """
import json, os
from zcserver.kernel.pipe import Pipe, PipeShare
os.setgroups([]); os.setgid(UID); os.setuid(UID)
ordinary = os.pipe()  # 16 slots, as every program has a few
pipes = [Pipe() for _ in range(80)]
share = PipeShare()
memory, lease = share.take(), share.lease()
small = memory.slots
for pipe in pipes[:8]:
    pipe.close()
grown = share.take()
print(json.dumps({
    "slots": [pipe.slots for pipe in pipes],
    "small": small,
    "lease": lease is not None,
    "grown": grown.slots,
    "same": grown is memory,
}))
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become a user who has no other pipes")
def test_a_user_past_the_pipe_quota_gets_small_pipes_and_the_truth_about_them():
    with open("/proc/sys/fs/pipe-user-pages-soft") as limit:
        if int(limit.read()) != 16384:
            pytest.skip("another pipe quota than Linux's default")
    uid = 200_000 + os.getpid()  # nobody else's, so that the count starts at zero
    script = QUOTA_SCRIPT.replace("UID", str(uid))
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    slots = found["slots"]
    assert slots[:63] == [256] * 63
    assert slots[63] == 128, "the 64th is refused its full size and takes half"
    assert slots == sorted(slots, reverse=True)
    assert slots[-1] == 2, "what a new pipe gets when the quota is used up"
    assert found["small"] == 2
    assert not found["lease"], "no lease is better than a tiny one"
    assert (found["same"], found["grown"]) == (True, 256), "the shared pipe recovers by itself"
