"""One stream inside the engine: its codec state, what waits to be sent, what was received."""

from collections import deque
from collections.abc import Callable

from zcserver_protocol.streams import StreamState

from .receiving.inbox import Inbox
from .sending.completion import Completion
from .sending.message import Outgoing


def _ignore() -> None:
    pass


class Channel:
    """The engine's half of a stream; ``zcserver.stream.Stream`` is the application's.

    ``queued`` counts the bytes not framed yet (of a batch, with its room for headers). ``on_news`` is called
    when there is something to receive or the stream ended, ``on_room`` when queued bytes went out,
    ``on_reply`` when the peer replied, ``on_commit`` when it has committed messages or never will.
    ``error`` is what ended the stream early.
    """

    __slots__ = (
        "__weakref__",
        "error",
        "framed_end",
        "handled",
        "inbox",
        "last_completion",
        "on_commit",
        "on_news",
        "on_reply",
        "on_room",
        "outgoing",
        "peer_commits",
        "queued",
        "ready",
        "reply",
        "room_below",
        "starving",
        "state",
        "wants_news",
    )

    def __init__(self, state: StreamState, inbox: Inbox) -> None:
        self.state = state
        self.inbox = inbox
        self.outgoing: deque[Outgoing] = deque()
        self.ready = False
        self.queued = 0
        self.framed_end = 0  # where its last frame ends in the connection's count of DATA bytes
        self.handled = False  # a handler works on it: closing waits for that
        self.starving = False  # waits for receive memory before it may grant credit
        self.reply: dict[str, object] | None = None
        self.last_completion: Completion | None = None  # of the message that ended our side
        self.peer_commits = 0
        self.error: BaseException | None = None
        self.wants_news = False  # a receiver waits for ``on_news``
        self.room_below = -1  # call ``on_room`` when no more than so many bytes are queued
        self.on_news: Callable[[], object] = _ignore
        self.on_room: Callable[[], object] = _ignore
        self.on_reply: Callable[[], object] = _ignore
        self.on_commit: Callable[[], object] = _ignore

    def fail(self, error: BaseException) -> None:
        """The stream ended early: whoever waits on it learns why."""
        if self.error is None:
            self.error = error
        while self.outgoing:
            self.outgoing.popleft().fail(error)
        self.queued = 0
        if not self.inbox.discarding:
            self.inbox.close()
        self.on_news()
        self.on_room()
        self.on_reply()
        self.on_commit()
