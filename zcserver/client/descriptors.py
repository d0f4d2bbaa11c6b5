"""Pipes, sockets, terminals and files that others hold, too: waiting for them where it can be cancelled.

Their flags belong to whoever shares the open file (a shell, the other commands of a pipeline): O_NONBLOCK is
not set on them. ``anyio.wait_readable`` on uvloop would set it (``uv_poll_init`` of libuv).
"""

import contextlib
import fcntl
import os
import select
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator

import anyio
import anyio.to_thread

Write = Callable[[list[memoryview]], Awaitable[None]]


async def ready(fd: int, event: int) -> bool:
    """Wait for ``select.EPOLLIN`` or ``EPOLLOUT``; False at once for files and such, which have neither."""
    with select.epoll(1) as poller:
        try:
            poller.register(fd, event)
        except PermissionError:
            return False
        await anyio.wait_readable(poller.fileno())
    return True


async def read_some(fd: int, most: int) -> bytes:
    """What there is, up to ``most`` bytes; none at the end."""
    if await ready(fd, select.EPOLLIN):
        return os.read(fd, most)
    return await anyio.to_thread.run_sync(os.read, fd, most)


@contextlib.contextmanager
def writing(fd: int, room: int = 0) -> Iterator[Write]:
    """A function that writes all pieces of a list, and empties it. BrokenPipeError when the reader has gone.

    A pipe is made to hold ``room`` bytes at least, if it may be: fewer have to be waited for more often.
    """
    with contextlib.ExitStack() as stack:
        write_some = _at_once(fd, stack)
        with contextlib.suppress(OSError):
            if fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) < room:
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, room)

        async def write(pieces: list[memoryview]) -> None:
            while pieces:
                if await ready(fd, select.EPOLLOUT):
                    with contextlib.suppress(BlockingIOError):  # somebody else was faster
                        _drop(pieces, write_some(pieces))
                else:  # never for long
                    _drop(pieces, await anyio.to_thread.run_sync(os.writev, fd, pieces))

        yield write


def _at_once(fd: int, stack: contextlib.ExitStack) -> Callable[[list[memoryview]], int]:
    """A function that writes what there is room for once ``fd`` is ready, and returns how many bytes."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        sock = stack.enter_context(socket.socket(fileno=os.dup(fd)))
        return lambda pieces: sock.sendmsg(pieces, (), socket.MSG_DONTWAIT)
    if stat.S_ISFIFO(mode) or os.isatty(fd):
        with contextlib.suppress(OSError):  # it is another user's, or there is no /proc
            # Opened once more, it has flags of its own.
            own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            stack.callback(os.close, own)
            return lambda pieces: os.writev(own, pieces)
    return lambda pieces: os.write(fd, pieces[0][: select.PIPE_BUF])  # a ready pipe has room for those


def _drop(pieces: list[memoryview], nbytes: int) -> None:
    """Take so many bytes off the front."""
    while pieces and nbytes >= len(pieces[0]):
        nbytes -= len(pieces.pop(0))
    if nbytes:
        pieces[0] = pieces[0][nbytes:]
