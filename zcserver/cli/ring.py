"""The messages that ``zcserver demo`` streams through a ring of pool memory, every byte checked."""

import os
import resource
import struct
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import Final

from zcserver.client import Publisher, Subscription
from zcserver.memory import Buffer
from zcserver.stream import Stream

MESSAGE: Final = 256 * 1024
"""Of the stream."""
FRAME: Final = 1024 * 1024
"""Of what is published."""
_STAMP: Final = struct.Struct("=QI4x")  # number, checksum of the rest
_PATTERN: Final = 4 << 20
_STRIDE: Final = 66_536  # consecutive messages begin at other places of the pattern, in other page offsets
_FAULTS_TOLD: Final = 5


def cpu_seconds() -> float:
    """What this process has used so far, in user and kernel mode."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def checksum(number: int, body: memoryview) -> int:
    """Of a message's body; its number goes in, so that one message cannot pass for another."""
    return zlib.crc32(body, number & 0xFFFFFFFF)


def fill(view: memoryview, number: int, pattern: memoryview) -> None:
    """Write every byte of a fresh message: number, checksum, content of its own."""
    start = number * _STRIDE % (len(pattern) - len(view))
    with view[_STAMP.size :] as body:
        body[:] = pattern[start : start + len(body)]
        body[:8] = number.to_bytes(8, "little")
        _STAMP.pack_into(view, 0, number, checksum(number, body))


def check(view: memoryview, number: int, size: int) -> str:
    """What is wrong with the message, the ``number``-th and of ``size`` bytes; empty if it is right."""
    if len(view) != size:
        return f"message {number} has {len(view)} bytes instead of {size}"
    stamped, expected = _STAMP.unpack_from(view)
    if stamped != number:
        return f"message {stamped} came where {number} was due"
    found = checksum(number, view[_STAMP.size :])
    return "" if found == expected else f"message {number} has checksum {found:08x} instead of {expected:08x}"


class Producer:
    """Messages of ``size`` bytes. ``work`` is the CPU seconds that filling them took, apart from sending."""

    def __init__(self, size: int = MESSAGE) -> None:
        self.work = 0.0
        self._size = size
        self._pattern = memoryview(os.urandom(_PATTERN))

    async def send(self, stream: Stream, nbytes: int) -> None:
        """Send ``nbytes``, each message in a buffer that came home from the ring.

        Returns when the peer has copied the last byte.
        """
        await self._produce(stream.connection.acquire, stream.send, nbytes)
        completion = await stream.end()
        await completion

    async def publish(self, publisher: Publisher, nbytes: int) -> None:
        """The same to a topic. The publisher waits for the last of it when it is left."""
        await self._produce(publisher.acquire, publisher.publish, nbytes)

    async def _produce(
        self,
        acquire: Callable[[int], Awaitable[Buffer]],
        send: Callable[[Buffer], Awaitable[object]],
        nbytes: int,
    ) -> None:
        for number in range(_count(nbytes, self._size)):
            with await acquire(self._size) as buffer:
                begin = time.thread_time()
                fill(buffer.view, number, self._pattern)
                self.work += time.thread_time() - begin
                await send(buffer)


class Consumer:
    """``messages`` and ``nbytes`` came, ``faults`` were found; ``work``: CPU seconds of checking."""

    def __init__(self, size: int = MESSAGE) -> None:
        self.work = 0.0
        self.messages = 0
        self.nbytes = 0
        self._size = size
        self._wrong = 0
        self._told: list[str] = []

    async def receive(self, stream: Stream) -> None:
        """Take and check the messages of a stream, to its end."""
        async for message in stream:
            self._take(message.data)

    async def subscribe(self, subscription: Subscription, nbytes: int) -> None:
        """The same of a topic, to which ``nbytes`` are published."""
        due = _count(nbytes, self._size)
        while self.messages + subscription.missed < due:
            message = await anext(subscription)
            self._take(message.data)

    def _take(self, data: memoryview) -> None:
        begin = time.thread_time()
        fault = check(data, self.messages, self._size)
        self.work += time.thread_time() - begin
        self.messages += 1
        self.nbytes += len(data)
        if fault:
            self._wrong += 1
            if self._wrong <= _FAULTS_TOLD:
                self._told.append(fault)

    def faults(self, nbytes: int) -> list[str]:
        """What was wrong with what came, where ``nbytes`` were due."""
        faults = list(self._told)
        if self._wrong:
            faults.append(f"{self._wrong} messages are wrong")
        due = _count(nbytes, self._size)
        if self.messages != due:
            faults.append(f"{self.messages} messages arrived, {due} were due")
        return faults


def _count(nbytes: int, size: int) -> int:
    """How many messages of ``size`` bytes are sent for ``nbytes``."""
    return max(1, nbytes // size)
