"""A stream's bytes in pieces; apart from ``stream.py`` because mypyc compiles no asynchronous generators."""

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from .stream import Stream


async def chunks_of(stream: "Stream") -> AsyncGenerator[memoryview, None]:
    """See :meth:`Stream.chunks`."""
    while True:
        try:
            view = await stream.receive_chunk()
        except anyio.EndOfStream:
            return
        yield view
