"""One end of a run of `benchmarks.transports`: the same protocol, with the same framing, on each transport.

    python -m benchmarks.transport_side CONTENDER send|receive --size BYTES --messages COUNT …

A frame is its length in 4 bytes and a payload; `size` is both together. Frames of up to `ECHOED` bytes are
round trips: the receiver sends each back, and the sender sends the next one then. Larger ones are written
one after the other until the transport says pause; the receiver's answer to the last one ends the run.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import struct
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.side import HOST, Instant, Run, _report, announce, dial, main, measured, tune_sockets

ECHOED = 64
_LENGTH = struct.Struct("!I")
Factory = Callable[[], asyncio.Protocol]


class Frames(asyncio.Protocol):
    """Counts frames in a stream of bytes, without joining them; `frame` is called for each."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.transport: Any = None
        self.writable = asyncio.Event()
        self.writable.set()
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._head = b""
        self._left = 0  # bytes of the current frame's payload still to come

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, exc: BaseException | None) -> None:
        if not self.over.done():
            self.over.set_exception(exc or ConnectionError("the other end has closed"))

    def data_received(self, data: bytes) -> None:
        position, end = 0, len(data)
        while position < end:
            if self._left:
                step = min(self._left, end - position)
                self._left -= step
                position += step
            else:
                step = min(_LENGTH.size - len(self._head), end - position)
                self._head += data[position : position + step]
                position += step
                if len(self._head) < _LENGTH.size:
                    return
                (self._left,) = _LENGTH.unpack(self._head)
                self._head = b""
            if not self._left:
                self.frame()

    def frame(self) -> None:
        """A frame is complete."""


class Sender(Frames):
    """For round trips: the answer has come, the next one goes."""

    def begin(self, frame: bytes) -> None:
        self._frame = frame
        self._answers = 0
        self.transport.write(frame)

    def frame(self) -> None:
        if self.run.size > ECHOED:
            self.over.set_result(None)
            return
        self._answers += 1
        if self._answers == self.run.messages:
            self.over.set_result(None)
        else:
            self.transport.write(self._frame)


class Receiver(Frames):
    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._count = 0
        self._answer = make_frame(run.size if run.size <= ECHOED else ECHOED)

    def frame(self) -> None:
        self._count += 1
        if self._count == 1:
            self._start = Instant.now()
        last = self._count == self.run.messages
        if last:
            nbytes = (self.run.messages - 1) * self.run.size
            _report("receive", nbytes, self._start, Instant.now())
        if last or self.run.size <= ECHOED:
            self.transport.write(self._answer)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.over.set_result(None)


def make_frame(size: int) -> bytes:
    return _LENGTH.pack(size - _LENGTH.size) + bytes(size - _LENGTH.size)


async def send(connect: Callable[..., Awaitable[Any]], run: Run) -> None:
    _, protocol = await connect(lambda: Sender(run), sock=dial(run))
    tune_sockets(run.congestion)
    frame = make_frame(run.size)
    with measured(run):
        if run.size <= ECHOED:
            protocol.begin(frame)
        else:
            await pipeline(protocol, frame)
        await protocol.over
    protocol.transport.close()


async def pipeline(protocol: Sender, frame: bytes) -> None:
    """A producer that writes until it is told to pause, and lets the loop turn every 64 frames."""
    transport, writable = protocol.transport, protocol.writable
    for number in range(protocol.run.messages):
        transport.write(frame)
        if not writable.is_set():
            await writable.wait()
        elif not number & 63:
            await asyncio.sleep(0)


async def receive(serve: Callable[..., Awaitable[Any]], run: Run) -> None:
    receiver: asyncio.Future[Receiver] = asyncio.get_running_loop().create_future()

    def accept() -> Receiver:
        receiver.set_result(Receiver(run))
        return receiver.result()

    server = await serve(accept, HOST, 0)
    tune_sockets(run.congestion)
    announce(server.sockets[0].getsockname()[1])
    await (await receiver).over
    server.close()


# -- contenders --------------------------------------------------------------------------------------------


def loops_own(name: str) -> Callable[..., Awaitable[Any]]:
    async def call(*arguments: Any, **options: Any) -> Any:
        return await getattr(asyncio.get_running_loop(), name)(*arguments, **options)

    return call


def aiofastnets(name: str) -> Callable[..., Awaitable[Any]]:
    async def call(*arguments: Any, **options: Any) -> Any:
        import aiofastnet

        return await getattr(aiofastnet, name)(asyncio.get_running_loop(), *arguments, **options)

    return call


def zcservers(name: str, trust_peer: bool = False) -> Callable[..., Awaitable[Any]]:
    async def call(*arguments: Any, **options: Any) -> Any:
        import zcserver

        return await getattr(zcserver, name)(*arguments, trust_peer=trust_peer, **options)

    return call


CONTENDERS: dict[str, tuple[Callable[[str], Callable[..., Awaitable[Any]]], bool]] = {
    "asyncio": (loops_own, False),
    "uvloop": (loops_own, True),
    "aiofastnet": (aiofastnets, False),
    "aiofastnet-uvloop": (aiofastnets, True),
    "zcserver": (zcservers, False),
    "zcserver-uvloop": (zcservers, True),
    "zcserver-trusted": (functools.partial(zcservers, trust_peer=True), True),
}
"""Whose functions connect and serve, and whether the loop is uvloop's."""


def unavailable(name: str) -> str | None:
    """Why a contender cannot run here."""
    for module in ("aiofastnet", "uvloop", "zcserver"):
        wanted = name.startswith(module) or (module == "uvloop" and CONTENDERS[name][1])
        if wanted and importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    return None


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if not CONTENDERS[name][1]:
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop


if __name__ == "__main__":
    contender = sys.argv.pop(1)
    function = CONTENDERS[contender][0]
    main(
        contender,
        functools.partial(send, function("create_connection")),
        functools.partial(receive, function("create_server")),
        loop_factory(contender),
    )
