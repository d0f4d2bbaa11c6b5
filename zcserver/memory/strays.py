"""Spans that come back through a destructor: of a dropped buffer, or of the last array that viewed one.

Destructors run in the middle of anything, even of a call to the pool, and in any thread. So they only note
the span here; the pool settles it with its next call.
"""

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from zcserver.memory.region import QUIET, Arena, Span

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
        if span.references() > QUIET:
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
        self.follow(exporter, span, state)

    def follow(self, exporter: Any, span: Span, state: int) -> None:
        """The span is due when ``exporter``, which all views of it hang off, is gone."""
        loan = _Loan(exporter, _views_gone)
        loan.strays = self
        loan.span = span
        loan.state = state
        _VIEWED.add(loan)


class _Loan(weakref.ref[Any]):
    __slots__ = ("span", "state", "strays")

    strays: Strays
    span: Span
    state: int
    __hash__ = object.__hash__  # by identity: a dead reference has no other
    __eq__ = object.__eq__


# Not in the pool: views do not know that their memory belongs to one. This keeps the mapping for them.
_VIEWED: Final[set[_Loan]] = set()


def _views_gone(loan: _Loan) -> None:
    _VIEWED.discard(loan)
    loan.strays.add(loan.span, loan.state)
