"""The same streams on uvloop."""

from __future__ import annotations

import importlib.util

from benchmarks.contenders.asyncio_streams import receive, send
from benchmarks.side import main


def unavailable() -> str | None:
    return None if importlib.util.find_spec("uvloop") else "uvloop is not installed"


if __name__ == "__main__":
    import uvloop

    main("uvloop", send, receive, uvloop.new_event_loop)
