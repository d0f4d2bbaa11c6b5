"""A disk that is really slow: a loop device, its reads throttled for one control group. Needs root."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

_GROUPS = Path("/sys/fs/cgroup")
_SPARE = 64 << 20  # for the file system itself


class Disk(NamedTuple):
    """`folder`: where it is mounted. `enter`: puts the calling process under the throttle."""

    folder: Path
    enter: Callable[[], None]


@contextlib.contextmanager
def throttled_disk(place: Path, nbytes: int, rate: int) -> Iterator[Disk]:
    """A file system with room for `nbytes`, read at `rate` bytes per second by processes that entered.

    `place` is an empty directory. Raises OSError or CalledProcessError where that cannot be had.
    """
    image, folder = place / "image", place / "mounted"
    with open(image, "wb") as file:
        file.truncate(nbytes + _SPARE)
    folder.mkdir()
    _run("mkfs.ext4", "-q", str(image))
    device = _run("losetup", "--find", "--show", str(image))
    try:
        _run("mount", device, str(folder))
        try:
            with _group(device, rate) as enter:
                yield Disk(folder, enter)
        finally:
            _run("umount", "--lazy", str(folder))
    finally:
        _run("losetup", "--detach", device)


@contextlib.contextmanager
def _group(device: str, rate: int) -> Iterator[Callable[[], None]]:
    status = os.stat(device)
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    if (_GROUPS / "blkio").is_dir():  # version 1
        group = _GROUPS / "blkio" / f"zcserver-bench-{os.getpid()}"
        limit, line, members = "blkio.throttle.read_bps_device", f"{number} {rate}", "tasks"
    else:
        (_GROUPS / "cgroup.subtree_control").write_text("+io")
        group = _GROUPS / f"zcserver-bench-{os.getpid()}"
        limit, line, members = "io.max", f"{number} rbps={rate}", "cgroup.procs"
    group.mkdir()
    try:
        (group / limit).write_text(line)
        yield lambda: _write(group / members)
    finally:
        group.rmdir()  # the processes that entered have ended


def _write(members: Path) -> None:
    members.write_text("0")


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout.strip()
