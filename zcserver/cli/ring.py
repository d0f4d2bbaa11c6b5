"""The streaming half of ``zcserver demo``: two processes, a small ring of pool memory, every message checked.

    python -m zcserver.cli.ring receive
    python -m zcserver.cli.ring send PORT BYTES RING [LANES]

The receiver prints its port first; each prints one JSON line of numbers at the end.
"""

import json
import os
import resource
import struct
import sys
import time
import zlib
from typing import Any, Final

import anyio

import zcserver

from .exits import ExitCode
from .loop import run

MESSAGE: Final = 256 * 1024
_STAMP: Final = struct.Struct("=QI4x")  # number, checksum of the rest
_PATTERN: Final = 4 << 20
_STRIDE: Final = 66_536  # consecutive messages begin at other places of the pattern, in other page offsets
_FAULTS_TOLD: Final = 5


class Account:
    """Wall and CPU seconds of this process since it was made; ``work`` is what the demo itself used."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._used = _cpu_seconds()
        self.work = 0.0

    def numbers(self) -> dict[str, float]:
        return {
            "seconds": time.monotonic() - self._begin,
            "cpu_seconds": _cpu_seconds() - self._used,
            "work_seconds": self.work,
        }


def _cpu_seconds() -> float:
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


def check(view: memoryview, number: int) -> str:
    """What is wrong with the message, which should be the ``number``-th; empty if it is right."""
    if len(view) != MESSAGE:
        return f"message {number} has {len(view)} bytes instead of {MESSAGE}"
    stamped, expected = _STAMP.unpack_from(view)
    if stamped != number:
        return f"message {stamped} came where {number} was due"
    found = checksum(number, view[_STAMP.size :])
    return "" if found == expected else f"message {number} has checksum {found:08x} instead of {expected:08x}"


async def send(port: int, nbytes: int, ring: int, lanes: tuple[str, ...] | None) -> dict[str, Any]:
    """Produce ``nbytes`` in messages of 256 KiB, each in a buffer that came home from the ring."""
    pattern = memoryview(os.urandom(_PATTERN))
    with zcserver.Context(pool_size=ring, lanes=lanes) as context:
        async with zcserver.connect(port=port, context=context, trust_peer=True) as connection:
            stream = await connection.open("PUBLISH", "/ring")
            account = Account()
            for number in range(max(1, nbytes // MESSAGE)):
                buffer = await connection.acquire(MESSAGE)
                begin = time.thread_time()
                fill(buffer.view, number, pattern)
                account.work += time.thread_time() - begin
                await stream.send(buffer)
            completion = await stream.end()
            await completion
            numbers = account.numbers()
            statistics = connection.statistics.as_dict()
        pool = context.pool.stats()
    return {
        **numbers,
        **statistics,
        "pool_size": pool.size,
        "pool_peak": pool.peak,
        "pool_recycled": pool.recycled,
        "pool_home": pool.free == pool.size,
    }


async def receive() -> dict[str, Any]:
    """Take the messages of one stream and check every byte of each."""
    numbers: dict[str, Any] = {}
    finished = anyio.Event()

    async def take(stream: zcserver.Stream) -> None:
        account = Account()
        messages = nbytes = 0
        faults: list[str] = []
        try:
            async for message in stream:
                begin = time.thread_time()
                fault = check(message.data, messages)
                account.work += time.thread_time() - begin
                if fault:
                    faults.append(fault)
                messages += 1
                nbytes += len(message)
        finally:
            numbers.update(account.numbers(), messages=messages, bytes=nbytes)
            numbers.update(wrong=len(faults), faults=faults[:_FAULTS_TOLD])
            finished.set()

    async with zcserver.serve(take, port=0) as server:
        print(server.port, flush=True)
        await finished.wait()
    return numbers


def main(arguments: list[str]) -> ExitCode:
    """Play the role that the arguments name."""
    if arguments[0] == "receive":
        numbers = run(receive)
    else:
        port, nbytes, ring = (int(argument) for argument in arguments[1:4])
        numbers = run(send, port, nbytes, ring, tuple(arguments[4:]) or None)
    print(json.dumps(numbers), flush=True)
    return ExitCode.OK


if __name__ == "__main__":
    from .app import guarded

    guarded(main, sys.argv[1:])
