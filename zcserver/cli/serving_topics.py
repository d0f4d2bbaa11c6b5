"""The topics of ``zcserver serve``, beside its files: which streams are theirs, and standard input as one."""

from collections.abc import Callable

from zcserver.context import Context
from zcserver.errors import MisuseError, TransferError, printable
from zcserver.memory import Buffer
from zcserver.server import FileServer, Request
from zcserver.server.totals import Totals
from zcserver.stream import Stream
from zcserver.topics import Topics, TopicSettings

from .exits import explain
from .pieces import Pieces
from .settings import ServeSettings
from .standard import say, standard_input


class Offer:
    """Give ``handle`` to :func:`zcserver.serve`: one process serves topics and, if not None, ``files``."""

    def __init__(
        self,
        settings: ServeSettings,
        files: FileServer | None,
        context: Context,
        on_request: Callable[[Request], object],
    ) -> None:
        self.files = files
        self.totals = files.totals if files is not None else Totals()
        self.topics: Topics | None = None
        self._settings = settings
        self._stdin = standard_input() if settings.stdin else -1
        if settings.topics or settings.stdin:
            kept = TopicSettings(
                retain_bytes=settings.retain,
                retain_count=settings.retain_count,
                retain_seconds=settings.retain_seconds or float("inf"),
                block=settings.allow_block,
                pinned=max(settings.retain, TopicSettings().pinned),
            )
            self.topics = Topics(context, kept, publishable=settings.topics, on_request=on_request)

    async def handle(self, stream: Stream) -> None:
        """Serve one stream."""
        topics = self.topics
        if topics is not None and (stream.method in topics.methods or self.files is None):
            self.totals.add(stream.connection)
            await topics.handle(stream)
        else:
            assert self.files is not None  # there is one of them at least
            await self.files.handle(stream)

    @property
    def active(self) -> int:
        """Running requests, subscriptions among them."""
        files = self.files.active if self.files is not None else 0
        return files + (self.topics.active if self.topics is not None else 0)

    def close(self) -> None:
        """Let subscribers have what was published, and end their streams."""
        if self.topics is not None:
            self.topics.close()

    async def publish_standard_input(self) -> None:
        """Until it ends; the server goes on. What cannot be published ends it with a line on stderr."""
        assert self.topics is not None
        name = self._settings.stdin
        topic = self.topics.topic(name)

        async def acquire(nbytes: int) -> Buffer | None:
            return topic.try_acquire(nbytes)  # nobody who holds memory makes the input wait

        pieces = Pieces(self._stdin, self._settings.stdin_as, acquire, topic.settings.largest)
        count = 0
        try:
            while (piece := await pieces.next()) is not None:
                await topic.publish(piece)
                count += 1
        except (TransferError, MisuseError, OSError) as error:
            say(f"zcserver: standard input: {explain(error)[0]}")
        messages = "1 message was" if count == 1 else f"{count} messages were"
        say(f"standard input has ended: {messages} published to {printable(name)}")
