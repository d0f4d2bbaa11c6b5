"""The command line's event loop, and how signals end what runs in it."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import Final, TypeVar, TypeVarTuple

import anyio

from .exits import CommandError, ExitCode

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")
_ENDINGS: Final = {
    signal.SIGINT: ("interrupted", ExitCode.INTERRUPTED),
    signal.SIGTERM: ("terminated", ExitCode.TERMINATED),
    signal.SIGHUP: ("hung up", ExitCode.HUNG_UP),
}
_DESCRIPTORS: Final = 12


def run(work: Callable[[*Arguments], Awaitable[Result]], *arguments: *Arguments) -> Result:
    """Run ``work`` on uvloop: a loop of this run's own, not a policy for the process."""
    _check_descriptors()
    return anyio.run(work, *arguments, backend="asyncio", backend_options={"use_uvloop": True})


def run_ready(work: Callable[[*Arguments], Awaitable[Result]], *arguments: *Arguments) -> Result:
    """The same; a signal waits for the first ``Interruption`` of ``work``, which must not wait for others."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)
    return run(work, *arguments)


def _check_descriptors() -> None:
    """OSError unless there are enough for a loop: uvloop, short of them, fails in ways not to be caught."""
    with contextlib.ExitStack() as stack:
        for _ in range(_DESCRIPTORS):
            stack.callback(os.close, os.dup(2))


class Interruption:
    """As a context manager it catches SIGINT, SIGTERM and SIGHUP; each cancels what runs in ``cancels()``.

    ``signal`` is the first that came. One that comes between two blocks cancels the next. SIGHUP counts
    once, since a terminal that goes may send several, and not at all under nohup.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._scope: anyio.CancelScope | None = None
        self._unused = False
        self._before = signal.getsignal(signal.SIGINT)
        self._numbers = set(_ENDINGS)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            self._numbers.remove(signal.SIGHUP)

    def __enter__(self) -> "Interruption":
        loop = asyncio.get_running_loop()
        for number in self._numbers:
            loop.add_signal_handler(number, self._caught, number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDINGS)  # see ``run_ready``
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in self._numbers:
            loop.remove_signal_handler(number)
        signal.signal(signal.SIGINT, self._before)

    def _caught(self, number: signal.Signals) -> None:
        if number is self.signal is signal.SIGHUP:
            return
        self.signal = self.signal or number
        if self._scope is not None:
            self._scope.cancel()
        else:
            self._unused = True

    @contextlib.contextmanager
    def cancels(self) -> Iterator[None]:
        """The body is cancelled by a signal, cleans up, and the program goes on behind it."""
        with anyio.CancelScope() as scope:
            if self._unused:
                self._unused = False
                scope.cancel()
            self._scope = scope
            try:
                yield
            finally:
                self._scope = None

    def raise_if_caught(self) -> None:
        """CommandError with the signal's exit code if one came."""
        if self.signal is not None:
            raise CommandError(*_ENDINGS[self.signal])

    @property
    def code_of_server(self) -> ExitCode:
        """How a server ends by the signal that came: SIGTERM is the way to end it well."""
        if self.signal is None or self.signal is signal.SIGTERM:
            return ExitCode.OK
        return _ENDINGS[self.signal][1]
