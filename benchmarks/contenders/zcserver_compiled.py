"""As `zcserver_messages`, with the zcserver that `make compiled` has built."""

from __future__ import annotations

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from benchmarks.contenders import zcserver_messages
from benchmarks.side import main

PLACE = Path(__file__).parents[2] / "build" / "compiled"


def unavailable() -> str | None:
    if Path(PLACE, f"zcserver__mypyc{EXTENSION_SUFFIXES[0]}").exists():
        return None
    return "it is not built for this Python: `make compiled` does that, with a C compiler"


def take_compiled() -> None:
    """From here on `import zcserver` imports that one."""
    sys.path.insert(0, str(PLACE))


if __name__ == "__main__":
    take_compiled()
    main("zcserver-compiled", zcserver_messages.send, zcserver_messages.receive)
