"""A buffer: pool memory that somebody fills, sends, and that comes home when every holder is done with it.

    filling ──seal()──▷ sent ──home() by the last holder──▷ home
       └───release()──▷ released

Nobody writes a byte while it is in flight (rule 1): sealing ends the buffer's own view, and is refused
while any slice, cast or array taken from it is alive.
"""

from enum import IntEnum
from types import TracebackType
from typing import TYPE_CHECKING, Final, NoReturn

from zcserver.dropping import warn_of_dropped
from zcserver.errors import BufferStateError, ViewsAliveError
from zcserver.memory.principal import Principal
from zcserver.memory.region import QUIET, Span

if TYPE_CHECKING:
    from zcserver.memory.pool import Pool


class BufferState(IntEnum):
    """Where a buffer is in its life."""

    FILLING = 0
    """Its holder may write to it."""
    SENT = 1
    """Sealed: connections hold it, peers may be reading it."""
    HOME = 2
    """Every holder is done; the memory is the pool's."""
    RELEASED = 3
    """Given back without being sent; the memory is the pool's."""


# Plain ints: an Enum look-up on every transition would be a tenth of a buffer's whole life.
FILLING: Final = int(BufferState.FILLING)
SENT: Final = int(BufferState.SENT)
HOME: Final = int(BufferState.HOME)
RELEASED: Final = int(BufferState.RELEASED)

TRANSITIONS: Final = {
    "seal": (FILLING, SENT),
    "release": (FILLING, RELEASED),
    "hold": (SENT, SENT),
    "home": (SENT, HOME),  # by the last holder; until then it stays SENT
    "abandon": (SENT, HOME),  # likewise
    "data": (SENT, SENT),
}
"""Every verb's only legal state and where it leads. Any other use raises and changes nothing."""

_MISUSE: Final = {
    ("seal", SENT): "it was sent already; acquire a new one, or send it to all streams at once",
    ("seal", HOME): "it was sent and has come home; acquire a new one for the next message",
    ("seal", RELEASED): "it was released; acquire a new one",
    ("release", SENT): "it was sent; it comes home by itself once every peer has acknowledged it",
    ("release", HOME): "it was sent and has come home by itself; drop it",
    ("release", RELEASED): "it was released already; release a buffer once, or use it in a `with` block",
}

_GONE: Final = memoryview(b"")
_GONE.release()


