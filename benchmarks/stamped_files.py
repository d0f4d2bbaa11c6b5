"""Files whose every page says which file and which page it is, so that a receiver can check them cheaply."""

from __future__ import annotations

import os
import struct
from array import array
from pathlib import Path
from typing import NamedTuple

from benchmarks.side import PAGE, CorruptionError

_NUMBER = struct.Struct("=Q")
_WORDS_PER_PAGE = PAGE // _NUMBER.size
_BLOCK = 1 << 20


class Job(NamedTuple):
    """What one run fetches: `files` files of `size` bytes, all of them `passes` times, over one connection
    with up to `in_flight` requests under way."""

    files: int
    size: int
    in_flight: int
    passes: int

    @property
    def nbytes(self) -> int:
        return self.files * self.size * self.passes


def name_of(file: int) -> str:
    return f"{file:06d}"


def create(folder: Path, files: int, size: int) -> None:
    """Write the files, `size` bytes each (a multiple of 4 KiB), and wait until the disk has them.

    Afterwards they are in the page cache, and no writing back disturbs the measurement.
    """
    folder.mkdir()
    for file in range(files):
        with open(folder / name_of(file), "wb", buffering=0) as out:
            for start in range(0, size, _BLOCK):
                out.write(_block(file, start // PAGE, min(_BLOCK, size - start)))
    os.sync()


def _block(file: int, page: int, nbytes: int) -> bytearray:
    block = bytearray(nbytes)
    with memoryview(block).cast("Q") as words:
        words[::_WORDS_PER_PAGE] = array("Q", (_stamp(file, page + i) for i in range(nbytes // PAGE)))
    return block


def _stamp(file: int, page: int) -> int:
    return file << 32 | page


def check(piece: memoryview, file: int, position: int) -> None:
    """Compare the first page that begins in `piece`, which begins at byte `position` of the file.

    Raises `CorruptionError`.
    """
    offset = -position % PAGE
    if offset + _NUMBER.size > len(piece):
        return
    (found,) = _NUMBER.unpack_from(piece, offset)
    if found != _stamp(file, (position + offset) // PAGE):
        raise CorruptionError(f"file {file} has {found:#x} at byte {position + offset}")
