"""``ZeroCopyTransport``: asyncio's transport interface over one byte stream of a ZCP/1 connection."""

import asyncio
import asyncio.trsock
import logging
from collections.abc import Callable
from typing import Any, Final

from zcserver.channel import Channel
from zcserver.errors import ConnectionLostError, MisuseError, StreamLostError, StreamResetError
from zcserver.memory import Buffer
from zcserver.sending.completion import Completion
from zcserver.sending.message import Outgoing

from .input import Input
from .link import Link
from .output import Output, bytes_to_write

# asyncio's own: writes to a lost connection are ignored, and from the fifth on a line is logged for each.
_LOST_WRITES: Final = 5
_HIGH_WATER: Final = 1 << 20

log = logging.getLogger("asyncio")


class ZeroCopyTransport(asyncio.Transport):
    """The bytes of a ``Protocol`` or ``BufferedProtocol``, carried by reference where that is allowed.

    Made by :func:`zcserver.create_connection`, :func:`zcserver.create_server` and their kin, on asyncio and
    uvloop. It means what asyncio's transports mean. See docs/embedding.md for who owns what is written, and
    for the few differences. ``begun`` is done after ``connection_made``,
    ``on_lost`` is called after ``connection_lost``: for whoever made it.

    ``get_extra_info`` knows ``socket``, ``peername``, ``sockname``, and of ours ``lane`` (how pool buffers
    travel: "vmsplice" or "copy"), ``stats`` (:class:`TransferStatistics`) and ``pool``.
    """

    def __init__(self, link: Link, channel: Channel, protocol: asyncio.BaseProtocol) -> None:
        context = link.context
        sock = link.sock
        super().__init__(
            {
                "socket": asyncio.trsock.TransportSocket(sock),
                "sockname": sock.getsockname(),
                "peername": link.peername,
                "lane": "vmsplice" if context.by_reference else "copy",
                "stats": link.engine.statistics,
                "pool": context.pool,
            }
        )
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._channel = channel
        self._input = Input(link.engine, channel)
        self._output = Output(link, channel)
        self._eof_written = False
        self._eof_read = False
        self._reading_paused = False
        self._writing_paused = False
        self._closing = False
        self._lost = False  # connection_lost is scheduled
        self._connected = False  # connection_made was called
        self._started = False  # and the protocol's owner has the transport
        self._lost_writes = 0
        self._acquiring: set[asyncio.Task[Buffer]] = set()
        self._delivering = False
        self._push_scheduled = False
        self._high = self._low = 0
        self.set_write_buffer_limits()
        self.set_protocol(protocol)
        self.begun = self._loop.create_future()
        self.on_lost: Callable[[ZeroCopyTransport], object] = lambda transport: None
        link.delivered = self._deliver
        link.ended = self._link_ended
        channel.on_news = channel.on_room = self._deliver_soon
        self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._link.engine.grant(self._channel)
        try:
            self._protocol.connection_made(self)
        finally:
            self._connected = True
            if not self.begun.done():
                self.begun.set_result(None)  # whoever awaits it has the transport before any bytes come
            self._loop.call_soon(self._start_delivery)

    def _start_delivery(self) -> None:
        self._started = True
        self._deliver()

    # -- protocol and state --------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        self._input.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing

    def __repr__(self) -> str:
        state = "closed" if self._lost else "closing" if self._closing else "open"
        return f"<ZeroCopyTransport {self._link.name} {state} unacknowledged={self.get_write_buffer_size()}>"

    # -- writing -------------------------------------------------------------------------------------

    def write(self, data: Any) -> None:
        """Send bytes; afterwards the caller may do with them what it likes.

        ``bytes`` go by reference to a peer declared trusted, and are copied by the socket otherwise. What
        can be changed (a bytearray, any memoryview, an array) is copied: by the socket what it takes at
        once, the rest here. A pool :class:`Buffer` goes by reference, as by :meth:`send`. Raises TypeError
        for what is no memory, MisuseError for memory with gaps and after :meth:`write_eof`.
        """
        if data.__class__ is not bytes and data.__class__ is not Buffer:
            data = bytes_to_write(data)
        if self._eof_written:
            raise MisuseError("Cannot call write() after write_eof()")
        if not len(data):
            return
        if self._closing or self._peer_gone:
            self._write_in_vain(data)
            return
        if data.__class__ is Buffer:
            self._output.send(data, False)
        elif self._output.write(data) and not self._delivering and not self._push_scheduled:
            self._push_scheduled = True
            self._loop.call_soon(self._push)
        self._maybe_pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        """As :meth:`write` of each, in this order."""
        for data in list_of_data:
            self.write(data)

    def send(self, data: Any, *, allow_views: bool = False) -> Completion:
        """Send memory without copying it, and learn when it is free again.

        A pool :class:`Buffer` of :meth:`acquire` goes by reference and is gone for the caller. Any other
        contiguous memory goes by reference to a peer declared trusted, and else is copied by the socket when
        its turn comes; it must not be changed before the completion resolves. Heed ``pause_writing`` as with
        :meth:`write`. Raises BufferStateError and ViewsAliveError (see :meth:`Buffer.seal`), MisuseError
        after :meth:`write_eof` or :meth:`close`, ConnectionLostError when the connection is over: the
        buffer is still the caller's then.
        """
        self._check_writable()
        completion = self._output.send(data, allow_views)
        self._maybe_pause_writing()
        return completion

    def _check_writable(self) -> None:
        if self._peer_gone or self._lost:
            raise (
                as_lost(self._link.error)
                if self._link.error
                else StreamLostError(f"{self._link.name} has closed the byte stream")
            )
        if self._eof_written or self._closing:
            raise MisuseError("nothing can be sent after write_eof() or close()")

    def send_file(self, fd: int, offset: int, nbytes: int) -> Outgoing:
        """For :func:`zcserver.sendfile`: queue a region of an open regular file."""
        self._check_writable()
        return self._output.send_file(fd, offset, nbytes)

    @property
    def _sendfile_compatible(self) -> Any:
        """What ``loop.sendfile`` asks for. Programs know this answer: they send the file themselves then."""
        raise NotImplementedError("give zcserver.sendfile this transport, not loop.sendfile")

    async def acquire(self, nbytes: int, timeout: float | None = None) -> Buffer:
        """A page-aligned pool buffer of ``nbytes`` for this peer: fill its ``view``, then write or send it.

        Waits for memory to come home, up to ``timeout`` seconds (default: the context's ``memory_seconds``).
        Raises PoolTimeoutError, which names who holds the memory, and RequestTooLargeError for what can
        never be free, and ConnectionLostError when the connection ends meanwhile. From another thread:
        ``asyncio.run_coroutine_threadsafe(transport.acquire(n), loop)``.
        """
        self._check_writable()
        link, context = self._link, self._link.context
        pool, whose = context.pool, (link.principal, link.name)
        buffer = pool.try_acquire(nbytes, *whose, context.by_reference)
        if buffer is not None:
            return buffer
        seconds = context.memory_seconds if timeout is None else timeout
        waiting = self._loop.create_task(pool.acquire(nbytes, *whose, seconds, context.by_reference))
        self._acquiring.add(waiting)
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                waiting.result().release()  # it was granted in this very turn
            task = asyncio.current_task()
            if self._lost and task is not None and not task.cancelling():
                raise ConnectionLostError(f"{link.name} was lost while memory was waited for") from None
            raise
        finally:
            self._acquiring.discard(waiting)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """End this direction, once everything written before is delivered; the other one stays open."""
        if self._eof_written or self._closing:
            return
        self._eof_written = True
        if not self._peer_gone:
            self._output.end()

    def _push(self) -> None:
        self._push_scheduled = False
        if not self._lost:
            self._output.flush()

    def _write_in_vain(self, data: Any) -> None:
        if data.__class__ is Buffer:
            data.release()
        if self._lost_writes >= _LOST_WRITES:
            log.warning("socket.send() raised exception.")
        self._lost_writes += 1
        if not self._closing:
            self._lose(self._closed_by_peer())

    def _closed_by_peer(self) -> StreamLostError:
        return StreamLostError(f"{self._link.name} has closed the byte stream")

    # -- flow control --------------------------------------------------------------------------------

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """When to call ``pause_writing`` and ``resume_writing``, in bytes that wait to be sent.

        What is in flight does not count: a window of that comes before (see :class:`Context`). The default
        is 1 MiB: what leaves at once.
        """
        if high is None:
            high = _HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high, self._low = high, low
        if self._writing_paused:
            self._channel.room_below = low
        self._maybe_pause_writing()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        """Bytes written that the peer has not acknowledged; frame headers count while in flight."""
        return 0 if self._lost else self._output.size

    def _maybe_pause_writing(self) -> None:
        if self._writing_paused or self._lost or self._output.waiting <= self._high:
            return
        self._output.flush()
        if self._output.waiting > self._high:
            self._writing_paused = True
            self._channel.room_below = self._low
            self._call_flow("pause_writing")

    def _maybe_resume_writing(self) -> None:
        if self._output.waiting <= self._low:
            self._writing_paused = False
            self._channel.room_below = -1
            self._call_flow("resume_writing")

    def _call_flow(self, name: str) -> None:
        try:
            getattr(self._protocol, name)()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 – the protocol's own; asyncio reports it and goes on
            self._report(error, f"protocol.{name}() failed")

    def is_reading(self) -> bool:
        return not self._closing and not self._reading_paused

    def pause_reading(self) -> None:
        """Deliver nothing and grant the peer no more credit; acknowledgements go on."""
        self._reading_paused = True

    def resume_reading(self) -> None:
        if self._closing or not self._reading_paused:
            return
        self._reading_paused = False
        self._deliver_soon()

    # -- what comes in -------------------------------------------------------------------------------

    def _deliver_soon(self) -> None:
        self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        """Call the protocol with all there is. Runs after every read, and never within a call of `write`."""
        if self._lost or not self._started or self._delivering:
            return
        self._delivering = True
        try:
            if self._writing_paused and not self._output.undelivered:  # else `connection_lost` comes next
                self._maybe_resume_writing()
            self._hand_on()  # also when there is nothing: a pause may have held back the credit for more
            if self._input.ended or self._channel.error is not None or self._link.over:
                self._look_for_end()
        finally:
            self._delivering = False
        if not self._lost:
            self._output.push()

    def _hand_on(self) -> None:
        source = self._input
        try:
            while not self._reading_paused and not self._closing and source.deliver():
                pass
            if self._closing:  # the peer may have to be rid of it before it takes our last bytes
                source.skip()
            if self._closing or not self._reading_paused:
                source.grant()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 – the protocol's own: it costs the connection
            self._report(error, f"Fatal error: protocol.{source.calling}() call failed.")
            self._lose(error)

    def _look_for_end(self) -> None:
        if self._closing:
            return
        source = self._input
        failure = self._failure()
        if failure is not None and (self._output.undelivered or source.empty):
            self._lose(failure)
        elif source.at_end and not self._reading_paused and not self._eof_read:
            self._eof_read = True
            try:
                keep_open = self._protocol.eof_received()  # type: ignore[attr-defined]
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 – as above
                self._report(error, "Fatal error: protocol.eof_received() call failed.")
                self._lose(error)
                return
            if not keep_open:
                self.close()

    def _failure(self) -> BaseException | None:
        """What broke the stream off, unless the peer has only closed it and nothing is amiss."""
        undelivered = self._output.undelivered
        if self._input.ended and not undelivered:
            return None  # whatever became of the peer after its last byte
        error = self._link.error
        if error is None and (undelivered or not self._link.over):
            error = self._channel.error
        return None if error is None else as_lost(error)

    @property
    def _peer_gone(self) -> bool:
        """The peer has closed its transport: nothing that is written now can arrive."""
        return self._link.over or self._channel.error is not None

    # -- the end -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Deliver what was written, then close; ``connection_lost(None)`` follows. Nothing is read any more.

        As with asyncio this takes as long as the peer needs to take it; :meth:`abort` cuts it short.
        """
        if self._closing:
            return
        self._closing = True
        if self._link.over:
            self._lose(None)
            return
        if self._channel.error is None:
            self._output.push()
        self._link.close()
        self._deliver_soon()  # nobody will read what is here

    def abort(self) -> None:
        """Drop the connection now; what the peer has not acknowledged may be lost."""
        self._lose(None)

    def _link_ended(self) -> None:
        if self._lost:
            return
        if self._closing:
            # The peer may have given up the byte stream alone, and have taken leave in good order after that.
            error = self._link.error or self._channel.error
            self._lose(as_lost(error) if error is not None and self._output.undelivered else None)
        else:
            self._deliver_soon()

    def _lose(self, error: BaseException | None) -> None:
        """Schedule ``connection_lost``, once, and drop the connection if it still is one."""
        if self._lost:
            return
        self._closing = self._lost = True
        self._loop.call_soon(self._connection_lost, error)
        if self._channel.error is None and not self._link.over:
            self._output.flush()  # last words: the socket would have had them already
        if self._link.over:
            return
        if isinstance(error, StreamLostError):
            self._link.part()  # what is in flight comes home: the peer gave up the stream, not the connection
        else:
            self._link.abort(error if isinstance(error, ConnectionLostError) else None)

    def _connection_lost(self, error: BaseException | None) -> None:
        self._input.close()
        for waiting in self._acquiring:
            waiting.cancel()
        try:
            if self._connected:
                self._protocol.connection_lost(error)  # type: ignore[arg-type]
        finally:
            self.on_lost(self)

    def _report(self, error: BaseException, message: str) -> None:
        self._loop.call_exception_handler(
            {"message": message, "exception": error, "transport": self, "protocol": self._protocol}
        )


def as_lost(error: BaseException) -> BaseException:
    """Trouble without a class of its own is what asyncio's programs expect for it: a ConnectionResetError."""
    if error.__class__ is not ConnectionLostError and not isinstance(error, StreamResetError):
        return error
    lost = StreamLostError(str(error))
    lost.__cause__ = error
    return lost
