"""The messages that ``zcserver demo`` streams through a ring of pool memory, every byte checked."""

import os
import resource
import struct
import time
import zlib
from typing import Final

from zcserver.stream import Stream

MESSAGE: Final = 256 * 1024
_STAMP: Final = struct.Struct("=QI4x")  # number, checksum of the rest
_PATTERN: Final = 4 << 20
_STRIDE: Final = 66_536  # consecutive messages begin at other places of the pattern, in other page offsets
_FAULTS_TOLD: Final = 5


def cpu_seconds() -> float:
    """What this process has used so far, in user and kernel mode."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def messages_of(nbytes: int) -> int:
    """How many messages a stream of ``nbytes`` has."""
    return max(1, nbytes // MESSAGE)


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


def check(view: memoryview, number: int) -> str:
    """What is wrong with the message, which should be the ``number``-th; empty if it is right."""
    if len(view) != MESSAGE:
        return f"message {number} has {len(view)} bytes instead of {MESSAGE}"
    stamped, expected = _STAMP.unpack_from(view)
    if stamped != number:
        return f"message {stamped} came where {number} was due"
    found = checksum(number, view[_STAMP.size :])
    return "" if found == expected else f"message {number} has checksum {found:08x} instead of {expected:08x}"


class Producer:
    """``work`` is the CPU seconds that filling the messages took, apart from sending them."""

    def __init__(self) -> None:
        self.work = 0.0
        self._pattern = memoryview(os.urandom(_PATTERN))

    async def send(self, stream: Stream, nbytes: int) -> None:
        """Send ``nbytes`` in messages of 256 KiB, each in a buffer that came home from the ring.

        Returns when the peer has copied the last byte.
        """
        for number in range(messages_of(nbytes)):
            with await stream.connection.acquire(MESSAGE) as buffer:
                begin = time.thread_time()
                fill(buffer.view, number, self._pattern)
                self.work += time.thread_time() - begin
                await stream.send(buffer)
        completion = await stream.end()
        await completion


class Consumer:
    """``messages`` and ``nbytes`` came, ``faults`` were found; ``work``: CPU seconds of checking."""

    def __init__(self) -> None:
        self.work = 0.0
        self.messages = 0
        self.nbytes = 0
        self.faults: list[str] = []

    async def receive(self, stream: Stream, nbytes: int) -> None:
        """Take and check the messages of a stream that should be ``nbytes`` long."""
        wrong = 0
        async for message in stream:
            begin = time.thread_time()
            fault = check(message.data, self.messages)
            self.work += time.thread_time() - begin
            if fault:
                wrong += 1
                if wrong <= _FAULTS_TOLD:
                    self.faults.append(fault)
            self.messages += 1
            self.nbytes += len(message)
        if wrong:
            self.faults.append(f"{wrong} messages are wrong")
        due = messages_of(nbytes)
        if self.messages != due:
            self.faults.append(f"{self.messages} messages arrived, {due} were asked for")
