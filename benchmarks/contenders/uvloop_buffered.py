"""uvloop at its best: `StreamWriter` to a `BufferedProtocol`."""

from __future__ import annotations

from benchmarks.contenders.asyncio_buffered import receive
from benchmarks.contenders.asyncio_streams import send
from benchmarks.contenders.uvloop_streams import unavailable
from benchmarks.side import main

__all__ = ["unavailable"]

if __name__ == "__main__":
    import uvloop

    main("uvloop-buffered", send, receive, uvloop.new_event_loop)
