"""As `zcserver_compiled`, on uvloop."""

from __future__ import annotations

from benchmarks.contenders import uvloop_streams, zcserver_compiled, zcserver_messages
from benchmarks.side import main


def unavailable() -> str | None:
    return uvloop_streams.unavailable() or zcserver_compiled.unavailable()


if __name__ == "__main__":
    import uvloop

    zcserver_compiled.take_compiled()
    main("zcserver-compiled-uvloop", zcserver_messages.send, zcserver_messages.receive, uvloop.new_event_loop)
