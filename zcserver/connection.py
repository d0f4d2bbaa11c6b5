"""Connections and servers for asyncio, uvloop and trio: a thin driver of the engine."""

import operator
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, SupportsIndex

import anyio
import anyio.abc

from zcserver_protocol.errors import ErrorCode, TooManyStreams

from .again import again
from .channel import Channel
from .context import Context
from .drivers import Loop, running_loop
from .engine import Engine
from .errors import ConnectionLostError, MisuseError
from .handling import handle
from .kernel.sockets import prepare
from .listeners import place_of, shown
from .memory import Buffer, Principal, PrincipalKind
from .sending.batch import Batch
from .sending.statistics import TransferStatistics
from .stream import Stream

DEFAULT_PORT: Final = 7420
Handler = Callable[[Stream], Awaitable[object]]


def endpoint_name(sock: socket.socket, remote: bool) -> str:
    """An address in words, for messages. A Unix socket's is printable, whatever its peer has chosen."""
    try:
        address = sock.getpeername() if remote else sock.getsockname()
    except OSError:
        return "a peer that has gone"
    if not isinstance(address, tuple):
        return shown(address) or "unix socket"
    return place_of(address[0], address[1])


class Connection:
    """One ZCP/1 connection. Get it from :func:`connect`, or as ``stream.connection`` in a handler.

    ``name`` is the peer's address; ``statistics`` counts what each lane carried; ``principal`` is whom its
    buffers are for.
    """

    def __init__(
        self,
        sock: socket.socket,
        role: str,
        context: Context,
        tasks: anyio.abc.TaskGroup,
        handler: Handler | None,
        trust_peer: bool,
        on_closed: Callable[["Connection"], object] = lambda connection: None,
    ) -> None:
        congestion = prepare(sock, context.capabilities, context.kernel)
        self.name = endpoint_name(sock, remote=True)
        self.context = context
        self.trusts_peer = trust_peer
        self.principal = context.trusted if trust_peer else Principal(self.name, PrincipalKind.CONNECTION)
        self._tasks = tasks
        self._handler = handler
        self._on_closed = on_closed
        self._loop: Loop = running_loop(tasks)
        self.arm_writer = self._loop.arm_writer
        self.wake_at = self._loop.wake_at
        self.soon = self._loop.soon
        self.threadsafe = self._loop.threadsafe
        self.offload = self._loop.offload
        self.time = self._loop.time
        self._closed = anyio.Event()
        self._is_over = False
        self._handling = 0  # handlers at work; a stream's may outlive it
        self._acquiring: set[anyio.CancelScope] = set()
        self._changed = anyio.Event()
        self.engine = Engine(sock, role, context, self.principal, self)
        self.engine.statistics.congestion_control = congestion
        self._loop.attach(
            sock.fileno(), self.engine.on_readable, self.engine.on_writable, self.engine.on_time
        )
        self.engine.start()

    # -- the application's side ----------------------------------------------------------------------

    @property
    def statistics(self) -> TransferStatistics:
        return self.engine.statistics

    async def established(self) -> None:
        """Wait for the handshake. Raises HandshakeError when the other end does not speak ZCP/1."""
        while self.engine.codec.peer is None:
            if self._is_over:
                self.engine.check_alive()
            await self._wait_for_change()

    async def open(self, method: str, path: str, **args: Any) -> Stream:
        """Open a stream; waits while the peer allows no more of them. ``args`` are JSON scalars.

        Give up a stream that you no longer want by :meth:`Stream.reset`, or leave it by ``async with``: until
        then it counts against the peer's limit and holds what was received.
        """
        if not (isinstance(method, str) and isinstance(path, str)):
            raise MisuseError(f"method and path of a stream are {method!r} and {path!r}: give texts")
        while True:
            self.engine.check_alive()
            try:
                channel = self.engine.open(method, path, args)
            except TooManyStreams:
                await self._wait_for_change()
                continue
            return Stream(self, channel)

    async def acquire(self, nbytes: SupportsIndex, timeout: float | None = None) -> Buffer:
        """A page-aligned pool buffer of ``nbytes`` for this peer: fill its ``view``, then send it.

        Waits, in turn with the other connections, for memory to come home. Raises PoolTimeoutError,
        naming who holds the memory, after ``timeout`` seconds (default: the context's
        ``memory_seconds``), and RequestTooLargeError for what can never be free.
        """
        size = operator.index(nbytes)
        if not self._is_over:
            context = self.context
            buffer = context.pool.try_acquire(size, self.principal, self.name, context.by_reference)
            if buffer is not None:
                return buffer
        return (await self.acquire_many([size], timeout))[0]

    async def acquire_batch(self, nbytes: SupportsIndex, timeout: float | None = None) -> Batch:
        """A :class:`Batch` of ``nbytes`` for several messages and their headers. See :meth:`acquire`.

        1 to 2 MiB are a good size: large enough that a message costs little, and no more than a region.
        """
        return Batch(await self.acquire(nbytes, timeout))

    async def acquire_many(
        self, sizes: Sequence[SupportsIndex], timeout: float | None = None
    ) -> list[Buffer]:
        """All of these buffers or none: never holds some while it waits for the others. See ``acquire``."""
        self.engine.check_alive()
        context = self.context
        seconds = context.memory_seconds if timeout is None else timeout
        with anyio.CancelScope() as scope:
            self._acquiring.add(scope)
            try:
                return await context.pool.acquire_many(
                    sizes, self.principal, self.name, seconds, context.by_reference
                )
            finally:
                self._acquiring.discard(scope)
        self.engine.check_alive()  # the scope was cancelled because the connection ended
        raise ConnectionLostError(f"the connection {self.name} ended while memory was waited for")

    async def aclose(self, timeout: float | None = None) -> None:
        """Deliver what is queued, take leave, close; abort after ``timeout`` seconds.

        Raises what kept queued data from being acknowledged, or our side of a stream from being ended; if
        nothing was lost, how the connection ended is no error. Cancelling it aborts.
        """
        seconds = self.context.close_seconds if timeout is None else timeout
        self.engine.close(self.time() + seconds)
        try:
            await self._closed.wait()
        except BaseException:
            self.abort()
            raise
        if self.engine.error is not None and self.engine.ending.loss:
            raise again(self.engine.error)

    @property
    def is_closed(self) -> bool:
        return self._is_over

    async def wait_closed(self) -> None:
        """Wait until the connection is over, for whatever reason."""
        await self._closed.wait()

    def abort(self, error: BaseException | None = None) -> None:
        """Drop the connection now. What was not acknowledged fails with ``error``."""
        self.engine.abort(error or ConnectionLostError(f"the connection {self.name} was aborted by this end"))

    async def _wait_for_change(self) -> None:
        if self._changed.is_set():
            self._changed = anyio.Event()
        await self._changed.wait()

    def __repr__(self) -> str:
        return f"<Connection {self.name} {self.engine.ending.phase.value}>"

    # -- what the engine calls (see engine.Driver) ---------------------------------------------------

    def stream_opened(self, channel: Channel) -> None:
        if self._handler is None:
            self.engine.reset(channel, ErrorCode.REFUSED, "this end accepts no streams")
            return
        if self._handling >= 2 * self.context.limits.max_streams:
            reason = (
                "too many streams that were given up are still being handled: open fewer, or wait for replies"
            )
            self.engine.reset(channel, ErrorCode.LIMIT, reason)
            return
        self.engine.grant_first(channel)
        channel.handled = True
        self._handling += 1
        self._tasks.start_soon(self._handle, Stream(self, channel))

    async def _handle(self, stream: Stream) -> None:
        assert self._handler is not None
        try:
            await handle(self._handler, stream)
        finally:
            self._handling -= 1
            stream.finish()

    def changed(self) -> None:
        self._changed.set()

    def deliver(self) -> None:
        """Nothing: tasks are woken as news comes, and what they send is written at the end of the turn."""

    def detach(self) -> None:
        self._loop.detach()

    def closed(self, error: BaseException | None) -> None:
        self._is_over = True
        for scope in self._acquiring:
            scope.cancel()
        self._closed.set()
        self._changed.set()
        self._on_closed(self)
