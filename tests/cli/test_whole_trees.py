"""A tree goes out and comes back by ``put -r``, ``get -r`` and ``sync``, and nothing of it is lost.

A few hundred files up to some MiB; with ``ZCSERVER_TREE=full`` 5,000 up to 2 GiB (15 GiB of disk).
"""

import hashlib
import json
import os
import random
import stat
from pathlib import Path

import pytest

from tests.cli.commands import serving, zcserver
from tests.trees import ODD_NAMES

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
FULL = os.environ.get("ZCSERVER_TREE") == "full"
FILES = 5000 if FULL else 300
LARGE = (2 * GIB, GIB + 1, 300 * MIB - 1) if FULL else (6 * MIB, 3 * MIB + 1)
PATIENCE = 900 if FULL else 60
pytestmark = pytest.mark.timeout(3600 if FULL else 120)


def write(path, nbytes, seed):
    """Content that is nowhere the same: a block of random bytes, turned by one byte more each time."""
    block = random.Random(seed).randbytes(min(nbytes, MIB))
    with open(path, "wb") as file:
        for number in range(0, nbytes, MIB):
            turn = number // MIB % MIB
            file.write((block[turn:] + block[:turn])[: nbytes - number])


def plant(top):
    """All that a tree may hold: sizes from nothing on, odd names and times, deep paths, empty directories."""
    chance = random.Random(7420)
    top = os.fsencode(top)
    folders = [top]
    for number in range(FILES // 10):
        name = chance.choice(ODD_NAMES)[:200] + b" %d" % number
        folders.append(os.path.join(chance.choice(folders[-20:]), name))
    folders += [os.path.join(top, *[b"deep%02d" % level] * 60) for level in range(3)]  # 420 characters
    for folder in folders:
        os.makedirs(folder, exist_ok=True)
    for number in range(FILES // 20):
        os.makedirs(os.path.join(chance.choice(folders), b"empty %d" % number, b"emptier"))
    sizes = [*LARGE, 0, 1, 4095, 4096, 64 * KIB, 64 * KIB + 1, 2 * MIB, 2 * MIB + 1]
    while len(sizes) < FILES:
        sizes.append(chance.choice([0, chance.randrange(4 * KIB), chance.randrange(200 * KIB)]))
    for number, nbytes in enumerate(sizes):
        name = chance.choice(ODD_NAMES)[:240] + b"-%d" % number
        write(os.path.join(chance.choice(folders), name), nbytes, number)
    for directory, _, names in os.walk(top, topdown=False):
        for path in (*(os.path.join(directory, name) for name in names), directory):
            mtime_ns = chance.randrange(-(10**18), 17 * 10**17)
            os.utime(path, ns=(mtime_ns, mtime_ns))


def survey(top):
    """Everything in a tree: relative names with kind, time and, for files, size and digest."""
    found = {}
    top = os.fsencode(top)
    for directory, _, names in os.walk(top):
        for path in (*(os.path.join(directory, name) for name in names), directory):
            status = os.lstat(path)
            content = None
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = status.st_size, hashlib.file_digest(file, "blake2b").hexdigest()
            found[os.path.relpath(path, top)] = (stat.S_IFMT(status.st_mode), status.st_mtime_ns, content)
    return found


def told(*arguments):
    return json.loads(zcserver(*arguments, "--json", timeout=PATIENCE).stdout)


def test_a_large_tree_makes_the_round_trip_and_a_second_sync_moves_nothing(tmp_path):
    planted = tmp_path / "planted"
    plant(planted)
    expected = survey(planted)
    files = sum(content is not None for _, _, content in expected.values())
    nbytes = sum(content[0] for _, _, content in expected.values() if content is not None)
    assert files == FILES
    root = tmp_path / "root"
    root.mkdir()

    def check(place):
        assert survey(place) == expected

    with serving(root, "--writable") as server:
        done = told("put", "-r", planted, f"{server.url}/put")
        assert (done["files"], done["bytes"], done["failures"]) == (files, nbytes, [])
        check(root / "put")
        done = told("get", "-r", f"{server.url}/put", "-o", tmp_path / "got")
        assert (done["files"], done["bytes"], done["failures"]) == (files, nbytes, [])
        check(tmp_path / "got")
        remove(tmp_path / "got")
        done = told("sync", planted, f"{server.url}/synced")
        assert (done["files"], done["bytes"], done["failures"]) == (files, nbytes, [])
        check(root / "synced")
        done = told("sync", f"{server.url}/synced", tmp_path / "back")
        assert (done["files"], done["bytes"], done["failures"]) == (files, nbytes, [])
        check(tmp_path / "back")
    # A server of its own, so that its counters tell what the second time moved.
    with serving(root, "--writable", "--summary", "--access-log", tmp_path / "log") as server:
        for source, target in (
            (planted, f"{server.url}/synced"),
            (f"{server.url}/synced", tmp_path / "back"),
        ):
            done = told("sync", source, target, "--delete")
            assert (done["files"], done["bytes"], done["removed"], done["failures"]) == (0, 0, 0, [])
            assert done["unchanged"] == files
        server.stop()
        totals = json.loads(server.stdout.splitlines()[-1])
    assert totals["file_bytes"] == 0
    assert totals["connections"] == 2
    methods = {line.split()[2] for line in (tmp_path / "log").read_text().splitlines()}
    assert methods == {"LIST", "STAT"}  # neither GET nor PUT, nor a directory touched
    check(root / "synced")
    check(tmp_path / "back")


def remove(top: Path):
    """``shutil.rmtree`` goes as deep as Python's stack; this does not."""
    for directory, folders, names in os.walk(os.fsencode(top), topdown=False):
        for name in names:
            os.unlink(os.path.join(directory, name))
        for name in folders:
            os.rmdir(os.path.join(directory, name))
