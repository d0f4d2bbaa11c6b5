"""What connections share: kernel, pipes, pool, receive memory, limits. One context per event loop."""

import operator
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Final, SupportsIndex

from zcserver_protocol.codec import Limits
from zcserver_protocol.errors import LocalProtocolError
from zcserver_protocol.frames import HEADER_SIZE

from .errors import MisuseError
from .kernel.calls import DEFAULT, Kernel
from .kernel.pipe import PipeShare
from .kernel.probe import Capabilities, probe
from .memory import Pool, Principal, PrincipalKind
from .receiving.inbox import FIRST_WINDOW
from .receiving.memory import ReceiveMemory
from .sending.foreign import ForeignQuarantine

MIB: Final = 1 << 20
_INTEGRITY: Final = "crc32c"
_MAX_MESSAGE: Final = 64 * MIB
# What a stream is promised at once when receive memory is scarce, and what one byte takes of its window.
_LEAST_RECEIVE_MEMORY: Final = FIRST_WINDOW >> 2
_LEAST_STREAM_WINDOW: Final = HEADER_SIZE + 1


def _crc32c() -> Callable[..., int]:
    try:
        from crc32c import crc32c
    except ImportError:
        raise MisuseError(
            "integrity mode needs the crc32c package: pip install 'zcserver[integrity]'"
        ) from None
    function: Callable[..., int] = crc32c
    return function


def _whole(name: str, value: SupportsIndex) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise MisuseError(f"{name} is {value!r}: give a whole number of bytes") from None


def _at_least(least: float, **settings: float) -> None:
    for name, value in settings.items():
        if not value >= least:
            raise MisuseError(f"{name} is {value}; it must be at least {least}")


def _check_receiving(receive_memory: int, stream_window: int, max_message: int) -> None:
    _at_least(_LEAST_RECEIVE_MEMORY, receive_memory=receive_memory)
    _at_least(_LEAST_STREAM_WINDOW, stream_window=stream_window)
    _at_least(0, max_message=max_message)
    if max_message > receive_memory:
        raise MisuseError(
            f"max_message ({max_message} bytes) is over receive_memory ({receive_memory} bytes), where "
            "messages are assembled: raise that, or read larger messages with receive_into() or chunks()"
        )


def _check_lanes(lanes: Collection[str]) -> None:
    unknown = set(lanes) - {"vmsplice", "file", "copy"}
    if unknown:
        raise MisuseError(f"no such lane: {', '.join(sorted(unknown))}; there are vmsplice, file and copy")


def _limits(**settings: Any) -> Limits:
    try:
        return Limits(**settings)
    except LocalProtocolError as error:
        raise MisuseError(str(error)) from None


class Context:
    """Settings and shared resources of one event loop's connections (compare ``zmq.Context``).

    Several threads, each with a loop, need a context each: one that another thread is using is refused with
    MisuseError where a server or a connection begins.

    All sizes are bytes, all times seconds.

    ``pool_size``        memory that is sent by reference, in 2 MiB regions; mapped now, used on demand
    ``receive_memory``   bound for what peers may send before it is consumed, plus received messages held
    ``window``           bytes in flight per connection; at most half the pool
    ``stream_window``    bytes in flight per stream before the receiving application takes them
    ``max_message``      the largest message that is assembled in one piece; 64 MiB, or ``receive_memory`` if
                         that is less
    ``lanes``            restrict the lanes, e.g. ``("copy",)``; by default whatever works here
    ``integrity``        CRC32C per frame, which catches memory written to in flight
    ``poison``           overwrite pages when they come home, so that a bug which frees early is seen
    ``close_seconds``    how long closing waits for the peer to acknowledge what was sent
    ``memory_seconds``   how long to wait for memory before an error names who holds it
    ``quarantine_seconds``  for how long the pages of dead peers count as still held (an estimate)
    ``handshake_seconds``, ``ping_seconds``, ``silence_seconds``, ``ack_seconds``
        when a peer is asked for a sign of life, and after which time without handshake, any bytes, or
        progress of acknowledgements it is given up

    Raises MisuseError for settings that contradict each other, or with which nothing could be received.
    """

    def __init__(
        self,
        *,
        pool_size: SupportsIndex = 64 * MIB,
        receive_memory: SupportsIndex = 256 * MIB,
        window: SupportsIndex = 8 * MIB,
        stream_window: SupportsIndex = 4 * MIB,
        max_message: SupportsIndex | None = None,
        lanes: Collection[str] | None = None,
        integrity: bool = False,
        poison: bool = False,
        close_seconds: float = 30.0,
        memory_seconds: float = 30.0,
        quarantine_seconds: float = 30.0,
        handshake_seconds: float = 10.0,
        ping_seconds: float = 15.0,
        silence_seconds: float = 45.0,
        ack_seconds: float = 30.0,
        kernel: Kernel = DEFAULT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        received = _whole("receive_memory", receive_memory)
        sent = _whole("pool_size", pool_size)
        self.stream_window = _whole("stream_window", stream_window)
        self.max_message = (
            min(_MAX_MESSAGE, received) if max_message is None else _whole("max_message", max_message)
        )
        _check_receiving(received, self.stream_window, self.max_message)
        _at_least(0, close_seconds=close_seconds, memory_seconds=memory_seconds)
        _at_least(0, quarantine_seconds=quarantine_seconds)
        _check_lanes(lanes or ())
        self.kernel = kernel
        self.capabilities: Capabilities = probe(kernel)
        usable = set(self.capabilities.lanes) if lanes is None else set(self.capabilities.lanes) & set(lanes)
        self.by_reference = "vmsplice" in usable
        self.checksum = _crc32c() if integrity else None
        # A checksum needs the bytes in user memory, so files are read then, not spliced.
        self.splices_files = "file" in usable and not integrity
        self.pool = Pool(
            sent, kernel=kernel, poison=poison, quarantine_seconds=quarantine_seconds, clock=clock
        )  # fmt: skip
        self.receive_memory = ReceiveMemory(received, Pool(received, kernel=kernel, inherited=True))
        self.pipes = PipeShare(kernel)
        self.foreign = ForeignQuarantine(sent, quarantine_seconds, clock)
        self.trusted = Principal("trusted peers", PrincipalKind.TRUSTED)
        self.limits = _limits(
            window=min(_whole("window", window), max(self.pool.size // 2, MIB)),
            features=(_INTEGRITY,) if integrity else (),
            handshake_seconds=handshake_seconds,
            ping_seconds=ping_seconds,
            silence_seconds=silence_seconds,
            ack_seconds=ack_seconds,
        )
        self.initial_credit = min(FIRST_WINDOW, self.stream_window)
        self.close_seconds = close_seconds
        self.memory_seconds = memory_seconds
        self._lock = threading.Lock()
        self._thread = 0
        self._users = 0

    def join(self) -> None:
        """Somebody uses this context in the calling thread from now on, until ``leave``.

        Raises MisuseError while another thread has users of it: nothing in here is locked.
        """
        thread = threading.get_ident()
        with self._lock:
            if self._users and self._thread != thread:
                raise MisuseError(
                    f"this context is in use by {self._users} servers or connections of another thread: "
                    "make a context for each thread's event loop"
                )
            self._thread = thread
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1

    def close(self) -> None:
        """Give pipes and memory back to the system. Connections must be closed before."""
        self.pipes.close()
        self.receive_memory.close()
        self.pool.close()

    def __enter__(self) -> "Context":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
