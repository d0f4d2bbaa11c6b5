"""zcserver on uvloop."""

from __future__ import annotations

from benchmarks.contenders import uvloop_streams, zcserver_batch
from benchmarks.side import main


def unavailable() -> str | None:
    return uvloop_streams.unavailable() or zcserver_batch.unavailable()


if __name__ == "__main__":
    import uvloop

    main("zcserver-batch-uvloop", zcserver_batch.send, zcserver_batch.receive, uvloop.new_event_loop)
