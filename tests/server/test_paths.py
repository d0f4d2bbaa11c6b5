"""Nothing outside the served directory can be opened, whatever a peer asks for."""

import errno
import os
import socket
import stat

import pytest

from zcserver import ErrorCode, StreamResetError
from zcserver.file_protocol import NOT_A_FILE, escape, unescape, validator_of
from zcserver.kernel.calls import Kernel
from zcserver.server import Root
from zcserver.server.paths import NotCachedError
from zcserver.server.refusals import shown


class WithoutOpenat2(Kernel):
    """An old kernel (ENOSYS) or a sandbox (EPERM)."""

    def __init__(self, number):
        self.number = number

    def openat2(self, directory_fd, path, flags, mode, resolve):
        raise OSError(self.number, os.strerror(self.number))


@pytest.fixture(params=[None, errno.ENOSYS, errno.EPERM], ids=["openat2", "ENOSYS", "EPERM"])
def root(request, tmp_path):
    served = tmp_path / "served"
    (served / "sub" / "deep").mkdir(parents=True)
    (served / "file").write_bytes(b"content")
    (served / "sub" / "deep" / "inner").write_bytes(b"inner")
    (tmp_path / "secret").write_bytes(b"secret")
    kernel = Kernel() if request.param is None else WithoutOpenat2(request.param)
    with Root(served, kernel) as root:
        root.top = served
        root.follows_links = request.param is None
        yield root


def content(root, path):
    file = root.open_file(path)
    try:
        return os.pread(file.fd, 100, 0)
    finally:
        file.close()


def refusal(root, path):
    with pytest.raises(StreamResetError) as caught:
        root.open_file(path).close()
    assert "\n" not in caught.value.reason
    return caught.value


@pytest.mark.parametrize("path", ["/file", "file", "//file", "/./file", "/fil%65", "/./././file"])
def test_a_file_is_found_under_each_way_to_write_its_path(root, path):
    assert content(root, path) == b"content"


def test_a_file_in_a_subdirectory_is_found(root):
    assert content(root, "/sub/deep/inner") == b"inner"


@pytest.mark.parametrize(
    "path",
    [
        "/../secret",
        "../secret",
        "/sub/../../secret",
        "/%2e%2e/secret",
        "/..%2fsecret",
        "/sub/..",
        "/.%2e/secret",
    ],
)
def test_dots_lead_nowhere(root, path):
    assert refusal(root, path).code == ErrorCode.FORBIDDEN


def test_an_escape_is_resolved_once(root):
    assert refusal(root, "/%252e%252e/secret").code == ErrorCode.NOT_FOUND
    (root.top / "%2e%2e").mkdir()
    (root.top / "%2e%2e" / "secret").write_bytes(b"harmless")
    assert content(root, "/%252e%252e/secret") == b"harmless"


def test_an_absolute_path_begins_at_the_root_of_the_server(root):
    secret = root.top.parent / "secret"
    assert secret.exists()
    assert refusal(root, f"{secret}").code == ErrorCode.NOT_FOUND
    assert refusal(root, f"/{secret}").code == ErrorCode.NOT_FOUND
    assert refusal(root, str(root.top / "file")).code == ErrorCode.NOT_FOUND


@pytest.mark.parametrize("way", ["../", "{outside}/", "/proc/self/root{outside}/"])
def test_a_symbolic_link_does_not_lead_out(root, way):
    (root.top / "link").symlink_to(way.format(outside=root.top.parent) + "secret")
    assert (root.top / "link").exists()
    assert refusal(root, "/link").code == ErrorCode.FORBIDDEN


def test_a_linked_directory_does_not_lead_out(root):
    (root.top / "up").symlink_to("..")
    assert refusal(root, "/up/secret").code in (ErrorCode.FORBIDDEN, ErrorCode.NOT_FOUND)
    assert refusal(root, "/up/served/file").code in (ErrorCode.FORBIDDEN, ErrorCode.NOT_FOUND)


def test_a_link_in_a_circle_is_refused(root):
    (root.top / "circle").symlink_to("circle")
    assert refusal(root, "/circle").code == ErrorCode.FORBIDDEN


def test_a_link_that_stays_within_is_followed_where_the_kernel_vouches_for_it(root):
    (root.top / "sub" / "link").symlink_to("../file")
    if root.follows_links:
        assert content(root, "/sub/link") == b"content"
    else:
        assert refusal(root, "/sub/link").code == ErrorCode.FORBIDDEN


def test_a_link_has_the_status_of_what_it_leads_to_or_none(root):
    (root.top / "link").symlink_to("file")
    if root.follows_links:
        assert root.stat(b"link").st_size == len(b"content")
    else:
        with pytest.raises(OSError, match="symbolic links"):
            root.stat(b"link")


