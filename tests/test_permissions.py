"""The permissions of a file go to the one that takes its place, with the group and list that they are of."""

import errno
import os
import stat
import struct

import pytest

from zcserver.permissions import Attributes, Permissions, keep_permissions, permissions_of

ACL = "system.posix_acl_access"
OWNER, USER, GROUP, MASK, OTHER = 1, 2, 4, 16, 32  # tags of linux/posix_acl.h


def a_list(user, named, group, mask, other):
    """An access control list that has an entry for user 4711."""
    entries = (OWNER, user, -1), (USER, named, 4711), (GROUP, group, -1), (MASK, mask, -1), (OTHER, other, -1)
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


def permissions(fd):
    return stat.S_IMODE(os.fstat(fd).st_mode)


class Refusing(Attributes):
    def set_group(self, fd, group):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def set_acl(self, fd, acl):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


@pytest.fixture
def new(tmp_path):
    fd = os.open(tmp_path / "new", os.O_CREAT | os.O_RDWR, 0o600)
    yield fd
    os.close(fd)


@pytest.fixture
def with_lists(tmp_path):
    probe = tmp_path / "probe"
    probe.touch()
    try:
        os.setxattr(probe, ACL, a_list(6, 6, 0, 6, 0))
    except OSError as error:
        pytest.skip(f"the file system has no access control lists: {error}")


@pytest.mark.parametrize(
    ("mode", "kept"),
    [(0o660, 0o600), (0o640, 0o600), (0o664, 0o644), (0o755, 0o755), (0o604, 0o600), (0o777, 0o777)],
)
def test_bits_of_a_group_that_cannot_be_kept_are_nobodys(new, mode, kept):
    keep_permissions(new, Permissions(mode, os.fstat(new).st_gid + 1, None), Refusing())
    assert permissions(new) == kept


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o660, 0o777])
def test_bits_of_the_same_group_are_kept(new, mode):
    keep_permissions(new, Permissions(mode, os.fstat(new).st_gid, None), Refusing())
    assert permissions(new) == mode


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another group")
def test_the_group_goes_along(new):
    keep_permissions(new, Permissions(0o660, 4711, None))
    assert (permissions(new), os.fstat(new).st_gid) == (0o660, 4711)


def test_the_list_goes_along(new, tmp_path, with_lists):
    old = tmp_path / "probe"
    keep_permissions(new, permissions_of(old.stat(), old))
    assert os.getxattr(new, ACL) == a_list(6, 6, 0, 6, 0)
    assert permissions(new) == 0o660


def test_the_mask_of_a_list_that_cannot_be_kept_is_no_right_of_the_group(new, tmp_path, with_lists):
    old = tmp_path / "probe"
    keep_permissions(new, permissions_of(old.stat(), old), Refusing())
    assert permissions(new) == 0o600


def test_a_list_that_comes_from_the_directory_gives_nobody_more(new, with_lists):
    group = os.fstat(new).st_gid
    os.setxattr(new, ACL, a_list(6, 6, 6, 0, 0))
    keep_permissions(new, Permissions(0o660, group, None), Refusing())
    assert permissions(new) == 0o600  # and so is the mask
    keep_permissions(new, Permissions(0o660, group, None))
    assert ACL not in os.listxattr(new)
    assert permissions(new) == 0o660


def test_a_list_that_cannot_be_read_cannot_be_kept(tmp_path):
    (tmp_path / "file").touch(0o660)
    (tmp_path / "file").chmod(0o660)
    status = (tmp_path / "file").stat()
    assert permissions_of(status, tmp_path / "nowhere") == Permissions(0o600, status.st_gid, None)
    assert permissions_of(status, tmp_path / "file") == Permissions(0o660, status.st_gid, None)
