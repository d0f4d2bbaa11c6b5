"""The digest of a file or of memory, piece by piece: whoever waits for it can be cancelled meanwhile."""

import os
from typing import Any, Final

import anyio.from_thread

_PIECE: Final = 1 << 20


def hash_file(hasher: Any, fd: int, nbytes: int) -> None:
    """Update ``hasher`` with the first ``nbytes``, or what there is of them. In a thread of anyio's only."""
    piece = memoryview(bytearray(_PIECE))
    position = 0
    while position < nbytes and (count := os.preadv(fd, [piece[: nbytes - position]], position)):
        anyio.from_thread.check_cancelled()
        hasher.update(piece[:count])
        position += count


def hash_memory(hasher: Any, memory: memoryview) -> None:
    """As :func:`hash_file`, for all of ``memory``, a view of bytes."""
    for position in range(0, len(memory), _PIECE):
        anyio.from_thread.check_cancelled()
        hasher.update(memory[position : position + _PIECE])
