"""One stream of a connection, as the application sees it: messages both ways, on any anyio event loop."""

import operator
from collections.abc import AsyncGenerator, Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, SupportsIndex

import anyio
import anyio.to_thread

from zcserver_protocol.errors import ErrorCode
from zcserver_protocol.frames import HEADER_SIZE

from .again import again
from .channel import Channel
from .chunks import chunks_of
from .dropping import warn_of_dropped
from .errors import MisuseError, PoolTimeoutError
from .kernel.calls import address_of
from .leaving import LEFT, dropped, stop_behind
from .memory import Buffer
from .receiving.inbox import CHUNKS, MESSAGES
from .receiving.message import Message
from .sending.batch import Batch
from .sending.completion import Completion
from .sending.files import FileRegion, file_size
from .sending.foreign import ForeignMemory
from .sending.lanes import REFERENCE_THRESHOLD
from .sending.message import Outgoing, batch_of_messages, end_marker
from .views import as_bytes, is_mapped
from .wakeups import QUEUED_MESSAGES, Wakeups

if TYPE_CHECKING:
    from .connection import Connection


class Stream:
    """Opened by :meth:`Connection.open`, or handed to the peer's handler.

    ``method``, ``path`` and ``args`` are what the opener said. Any number of tasks may send; one receives.
    Iterate over it for whole messages, or use :meth:`chunks` or :meth:`receive_into`. ``on_change`` is called
    when the peer has committed messages, has ended its side, or the stream has failed.

    Open it by ``async with await connection.open(…) as stream``: leaving the block gives up what goes on,
    after an error or a cancellation at once, otherwise once what was sent up to an end is delivered. One
    that its opener drops is given up, too, with a ResourceWarning if the peer had not ended its side.
    """

    def __init__(self, connection: "Connection", channel: Channel) -> None:
        self.connection = connection
        self.method: str = channel.state.method
        self.path: str = channel.state.path
        self.args: dict[str, Any] = dict(channel.state.args)
        self._engine = connection.engine
        self._context = connection.context
        self._channel = channel
        self._inbox = channel.inbox
        self._high_water = connection.context.limits.window
        self._wakeups = Wakeups(channel, self._high_water)
        self._receiving = False
        self._left = False

    @property
    def on_change(self) -> Callable[[], object]:
        return self._wakeups.on_change

    @on_change.setter
    def on_change(self, callback: Callable[[], object]) -> None:
        self._wakeups.on_change = callback

    # -- sending -------------------------------------------------------------------------------------

    async def send(self, data: Any, *, end: object = False, allow_views: object = False) -> Completion:
        """Queue one message and return its :class:`Completion`; waits for flow control only.

        ``data`` is a pool :class:`Buffer` of this connection (it goes by reference and is gone for you:
        rule 1), or any C-contiguous object with the buffer protocol (bytes, array, numpy array, mmap),
        which must not be changed before the completion resolves. That goes by reference only to peers the
        application trusts. A :class:`Batch` of this connection is several messages with one completion, and
        goes as a buffer does. ``end=True`` makes it, or the batch's last one, the stream's last message.

        Cancelled while it waits, it has queued nothing and a buffer is still yours. Raises
        BufferStateError and ViewsAliveError (see :meth:`Buffer.seal`), MisuseError after the end, and
        StreamResetError or ConnectionLostError when stream or connection are dead.
        """
        channel = self._channel
        if channel.queued >= self._high_water or len(channel.outgoing) >= QUEUED_MESSAGES:
            await self._wait_for_room()
        if channel.error is not None or channel.last_completion is not None:
            self._check_sendable()
        if isinstance(data, Buffer):
            data.seal(bool(allow_views))
            outgoing = Outgoing(data.nbytes, data, None, self._address(data), bool(end))
        elif isinstance(data, Batch):
            data.seal(bool(allow_views))
            outgoing = batch_of_messages(data, self._address(data.buffer), bool(end))
        else:
            view = as_bytes(data)
            if is_mapped(data):
                await self._fault_in(view)
                self._check_sendable()
            outgoing = self._foreign(view, bool(end))
        self._engine.send(channel, outgoing)
        return outgoing

    def _address(self, buffer: Buffer) -> int:
        """For the reference lane, or 0: it is another's, or nothing goes by reference here."""
        mine = buffer.principal is self.connection.principal
        return buffer.address if mine and buffer.by_reference and self._context.by_reference else 0

    async def send_shared(self, buffer: Buffer) -> Completion:
        """Queue a buffer that others are sent, too, and hold it until this peer has acknowledged it.

        It goes by reference although its principal is not this connection's: whoever calls this vouches
        that the peer is one of those whom the principal stands for (the subscribers of a topic, say). The
        caller has sealed it and holds it himself; otherwise as :meth:`send`.
        """
        channel = self._channel
        if channel.queued >= self._high_water or len(channel.outgoing) >= QUEUED_MESSAGES:
            await self._wait_for_room()
        self._check_sendable()
        buffer.hold()
        address = buffer.address if buffer.by_reference and self._context.by_reference else 0
        outgoing = Outgoing(buffer.nbytes, buffer, None, address, shared=buffer.principal)
        self._engine.send(channel, outgoing)
        return outgoing

    def _goes_by_reference(self, view: memoryview) -> bool:
        return (
            self.connection.trusts_peer
            and self._context.by_reference
            and view.nbytes >= REFERENCE_THRESHOLD
            and self._context.foreign.admits(view.nbytes)
        )

    def _foreign(self, view: memoryview, end: bool) -> Outgoing:
        if self._goes_by_reference(view):
            memory = ForeignMemory(view, self._context.foreign)
            return Outgoing(view.nbytes, memory, view, memory.address, end)
        return Outgoing(view.nbytes, None, view, 0, end)

    async def _fault_in(self, view: memoryview) -> None:
        """A page fault of a cold mapping reads the disk: not on the event loop (rule 10)."""
        kernel, address = self._context.kernel, address_of(view)
        if not kernel.resident(address, view.nbytes):
            await anyio.to_thread.run_sync(kernel.fault_in, address, view.nbytes)

    def _check_sendable(self) -> None:
        channel = self._channel
        if channel.error is not None:
            raise again(channel.error)
        if channel.last_completion is not None:
            raise MisuseError(f"{self!r} was ended: no message can be sent after end=True or end()")
        self._engine.check_alive()

    async def send_file(
        self,
        file: Any,
        offset: SupportsIndex = 0,
        nbytes: SupportsIndex | None = None,
        *,
        end: object = False,
    ) -> Completion:
        """Send ``nbytes`` of an open regular file from ``offset`` on (default: to its end) as one message.

        The bytes go from the page cache to the socket without passing through user memory. ``file`` is a
        descriptor or has ``fileno``, and may be closed at once. A file that becomes shorter meanwhile
        resets the stream with code CHANGED; bytes are never padded. Writing to the file in place before
        the completion resolves changes what the peer receives.
        """
        fd, size = file_size(file)
        start = operator.index(offset)
        count = max(0, size - start) if nbytes is None else operator.index(nbytes)
        if start < 0 or count < 0 or start + count > size:
            raise MisuseError(f"bytes {start} to {start + count} were asked for of a file that has {size}")
        if self._channel.outgoing:
            await self._wait_for_room()
        self._check_sendable()
        if count:
            context = self._context
            region = FileRegion(fd, start, count, context.kernel, context.pipes, context.splices_files)
            outgoing = Outgoing(count, None, None, 0, bool(end), region)
        else:
            outgoing = Outgoing(0, None, memoryview(b""), 0, bool(end))
        self._engine.send(self._channel, outgoing)
        return outgoing

    async def end(self) -> Completion:
        """No more messages from this side. The other direction stays open; ending twice is harmless."""
        channel = self._channel
        if channel.last_completion is not None:
            return channel.last_completion
        self._check_sendable()
        marker = end_marker()
        self._engine.send(channel, marker)
        return marker

    async def wait_for_room(self) -> None:
        """Return when :meth:`send` would not wait, or when the stream is over."""
        await self._wait_for_room()

    @property
    def credit(self) -> int:
        """How many bytes more the peer takes now, if they are one frame."""
        state = self._channel.state
        return max(0, state.send_credit - state.send_wire - HEADER_SIZE)

    async def wait_for_demand(self) -> None:
        """Return when the peer takes more than was sent, or when the stream is over.

        For those who make what they send: it need not be in memory before it can leave.
        """
        channel = self._channel
        while (channel.outgoing or not self.credit) and channel.error is None:
            await self._wakeups.room()

    async def _wait_for_room(self) -> None:
        channel = self._channel
        while (channel.queued >= self._high_water or len(channel.outgoing) >= QUEUED_MESSAGES) and (
            channel.error is None
        ):
            await self._wakeups.room()

    # -- receiving -----------------------------------------------------------------------------------

    def place_messages(self, place: Callable[[int], memoryview | None], max_message: SupportsIndex) -> None:
        """Before the first :meth:`receive`: let large messages land in memory of the caller's choice.

        ``place(nbytes)`` is called when a message above 16 KiB begins and gives writable memory of that size,
        or None for receive memory; it must not raise. The message's ``data`` is then that very object.
        ``max_message`` (bytes) takes the place of the context's limit.
        """
        inbox = self._inbox
        inbox.mode = MESSAGES
        inbox.place = place
        inbox.max_message = operator.index(max_message)
        self._engine.grant(self._channel)

    async def receive(self) -> Message:
        """The next whole message. Raises anyio.EndOfStream after the last one.

        A message over the context's ``max_message`` resets the stream and raises MessageTooLargeError. If it
        is above the stream's window, too, and begins while nobody waits here, it may still be taken by
        :meth:`receive_into` or in :meth:`chunks`: a body behind its header, say.
        """
        inbox = self._inbox
        if inbox.mode != MESSAGES:
            self._want(MESSAGES)
        while True:
            view = inbox.take_message()
            if view is not None:
                if inbox.grant_due:
                    self._engine.grant(self._channel)
                return Message(view)
            await self._wait_for_news(lambda: inbox.messages > 0)

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Message:
        inbox = self._inbox
        if inbox.messages:  # what `receive` would do, without a coroutine more
            view = inbox.take_message()
            assert view is not None
            if inbox.grant_due:
                self._engine.grant(self._channel)
            return Message(view)
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    def chunks(self) -> AsyncGenerator[memoryview, None]:
        """The stream's bytes in pieces as they arrived, whatever the messages, until the peer ends.

        For streams larger than memory: each piece goes back when its last view is gone.
        """
        return chunks_of(self)

    async def receive_chunk(self) -> memoryview:
        """The next of :meth:`chunks`. Raises anyio.EndOfStream after the last one."""
        inbox = self._inbox
        if inbox.mode != CHUNKS:
            self._want(CHUNKS)
        while True:
            view = inbox.take_chunk()
            if view is not None:
                if inbox.grant_due:
                    self._engine.grant(self._channel)
                return view
            await self._wait_for_news(lambda: bool(inbox.pieces))

    async def receive_into(self, memory: Any) -> int:
        """Let the rest of the current message land in ``memory`` (writable, contiguous); return the bytes.

        Fewer than ``len(memory)`` means that the message ended; if it filled the memory, look at
        :attr:`message_ended`, since a longer message goes on with the next call. What has not arrived yet is
        read from the socket straight into ``memory``, which must not be touched meanwhile. Raises
        anyio.EndOfStream after the last message. Cancelling loses nothing.
        """
        sink = as_bytes(memory)
        if not len(sink):
            return 0
        if sink.readonly:
            raise MisuseError("receive_into needs writable memory")
        self._check_alone()
        inbox = self._inbox
        inbox.mode = CHUNKS
        inbox.attach(sink)
        try:
            self._engine.grant(self._channel)
            if not inbox.sink_done:
                await self._wait_for_news(lambda: inbox.sink_done)
        except anyio.EndOfStream:
            filled = inbox.detach()
            if not filled:
                raise
            return filled
        except BaseException:
            inbox.give_back()
            raise
        filled = inbox.detach()
        self._engine.grant(self._channel)
        return filled

    @property
    def message_ended(self) -> bool:
        """Whether the last :meth:`receive_into` came to the end of its message.

        False behind all bytes of a message whose sender could not tell before that they are all: the next
        call returns 0 then.
        """
        return self._inbox.sink_ends

    def _want(self, mode: int) -> None:
        """From now on whole messages, or chunks. What of a message was taken otherwise is not given again."""
        self._check_alone()
        self._inbox.mode = mode
        self._engine.grant(self._channel)

    async def _wait_for_news(self, satisfied: Callable[[], bool]) -> None:
        """Wait until ``satisfied``; raise EndOfStream or what ended the stream when that cannot be."""
        channel = self._channel
        self._check_alone()
        self._receiving = True
        try:
            while not satisfied():
                if self._inbox.ended:
                    raise anyio.EndOfStream
                if channel.error is not None:
                    raise again(channel.error)
                news = self._wakeups.news()
                if channel.starving:
                    await self._wait_for_memory(news)
                else:
                    await news.wait()
        finally:
            self._receiving = channel.wants_news = False

    def _check_alone(self) -> None:
        if self._receiving:
            raise MisuseError("another task is already receiving from this stream")

    async def _wait_for_memory(self, news: anyio.Event) -> None:
        with anyio.move_on_after(self._context.memory_seconds):
            await news.wait()
            return
        if self._channel.starving:
            raise PoolTimeoutError(
                f"nothing more can be received: {self._context.receive_memory.held()}; drop received "
                f"messages (and arrays made from them), or raise receive_memory"
            )

    # -- both ----------------------------------------------------------------------------------------

    async def reply(self, **args: Any) -> None:
        """Answer the opener, before or without any message: sizes, validators, whatever it must know."""
        self._check_sendable()
        self._engine.reply(self._channel, args)

    async def response(self) -> dict[str, Any]:
        """What the acceptor replied. Raises StreamResetError when it refused the stream."""
        channel = self._channel
        while channel.reply is None:
            if channel.error is not None:
                raise again(channel.error)
            if self._inbox.ended:
                raise anyio.EndOfStream
            await self._wakeups.reply()
        return dict(channel.reply)

    async def commit(self, count: SupportsIndex) -> None:
        """Tell the peer that this application has processed the first ``count`` messages of the stream."""
        self.check_open()
        self._engine.commit(self._channel, operator.index(count))

    @property
    def committed(self) -> int:
        """How many of our messages the peer's application says it has processed."""
        return self._channel.peer_commits

    async def wait_committed(self, count: SupportsIndex) -> None:
        """Return when the peer's application has processed ``count`` of our messages.

        Raises what ended the stream before that, and anyio.EndOfStream when the peer ended its side without.
        """
        channel, wanted = self._channel, operator.index(count)
        while channel.peer_commits < wanted:
            if channel.error is not None:
                raise again(channel.error)
            if self._inbox.ended:
                raise anyio.EndOfStream
            await self._wakeups.commit()

    @property
    def is_over(self) -> bool:
        """Whether the peer has ended its side, or the stream has failed."""
        return self._inbox.ended or self._channel.error is not None

    @property
    def failed(self) -> BaseException | None:
        """What ended the stream early, if anything did."""
        return self._channel.error

    def check_open(self) -> None:
        """Raise what ended the stream early, if anything did."""
        if self._channel.error is not None:
            raise again(self._channel.error)

    def reset(self, code: SupportsIndex = ErrorCode.CANCELLED, reason: str = "") -> None:
        """Give the stream up in both directions; the peer's calls raise StreamResetError with this.

        ``code`` is 0 to 2³²−1; a ``reason`` of some kilobytes is cut short.
        """
        number = operator.index(code)
        if not 0 <= number < 1 << 32:
            raise MisuseError(f"the code of a reset is {number}: choose one of 0 to {(1 << 32) - 1}")
        if not isinstance(reason, str):
            raise MisuseError(f"the reason of a reset is {reason!r}: give a text")
        self._engine.reset(self._channel, number, reason)

    async def __aenter__(self) -> "Stream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left = True
        last = self._channel.last_completion
        if kind is None and last is not None:
            stop_behind(last, self._engine, self._channel, ErrorCode.CANCELLED, LEFT)
        elif last is None or not self._inbox.ended:
            self.reset(ErrorCode.CANCELLED, LEFT)
        self._inbox.drop()

    def finish(self) -> None:
        """The handler has returned: end our side; once that is delivered, stop the peer's if it goes on."""
        channel = self._channel
        engine = self._engine
        channel.handled = False
        channel.inbox.drop()
        engine.flush_soon()
        if channel.error is not None or engine.error is not None:
            return
        last = channel.last_completion
        if last is None:
            last = marker = end_marker()
            engine.send(channel, marker)
        stop_behind(last, engine, channel, ErrorCode.NO_ERROR, "the receiver is done with this stream")

    def __del__(self) -> None:
        # May run in the middle of anything, even in another thread: the loop does it.
        if not hasattr(self, "_wakeups"):
            return  # half made; compiled code would crash on it
        channel = self._channel
        ended = self._left or (channel.inbox.ended and channel.last_completion is not None)
        if ended or not channel.state.ours or channel.error is not None or self.connection.is_closed:
            return
        self.connection.threadsafe(partial(dropped, self._engine, channel))
        if not channel.inbox.ended:
            words = (
                f"{self!r} was dropped before its end; "
                "open it by `async with await connection.open(...)`, or reset it"
            )
            warn_of_dropped(self, words)

    def __repr__(self) -> str:
        return f"<Stream {self._channel.state.id} {self.method} {self.path!r} of {self.connection.name}>"
