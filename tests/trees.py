"""Directory trees for tests: odd names, deep paths, empty things; and what a tree holds, to compare."""

import os
import random
from pathlib import Path

ODD_NAMES = [
    b"plain",
    "ünï".encode(),
    b"100%",
    b"%41",
    b"\xff\xfe",
    b"new\nline",
    b" a?b#c& ",
    b"-rf",
    b"~",
    b"*",
    b"x" * 255,
    b"x" * 254 + b"y",
    b"\x1b[31mred",
    b".hidden",
]


def make_tree(top, files=30, seed=1):
    """Odd names for files and for folders, a deep path, empty files and folders; odd times."""
    chance = random.Random(seed)
    top = os.fsencode(top)
    os.makedirs(top, exist_ok=True)
    for name in ODD_NAMES:
        folder = os.path.join(top, b"in " + name[:200])
        os.makedirs(folder, exist_ok=True)
        for path in (os.path.join(top, name), os.path.join(folder, name)):
            Path(os.fsdecode(path)).write_bytes(chance.randbytes(chance.choice([0, 1, 4096, 70_000])))
    os.makedirs(os.path.join(top, *[b"deep" + bytes([65 + level]) for level in range(20)]))
    os.makedirs(os.path.join(top, b"empty", b"emptier"))
    for number in range(files):
        Path(os.fsdecode(top), f"{number:04}").write_bytes(chance.randbytes(chance.randrange(30_000)))
    for directory, folders, names in os.walk(top, topdown=False):
        for name in folders + names:
            mtime_ns = chance.randrange(10**18, 17 * 10**17)
            os.utime(os.path.join(directory, name), ns=(mtime_ns, mtime_ns))
    return Path(os.fsdecode(top))


def content_of(top, times=True):
    """Everything below ``top``: relative names with content (None for a folder) and, if asked for, time."""
    found = {}
    top = os.fsencode(top)
    for directory, folders, names in os.walk(top):
        for name in folders + names:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            content = None if name in folders else Path(os.fsdecode(path)).read_bytes()
            found[os.path.relpath(path, top)] = (content, status.st_mtime_ns if times else 0)
    return found
