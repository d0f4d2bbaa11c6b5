"""Who may do what with a file that takes another one's place: what its predecessor allowed, never more.

The bits of the group say nothing without the group, and where there is an access control list (acl(5)) they
are its mask. So both go along; where they cannot, nobody gets by them what "others" do not have as well.

A client takes ``permissions_of(os.stat(path), path)``. A server that has the directory open takes
``permissions_of(status, f"/proc/self/fd/{directory}/".encode() + name)``. Then ``keep_permissions(fd, old)``;
``keep_permissions(fd, old, disk)`` where the calls go through another class, which inherits ``Attributes``.
"""

import errno
import os
from dataclasses import dataclass
from typing import Final

_ACL: Final = "system.posix_acl_access"
_NO_ACL: Final = {errno.ENODATA, errno.EOPNOTSUPP, errno.ENOSYS}


class Attributes:
    """The calls that set the attributes of an open file; OSError as the system says."""

    def set_mode(self, fd: int, mode: int) -> None:
        os.fchmod(fd, mode)

    def set_group(self, fd: int, group: int) -> None:
        os.fchown(fd, -1, group)

    def set_acl(self, fd: int, acl: bytes | None) -> None:
        """``acl`` is in the system's form (linux/posix_acl_xattr.h); None removes the one that is there."""
        if acl is None:
            os.removexattr(fd, _ACL)
        else:
            os.setxattr(fd, _ACL, acl)


_CALLS: Final = Attributes()


@dataclass(frozen=True, slots=True)
class Permissions:
    """``mode`` has the nine bits, ``acl`` is in the system's form, None where they are all there is."""

    mode: int
    group: int
    acl: bytes | None


def permissions_of(status: os.stat_result, path: str | bytes | os.PathLike[str]) -> Permissions:
    """Of a file by its ``status``. No OSError: a list that cannot be read is one that cannot be kept."""
    mode = status.st_mode & 0o777
    try:
        return Permissions(mode, status.st_gid, _acl_of(path))
    except OSError:
        return Permissions(_narrowed(mode), status.st_gid, None)


def keep_permissions(fd: int, old: Permissions, disk: Attributes = _CALLS) -> None:
    """Give them to the open file, as far as this process is allowed to. Raises OSError of ``set_mode``.

    Until then it must be its owner's alone, by its mode or by its directory's.
    """
    mode = old.mode
    try:
        if os.fstat(fd).st_gid != old.group:
            disk.set_group(fd, old.group)
        if _acl_of(fd) != old.acl:  # one may come from the directory (the default ACL)
            disk.set_acl(fd, old.acl)
    except OSError:
        mode = _narrowed(mode)
    # Not where it has them: some file systems have no permissions to set.
    if os.fstat(fd).st_mode & 0o777 != mode:
        disk.set_mode(fd, mode)


def _acl_of(file: int | str | bytes | os.PathLike[str]) -> bytes | None:
    try:
        return os.getxattr(file, _ACL)
    except OSError as error:
        if error.errno in _NO_ACL:
            return None
        raise


def _narrowed(mode: int) -> int:
    """What the group and others may both do is all that either may."""
    common = mode >> 3 & mode & 0o007
    return mode & 0o700 | common << 3 | common
