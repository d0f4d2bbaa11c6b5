"""The digest of a file in parts, so that others have their turn in between."""

import hashlib
import os
from collections.abc import Callable
from typing import Any, Final

from zcserver.file_protocol import ALGORITHM

from .paths import OpenFile
from .refusals import changed, refusals

_PIECE: Final = 1 << 20  # bytes read at once


class Digest:
    """Call ``proceed`` in a thread, one call at a time, until it is ``whole``; close it.

    ``open_file`` is called by the first one.
    """

    def __init__(self, path: str, open_file: Callable[[], OpenFile]) -> None:
        self.whole = False
        self._path = path
        self._open_file = open_file
        self._file: OpenFile | None = None
        self._position = 0
        self._hasher = hashlib.new(ALGORITHM)

    def proceed(self, nbytes: int) -> int:
        """Hash so many bytes more, and return how many there were.

        StreamResetError if there is no such file, or if it was changed in between.
        """
        if self._file is None:
            self._file = self._open_file()
        file, start = self._file, self._position
        end = start + nbytes
        piece = memoryview(bytearray(min(_PIECE, nbytes, file.size + 1)))
        with refusals(self._path):
            while self._position < end:
                count = os.preadv(file.fd, [piece[: end - self._position]], self._position)
                if not count:
                    self.whole = True
                    break
                self._hasher.update(piece[:count])
                self._position += count
        if self.whole and not file.unchanged():
            raise changed(self._path)
        return self._position - start

    def as_reply(self) -> dict[str, Any]:
        """What is told of a whole one."""
        assert self._file is not None
        return {
            "algorithm": ALGORITHM,
            "digest": self._hasher.hexdigest(),
            "size": self._file.size,
            "validator": self._file.validator,
        }

    def close(self) -> None:
        """Never waits for the disk."""
        if self._file is not None:
            self._file.close()
