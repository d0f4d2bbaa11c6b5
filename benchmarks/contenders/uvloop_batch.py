"""The same batches on uvloop."""

from __future__ import annotations

from benchmarks.contenders.asyncio_batch import receive, send
from benchmarks.contenders.uvloop_streams import unavailable
from benchmarks.side import main

__all__ = ["unavailable"]

if __name__ == "__main__":
    import uvloop

    main("uvloop-batch", send, receive, uvloop.new_event_loop)