class Buffer:
    """Memory of a :class:`~zcserver.memory.pool.Pool`, acquired for one principal.

    Fill it through ``view`` (a writable ``memoryview`` of ``nbytes`` bytes, format ``B``), then send it:
    sending takes it over. Otherwise call :meth:`release`, or use ``with``: leaving the block releases it
    unless it was sent. A buffer dropped unsent goes back with a ``ResourceWarning``.

    ``address`` is where it lies; ``by_reference`` says whether it may go to its principal by reference.
    Buffers belong to the thread of their pool.
    """

    __slots__ = (
        "__weakref__", "_data", "_pool", "_span", "address", "by_reference", "holder", "holders", "nbytes",
        "principal", "state", "view",
    )  # fmt: skip

    def __init__(
        self, pool: "Pool", span: Span, nbytes: int, principal: Principal, holder: object, by_reference: bool
    ) -> None:
        self.state = FILLING
        self.holders = 0
        self._pool = pool
        self._span = span
        self._data: memoryview | None = None
        self.address = span.address
        self.nbytes = nbytes
        self.principal = principal
        self.holder = holder
        self.by_reference = by_reference
        self.view = memoryview(span.exporter)

    def seal(self, allow_views: bool = False) -> None:
        """End the filling: nobody writes from now on. The caller becomes the first holder.

        Call :meth:`home` once when done (and once per further :meth:`hold`). Sending calls this; programs
        do not. With ``allow_views`` slices and arrays may stay alive, and whoever writes through them
        changes what the peer reads.

        Raises :class:`BufferStateError` if it was sent or released before, and :class:`ViewsAliveError`
        while slices, casts or arrays of it are alive. It stays as it was then: fetch ``view`` anew (an
        alias of the old one may have ended), drop the others, and send again.
        """
        if self.state != FILLING:
            self._misused("seal")
        span = self._span
        try:
            self.view.release()
        except BufferError:
            if not allow_views:
                self._refuse_views()
        else:
            if not allow_views and span.references() > QUIET:
                self.view = memoryview(span.exporter)
                self._refuse_views()
        self.state = SENT
        self.holders = 1
        tally = span.tally
        tally.filling -= span.pages
        tally.in_flight += span.pages
        if self.by_reference:
            span.region.sent = True
            for region in span.tail:
                region.sent = True

    def hold(self) -> None:
        """One holder more: the memory comes home only after one more :meth:`home`. Only while sent."""
        if self.state != SENT:
            self._misused("hold")
        self.holders += 1

    def home(self) -> None:
        """This holder is done: its peer has acknowledged the last byte. The last one recycles the memory."""
        if self.state != SENT:
            self._misused("home")
        self.holders -= 1
        if self.holders:
            return
        self.state = HOME
        span = self._span
        span.tally.in_flight -= span.pages
        if self._data is not None:
            self._end_data(self._data)
        self._pool.recycle(span)

    def abandon(self) -> None:
        """This holder is done because its connection is gone: the dead peer may still read the memory.

        So its region serves nobody any more, and is cut loose when its last buffer comes home.
        """
        if self.state != SENT:
            self._misused("abandon")
        if self.by_reference:
            self._pool.taint(self._span)
        self.home()

    def release(self) -> None:
        """Give the memory back unsent. If views of it are alive, it goes back when the last one is gone."""
        if self.state != FILLING:
            self._misused("release")
        self.state = RELEASED
        span = self._span
        span.tally.filling -= span.pages
        try:
            self.view.release()
        except BufferError:
            self.view = _GONE  # somebody exports from it and keeps it; the memory waits for that
        self._pool.recycle(span)

    @property
    def data(self) -> memoryview:
        """The sealed content, read-only, for the copy lane; valid until the last holder is done."""
        if self._data is None:
            if self.state != SENT:
                self._misused("data")
            self._data = memoryview(self._span.exporter).toreadonly()
        return self._data

    def _end_data(self, data: memoryview) -> None:
        try:
            data.release()
        except BufferError:
            self._data = None  # somebody exports from it and keeps it; the memory waits for that

    def _refuse_views(self) -> NoReturn:
        raise ViewsAliveError(
            f"cannot send this buffer of {self.nbytes} bytes: slices, casts or arrays of its view are alive "
            "and could still write to it; drop them first (`del array`, `with buffer.view[:n] as part:`), or "
            "send with allow_views=True and never write through them"
        ) from None

    def _misused(self, verb: str) -> NoReturn:
        state = BufferState(self.state)
        words = _MISUSE.get((verb, self.state))
        if words is None:
            legal = BufferState(TRANSITIONS[verb][0]).name.lower()
            words = f"it is {state.name.lower()}, and {verb} is for a buffer that is {legal}"
        raise BufferStateError(f"cannot {verb} this buffer of {self.nbytes} bytes: {words}")

    def __len__(self) -> int:
        return self.nbytes

    def __enter__(self) -> "Buffer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.state == FILLING:
            self.release()

    def __del__(self) -> None:
        # May run in the middle of anything, even in another thread: the pool only notes it here.
        if not hasattr(self, "view"):
            return  # it was not made by a pool; compiled code would crash on what is not set
        state = self.state
        if state >= HOME:
            return
        if state == FILLING:
            self.view = _GONE
            text = "was dropped without being sent or released; use it in a `with` block"
        else:
            text = f"was dropped while {self.holders} holders had it in flight"
            self._data = None
        self.state = RELEASED
        self._pool.note_dropped(self._span, state == SENT)
        words = f"a buffer of {self.nbytes} bytes, held by {self.holder}, {text}"
        warn_of_dropped(self, words)

    def __repr__(self) -> str:
        state = BufferState(self.state).name.lower()
        way = "by reference" if self.by_reference else "by copy"
        return f"<Buffer {self.nbytes} bytes, {state}, {way}, held by {self.holder}>"
