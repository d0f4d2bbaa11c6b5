"""Spans that come back through a destructor: of a dropped buffer, or of the last array that viewed one.

Destructors run in the middle of anything, even of a call to the pool, and in any thread. So they only note
the span here; the pool settles it with its next call.
"""

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from zcserver.memory.region import Arena, Span, viewed

VIEWED: Final = -1
"""Beside a buffer's states: given back, but views of it are alive."""


class Strays:
    """The spans noted, each with the state whose tally it still weighs on."""

    __slots__ = ("arena", "notify", "spans")

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.notify: Callable[[], object] | None = None
        """Called after a span was noted, in whatever thread that happens."""
        self.spans: deque[tuple[Span, int]] = deque()

    def note(self, span: Span, state: int) -> None:
        """Nobody holds the span any more; it is due now, or when the last view of it is gone."""
        if viewed(span):
            self.await_views(span, state)
        else:
            self.add(span, state)

    def add(self, span: Span, state: int) -> None:
        """The span is due."""
        self.spans.append((span, state))
        if self.notify is not None:
            self.notify()

    def await_views(self, span: Span, state: int) -> None:
        """Leave the span to the views of it; it is due when the last one is gone."""
        exporter, span.exporter = span.exporter, None
        reference = weakref.ref(exporter, _views_gone)
        _VIEWED[id(reference)] = (reference, self, span, state)


# Not in the pool: views do not know that their memory belongs to one. This keeps the mapping for them.
_VIEWED: Final[dict[int, tuple["weakref.ref[Any]", Strays, Span, int]]] = {}


def _views_gone(reference: "weakref.ref[Any]") -> None:
    _, strays, span, state = _VIEWED.pop(id(reference))
    strays.add(span, state)