def test_a_link_that_took_the_place_of_a_directory_is_not_followed(root):
    (root.top / "swapped").symlink_to("sub")
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        root.open_listed(b"swapped")


def test_a_directory_is_no_file(root):
    for path in ("/sub", "/sub/", "/", ""):
        error = refusal(root, path)
        assert error.code == NOT_A_FILE
        assert "-r" in error.reason


def test_a_slash_behind_a_file_asks_for_a_directory(root):
    assert refusal(root, "/file/").code == ErrorCode.NOT_FOUND
    assert refusal(root, "/file/x").code == ErrorCode.NOT_FOUND


def test_a_fifo_is_refused_at_once_without_a_writer(root):
    os.mkfifo(root.top / "fifo")
    assert refusal(root, "/fifo").code == NOT_A_FILE


def test_a_socket_is_refused(root):
    with socket.socket(socket.AF_UNIX) as listener:
        directory = os.open(root.top, os.O_RDONLY)
        try:
            listener.bind(f"/proc/self/fd/{directory}/socket")
        finally:
            os.close(directory)
        assert refusal(root, "/socket").code == NOT_A_FILE


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="making a device needs root")
def test_a_device_is_refused(root):
    try:
        os.mknod(root.top / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("no device can be made here")
    assert refusal(root, "/zero").code in (NOT_A_FILE, ErrorCode.FORBIDDEN)


def test_a_zero_byte_is_refused_and_does_not_cut_the_name(root):
    assert refusal(root, "/file%00").code == ErrorCode.NOT_FOUND
    assert refusal(root, "/file\0.txt").code == ErrorCode.NOT_FOUND


@pytest.mark.parametrize("path", ["/" + "x" * 300, "/x" * 3000])
def test_a_path_that_is_too_long_is_not_found_and_not_repeated_in_full(root, path):
    error = refusal(root, path)
    assert error.code == ErrorCode.NOT_FOUND
    assert len(error.reason) < 300


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_forbidden(root):
    (root.top / "file").chmod(0)
    assert refusal(root, "/file").code == ErrorCode.FORBIDDEN


def test_no_descriptor_is_left_behind_by_refusals(root):
    os.mkfifo(root.top / "fifo")
    before = len(os.listdir("/proc/self/fd"))
    for path in ("/sub", "/fifo", "/nothing", "/sub/deep/nothing", "/../x"):
        refusal(root, path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_root_that_is_renamed_is_still_served_and_its_successor_is_not(root, tmp_path):
    root.top.rename(tmp_path / "elsewhere")
    root.top.mkdir()
    (root.top / "file").write_bytes(b"successor")
    assert content(root, "/file") == b"content"


def test_a_lost_race_with_a_rename_is_tried_again_and_then_told(tmp_path):
    class Racing(Kernel):
        calls = 0

        def openat2(self, *arguments):
            self.calls += 1
            if self.calls <= self.lost:
                raise BlockingIOError(errno.EAGAIN, "raced")
            return super().openat2(*arguments)

    (tmp_path / "file").write_bytes(b"content")
    kernel = Racing()
    with Root(tmp_path, kernel) as root:
        kernel.lost = 3
        assert content(root, "/file") == b"content"
        kernel.lost = 1000
        assert "try again" in refusal(root, "/file").reason


def test_what_is_cached_in_part_only_is_left_to_a_thread(root, monkeypatch):
    preadv = os.preadv

    def only_the_head(fd, buffers, offset, flags=0):
        return min(preadv(fd, buffers, offset, flags), 3)

    file = root.open_file("/file")
    monkeypatch.setattr(os, "preadv", only_the_head)
    with pytest.raises(NotCachedError):
        file.read(0, 7, cached=True)
    assert file.read(0, 7) == b"content"
    file.close()


@pytest.mark.parametrize(
    "name",
    [b"plain", "ünï €".encode(), b"100%", b"%41", b"\xff\xfe", b"new\nline", b"a b?#&", b"\xc2\x9b31m"],
)
def test_every_name_makes_the_round_trip_as_printable_text(name):
    wire = escape(name)
    assert unescape(wire) == name
    assert "\n" not in wire
    assert "\x9b" not in wire
    wire.encode()


def test_a_validator_tells_files_and_versions_of_them_apart(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"one")
    seen = {validator_of(file.stat())}
    os.utime(file, ns=(1, 1))
    seen.add(validator_of(file.stat()))
    os.truncate(file, 1)
    os.utime(file, ns=(1, 1))
    seen.add(validator_of(file.stat()))
    (tmp_path / "other").write_bytes(b"1")
    os.utime(tmp_path / "other", ns=(1, 1))
    seen.add(validator_of((tmp_path / "other").stat()))
    assert len(seen) == 4


def test_paths_are_shown_without_control_characters():
    assert shown("/a\x1b[31m\nb") == "/a?[31m?b"
