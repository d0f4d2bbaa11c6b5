import errno
import gc
import mmap
import os
import select
import socket
import sys
import weakref

import pytest

from tests.kernels import CopyingKernel, FailingKernel, ForbiddenKernel, iovec_of
from zcserver.errors import MisuseError
from zcserver.kernel.calls import (
    DEFAULT,
    IOVECS_AT_MOST,
    PAGE,
    RESOLVE_BENEATH,
    RESOLVE_NO_SYMLINKS,
    IoVec,
    address_of,
    memory_at,
    pointer_to,
)

KIB64 = 64 * 1024


@pytest.fixture
def pipe():
    ends = DEFAULT.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


@pytest.fixture
def pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def pages():
    with mmap.mmap(-1, KIB64, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapping:
        yield mapping


def test_vmsplice_gathers_all_slots_in_order(pipe):
    first, second = b"header--", bytearray(b"payload")
    iovec = iovec_of(first, second)
    assert DEFAULT.vmsplice(pipe[1], iovec.cdata, 2) == 15
    assert os.read(pipe[0], 100) == b"header--payload"


def test_vmsplice_can_start_at_a_later_slot(pipe):
    parts = b"one", b"two", b"three"
    iovec = iovec_of(*parts)
    assert DEFAULT.vmsplice(pipe[1], iovec.cdata + 1, 2) == 8
    assert os.read(pipe[0], 100) == b"twothree"


def test_a_full_pipe_makes_vmsplice_short_and_then_blocking(pipe, pages):
    DEFAULT.set_pipe_size(pipe[1], 4096)
    iovec = iovec_of(pages)
    assert DEFAULT.vmsplice(pipe[1], iovec.cdata, 1) == 4096
    with pytest.raises(BlockingIOError):
        DEFAULT.vmsplice(pipe[1], iovec.cdata, 1)


def test_vmsplice_errors_are_the_usual_exceptions_and_name_the_call(pipe):
    iovec = iovec_of(b"x")
    with pytest.raises(OSError, match="vmsplice") as caught:
        DEFAULT.vmsplice(-1, iovec.cdata, 1)
    assert caught.value.errno == errno.EBADF


def test_vmsplice_into_a_pipe_nobody_reads_is_a_broken_pipe():
    reader, writer = DEFAULT.pipe()
    os.close(reader)
    try:
        with pytest.raises(BrokenPipeError):
            DEFAULT.vmsplice(writer, iovec_of(b"x").cdata, 1)
    finally:
        os.close(writer)


def test_spliced_pages_are_references(pipe, pages):
    pages[:1] = b"A"
    iovec = iovec_of(memoryview(pages)[:1])
    DEFAULT.vmsplice(pipe[1], iovec.cdata, 1)
    pages[:1] = b"B"
    assert os.read(pipe[0], 1) == b"B"


def test_dontneed_cuts_pages_in_flight_loose(pipe, pages):
    pages[:1] = b"A"
    iovec = iovec_of(memoryview(pages)[:1])
    DEFAULT.vmsplice(pipe[1], iovec.cdata, 1)
    DEFAULT.madvise(pages, mmap.MADV_DONTNEED, 0, KIB64)
    pages[:1] = b"B"
    assert os.read(pipe[0], 1) == b"A"


@pytest.mark.parametrize("splice", [DEFAULT.splice, DEFAULT.splice_blocking])
def test_splice_takes_a_file_from_an_offset(pipe, tmp_path, splice):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        assert splice(file.fileno(), pipe[1], 4, 3) == 4
        assert splice(file.fileno(), pipe[1], 4, 10) == 0
        assert file.tell() == 0
    assert os.read(pipe[0], 100) == b"3456"


def test_splice_never_waits_for_an_empty_pipe(pipe, pair):
    with pytest.raises(BlockingIOError):
        DEFAULT.splice(pipe[0], pair[0].fileno(), 1)


def test_pipes_are_non_blocking_and_not_inherited(pipe):
    for fd in pipe:
        assert not os.get_blocking(fd)
        assert not os.get_inheritable(fd)


def test_a_pipe_says_its_size(pipe):
    assert DEFAULT.set_pipe_size(pipe[1], 128 * 1024) == 128 * 1024
    assert DEFAULT.get_pipe_size(pipe[0]) == 128 * 1024


def test_socket_calls_move_the_bytes_given(pair):
    ours, theirs = pair
    assert DEFAULT.sendmsg(ours, [b"ab", memoryview(b"cd")], socket.MSG_MORE) == 4
    assert DEFAULT.send(ours, b"efgh") == 4
    head, tail, rest = bytearray(2), bytearray(3), bytearray(3)
    theirs.recv(8, socket.MSG_PEEK | socket.MSG_WAITALL)
    assert DEFAULT.recvmsg_into(theirs, [head, tail]) == 5
    assert DEFAULT.recv_into(theirs, rest) == 3
    assert head + tail + rest == b"abcdefgh"


def test_unread_counts_what_can_be_read_at_once(pair):
    ours, theirs = pair
    assert DEFAULT.unread(theirs) == 0
    ours.sendall(b"12345")
    assert select.select([theirs], [], [], 10)[0]
    assert DEFAULT.unread(theirs) == 5
    theirs.recv(5)
    assert DEFAULT.unread(theirs) == 0


def test_unacknowledged_counts_what_tcp_holds(pair):
    ours, _theirs = pair
    assert DEFAULT.unacknowledged(ours) == 0
    ours.setblocking(False)
    sent = piece = DEFAULT.send(ours, bytes(1 << 20))
    while piece:
        try:
            piece = DEFAULT.send(ours, bytes(1 << 20))
        except BlockingIOError:
            break
        sent += piece
    assert 0 < DEFAULT.unacknowledged(ours) <= sent


def test_congestion_control_is_set_by_name(pair):
    DEFAULT.set_congestion(pair[0], "reno")
    assert DEFAULT.get_congestion(pair[0]) == "reno"
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
        DEFAULT.set_congestion(pair[0], "no-such-one")


def test_a_page_just_written_is_cached_where_the_file_system_tells(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(8192))
    with path.open("rb") as file:
        assert DEFAULT.page_cached(file.fileno(), 4096) in (True, None)
        assert DEFAULT.page_cached(file.fileno(), 8192) in (True, None)


@pytest.mark.parametrize(
    ("number", "answer"), [(errno.EAGAIN, False), (errno.EOPNOTSUPP, None), (errno.ENOSYS, None)]
)
def test_the_cache_probe_translates_what_the_file_system_says(monkeypatch, number, answer):
    def preadv(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "preadv", preadv)
    assert DEFAULT.page_cached(0, 0) is answer


def test_the_cache_probe_raises_other_errors():
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        DEFAULT.page_cached(-1, 0)


def test_fault_in_makes_every_page_of_an_unaligned_range_resident():
    size = 4 << 20
    with mmap.mmap(-1, size, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS) as cold:
        before = resident_pages()
        DEFAULT.fault_in(address_of(cold) + 100, size - 100)
        assert resident_pages() - before > size // 4096 // 2  # the kernel's counter is approximate


def test_fault_in_reports_memory_that_is_not_there():
    with pytest.raises(OSError, match="POPULATE_READ"):
        DEFAULT.fault_in(4096, 4096)


@pytest.fixture(params=["populated", "copied, as before Linux 5.14"])
def fault_in(request, monkeypatch):
    if request.param != "populated":
        monkeypatch.setattr("zcserver.kernel.calls.MADV_POPULATE_READ", 250)  # no such advice
    return DEFAULT.fault_in


def test_memory_is_resident_when_every_page_of_it_is(fault_in):
    with mmap.mmap(-1, 8 * PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS) as cold:
        start = address_of(cold)
        fault_in(start + 2 * PAGE + 100, 4 * PAGE)  # the third page to the seventh
        assert DEFAULT.resident(start + 2 * PAGE, 5 * PAGE)
        assert DEFAULT.resident(start + 3 * PAGE - 1, 2)
        assert not DEFAULT.resident(start + 2 * PAGE - 1, 2)
        assert not DEFAULT.resident(start + 7 * PAGE - 1, 2)


def test_memory_that_cannot_be_read_is_not_resident_and_cannot_be_faulted_in(tmp_path, fault_in):
    path = tmp_path / "file"
    path.write_bytes(bytes(4 * PAGE))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        os.truncate(path, PAGE)
        assert not DEFAULT.resident(address_of(mapping), 4 * PAGE)
        with pytest.raises(OSError, match="Bad address"):
            fault_in(address_of(mapping), 4 * PAGE)


def test_nothing_is_resident_for_sure_where_proc_does_not_tell(monkeypatch):
    def forbidden(*arguments):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    memory = b"x" * PAGE
    assert DEFAULT.resident(address_of(memory), PAGE)
    monkeypatch.setattr(os, "open", forbidden)
    assert not DEFAULT.resident(address_of(memory), PAGE)


def resident_pages() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1])


