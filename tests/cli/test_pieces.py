"""What a descriptor gives is cut into messages as asked, however it comes."""

import os
from contextlib import closing

import pytest

from zcserver.cli import pieces
from zcserver.cli.pieces import LINES, Pieces
from zcserver.errors import MessageTooLargeError

pytestmark = pytest.mark.anyio


async def no_memory(nbytes):
    return None


@pytest.fixture
def cut(monkeypatch):
    """The lines of what comes in reads of a few bytes, up to ``most`` bytes each."""

    async def cut(content, read, most=1000):
        monkeypatch.setattr(pieces, "_READ", read)
        receiving, sending = os.pipe()
        with closing(os.fdopen(receiving, "rb")):
            with os.fdopen(sending, "wb") as writer:
                writer.write(content)
            source, found = Pieces(receiving, LINES, no_memory, most), []
            try:
                while (line := await source.next()) is not None:
                    found.append(line)
            except MessageTooLargeError:
                found.append("too large")
            return found

    return cut


@pytest.mark.parametrize("read", [1, 2, 3, 5, 100])
async def test_lines_are_the_same_whatever_is_read_at_a_time(cut, read):
    assert await cut(b"one\n\ntwo\r\nthree", read) == [b"one\n", b"\n", b"two\r\n", b"three"]
    assert await cut(b"\n\n", read) == [b"\n", b"\n"]
    assert await cut(b"", read) == []


@pytest.mark.parametrize("read", [1, 3, 100])
async def test_lines_before_one_that_is_too_long_are_not_lost(cut, read):
    assert await cut(b"a\n123\n1234\nb\n", read, most=4) == [b"a\n", b"123\n", "too large"]
    assert await cut(b"a\n12345", read, most=4) == [b"a\n", "too large"]
