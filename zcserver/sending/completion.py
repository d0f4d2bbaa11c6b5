"""What ``send`` returns: a promise about the peer, not about the kernel."""

import logging
from collections.abc import Callable, Generator
from typing import Any

import anyio

from zcserver.again import again

_log = logging.getLogger("zcserver")


class Completion:
    """Resolves when the peer has acknowledged the last byte of one message.

    It means the same on every lane. Any number of tasks may wait on it, before or after it resolves;
    cancelling a waiter cancels nothing. It fails with the error that ended the stream or connection, once
    what was begun of the message is with the peer, too; such a failure is never lost, because the next
    ``send`` on that stream raises it at once.
    """

    __slots__ = ("_callbacks", "_error", "_event", "done")

    def __init__(self) -> None:
        self.done = False
        self._error: BaseException | None = None
        self._event: anyio.Event | None = None
        self._callbacks: list[Callable[[Completion], object]] | None = None

    async def wait(self) -> None:
        """Return once acknowledged; raise what ended the stream or connection before that."""
        if not self.done:
            if self._event is None:
                self._event = anyio.Event()
            await self._event.wait()
        if self._error is not None:
            raise again(self._error)

    def __await__(self) -> Generator[Any, None, None]:
        return self.wait().__await__()

    @property
    def error(self) -> BaseException | None:
        """Why it failed, or (before ``done``) why it will; otherwise ``None``."""
        return self._error

    def add_done_callback(self, callback: Callable[["Completion"], object]) -> None:
        """Call ``callback(self)`` in the event loop's thread when it resolves; at once if it already has.

        What it raises then is logged.
        """
        if self.done:
            callback(self)
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    def doom(self, error: BaseException) -> None:
        """For the sender: it will fail, but some of it is still to be read. ``resolve`` follows."""
        self._error = error

    def resolve(self, error: BaseException | None = None) -> None:
        """For the sender: the fate of the message is known. The first call decides."""
        if self.done:
            return
        self.done = True
        if error is not None:
            self._error = error
        if self._event is not None:
            self._event.set()
        if self._callbacks is not None:
            callbacks, self._callbacks = self._callbacks, None
            for callback in callbacks:
                try:
                    callback(self)
                except Exception:  # noqa: BLE001 – the program's; others are to learn their fate
                    _log.exception("%r raised, called when a message was acknowledged or lost", callback)