def test_openat2_keeps_a_path_beneath_its_folder(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "file").write_bytes(b"hello")
    (tmp_path / "inside" / "link").symlink_to("file")
    (tmp_path / "secret").write_bytes(b"secret")
    folder = os.open(tmp_path / "inside", os.O_PATH)
    try:
        fd = DEFAULT.openat2(folder, b"file", os.O_RDONLY, 0, RESOLVE_BENEATH)
        assert os.read(fd, 10) == b"hello"
        assert not os.get_inheritable(fd)
        os.close(fd)
        for path, resolve, number in (
            (b"../secret", RESOLVE_BENEATH, errno.EXDEV),
            (b"/etc/passwd", RESOLVE_BENEATH, errno.EXDEV),
            (b"link", RESOLVE_NO_SYMLINKS, errno.ELOOP),
            (b"missing", RESOLVE_BENEATH, errno.ENOENT),
        ):
            with pytest.raises(OSError, match=os.strerror(number)):
                DEFAULT.openat2(folder, path, os.O_RDONLY, 0, resolve)
        create = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        created = DEFAULT.openat2(folder, b"new", create, 0o600, RESOLVE_BENEATH)
        assert os.fstat(created).st_mode & 0o777 == 0o600
        os.close(created)
    finally:
        os.close(folder)


