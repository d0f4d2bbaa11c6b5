"""How much memory this process may use before its control group's limit kills it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zcserver.context import MIB

_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
_UNLIMITED: Final = 1 << 60  # version 1 writes "no limit" as the largest multiple of a page
_LEAST: Final = 4 * MIB


def affordable(most: int, share: int = 4, process: Path = Path("/proc/self")) -> int:
    """``most`` bytes, but no more than one ``share``-th of the control group's memory limit."""
    limit = memory_limit(process)
    return most if limit is None else max(min(most, limit // share), min(most, _LEAST))


def memory_limit(process: Path = Path("/proc/self")) -> int | None:
    """The strictest limit in bytes of this process's control group and those above it, None if there is none.

    Version 1 and 2, in a container (which sees its own group as the top) and outside.
    """
    limits = [limit for directory, name in _groups(process) for limit in _limits(directory, name)]
    return min(limits, default=None)


def _groups(process: Path) -> Iterator[tuple[list[Path], str]]:
    """For each mounted hierarchy: the directories from this process's group up, and the limit's file name."""
    try:
        memberships = (process / "cgroup").read_text().splitlines()
        mounts = (process / "mountinfo").read_text().splitlines()
    except OSError:
        return
    paths: dict[str, str] = {}
    for line in memberships:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            paths["cgroup2"] = path
        elif "memory" in controllers.split(","):
            paths["cgroup"] = path
    for line in mounts:
        left, _, right = line.partition(" - ")
        root, place = (_unescaped(field) for field in left.split()[3:5])
        kind, _, options = right.split()[:3]
        if kind in paths and (kind == "cgroup2" or "memory" in options.split(",")):
            name = "memory.max" if kind == "cgroup2" else "memory.limit_in_bytes"
            yield _upwards(Path(place), root, paths[kind]), name


def _upwards(mount: Path, root: str, path: str) -> list[Path]:
    """Only ``root`` of the hierarchy and what is below it can be seen at ``mount``."""
    root = root.rstrip("/")
    below = path[len(root) :].strip("/") if path == root or path.startswith(root + "/") else ""
    group = mount / below if ".." not in below.split("/") else mount
    return [group, *(parent for parent in group.parents if parent.is_relative_to(mount))]


def _limits(directories: list[Path], name: str) -> Iterator[int]:
    for directory in directories:
        try:
            text = (directory / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < _UNLIMITED:
            yield int(text)


def _unescaped(field: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), field)