def test_openat2_refuses_a_path_that_c_would_cut_short():
    with pytest.raises(ValueError, match="zero byte"):
        DEFAULT.openat2(-1, b"/etc\0/passwd", os.O_RDONLY, 0, 0)


@pytest.mark.parametrize("slots", [0, -1, IOVECS_AT_MOST + 1])
def test_an_iovec_array_keeps_to_the_limit_of_the_kernel(slots):
    with pytest.raises(MisuseError, match="1024"):
        IoVec(slots)


def test_address_of_holds_nothing():
    data = bytearray(b"abc")
    address = address_of(data)
    assert bytes(memory_at(pointer_to(address), 3)) == b"abc"
    data.append(0)


def test_address_of_takes_read_only_memory():
    data = b"abc"
    assert bytes(memory_at(pointer_to(address_of(data)), 3)) == b"abc"


def test_memory_that_is_not_contiguous_is_refused():
    with pytest.raises((BufferError, ValueError)):
        address_of(memoryview(bytes(10))[::2])


def test_a_span_is_writable_memory_whose_views_can_be_counted(pages):
    exporter = memory_at(pointer_to(address_of(pages)), 8)
    alone = sys.getrefcount(exporter)
    view = memoryview(exporter)
    view[:3] = b"abc"
    piece = view[1:]
    assert pages[:3] == b"abc"
    assert sys.getrefcount(exporter) > alone
    view.release()
    assert sys.getrefcount(exporter) > alone, "a slice outlives the view it was cut from"
    del view, piece
    assert sys.getrefcount(exporter) == alone
    watched = weakref.ref(exporter)
    del exporter
    gc.collect()
    assert watched() is None


def test_the_forbidding_kernel_refuses_vmsplice_only(pipe):
    kernel = ForbiddenKernel()
    with pytest.raises(PermissionError):
        kernel.vmsplice(pipe[1], iovec_of(b"x").cdata, 1)
    os.write(pipe[1], b"x")
    assert kernel.get_pipe_size(pipe[1]) > 0


def test_the_copying_kernel_behaves_like_the_real_one_but_for_the_reference(pipe, pages):
    DEFAULT.set_pipe_size(pipe[1], 4096)
    pages[:1] = b"A"
    iovec = iovec_of(memoryview(pages)[:100], memoryview(pages)[:8192])
    assert CopyingKernel().vmsplice(pipe[1], iovec.cdata, 2) == 4096
    pages[:1] = b"B"
    with pytest.raises(BlockingIOError):
        CopyingKernel().vmsplice(pipe[1], iovec.cdata, 2)
    assert os.read(pipe[0], 1) == b"A"


def test_the_failing_kernel_fails_the_nth_call_only():
    kernel = FailingKernel("pipe", 2, error=errno.EMFILE)
    opened = [*kernel.pipe()]
    assert not kernel.fired
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        kernel.pipe()
    assert kernel.failed == "pipe"
    opened += kernel.pipe()
    for fd in opened:
        os.close(fd)


def test_the_failing_kernel_can_be_short_in_every_transfer(pipe, pair):
    ours, theirs = pair
    data = b"abcdef", b"ghi"
    iovec = iovec_of(*data)
    assert FailingKernel("vmsplice", 1, short=7).vmsplice(pipe[1], iovec.cdata, 2) == 7
    assert FailingKernel("splice", 1, short=3).splice(pipe[0], ours.fileno(), 7) == 3
    assert FailingKernel("send", 1, short=2).send(ours, b"xyz") == 2
    assert FailingKernel("sendmsg", 1, short=4).sendmsg(ours, [b"123", b"456"]) == 4
    assert theirs.recv(9, socket.MSG_PEEK | socket.MSG_WAITALL) == b"abcxy1234"
    into = bytearray(9)
    assert FailingKernel("recv_into", 1, short=1).recv_into(theirs, into) == 1
    rest = [memoryview(into)[1:4], memoryview(into)[4:]]
    assert FailingKernel(None, 1, short=4).recvmsg_into(theirs, rest) == 4
    assert into == b"abcxy\0\0\0\0"
