"""Sockets that wait for connections: TCP on IPv4 and IPv6, and Unix sockets."""

import contextlib
import errno
import os
import socket
import stat
from typing import Any, Final

import anyio

from .errors import ConnectionLostError, printable

EVERYWHERE: Final = "*"
"""As a host: all addresses of this machine, IPv6 and IPv4."""

EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""What ``accept`` says when this process or machine can hold no more connections for now."""


class SocketFile:
    """The file of a listening Unix socket: removed at the end, unless another server's is in its place."""

    def __init__(self, sock: socket.socket) -> None:
        self._path = os.fsdecode(sock.getsockname()) if sock.family == socket.AF_UNIX else ""
        self._status = os.stat(self._path) if self._path and not is_abstract(self._path) else None

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._status is not None and os.path.samestat(os.lstat(self._path), self._status):
                os.unlink(self._path)


class Listener:
    """A listening, non-blocking socket; ``path`` is that of a Unix socket, else empty. Close it.

    A path that begins with a NUL is a name without a file (unix(7), abstract).
    """

    def __init__(self, sock: socket.socket, path: str = "") -> None:
        self.sock = sock
        self.path = path
        self._file = SocketFile(sock)

    @property
    def port(self) -> int:
        """The TCP port, 0 for a Unix socket."""
        return 0 if self.path else int(self.sock.getsockname()[1])

    def close(self) -> None:
        """Stop listening, and remove the Unix socket's file unless another server has put its own there."""
        if self.sock.fileno() < 0:
            return
        anyio.notify_closing(self.sock)
        self.sock.close()
        self._file.remove()


async def listen(host: str, port: int, backlog: int) -> Listener:
    """Listen on the first address of ``host``. ConnectionLostError, with its cause, when that cannot be."""
    place = place_of(host, port)
    try:
        family, kind, protocol, address = await _resolve(host, port)
    except socket.gaierror as error:
        raise ConnectionLostError(
            f"cannot listen on {place}: the name cannot be resolved: {error.strerror}"
        ) from error
    except OSError as error:
        raise _cannot_listen(place, error) from error
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Only "*" means both families, so that 0.0.0.0 and :: can be given side by side.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != EVERYWHERE)
        _begin(sock, address, backlog)
    except OSError as error:
        sock.close()
        raise _cannot_listen(place, error) from error
    return Listener(sock)


async def _resolve(host: str, port: int) -> tuple[int, int, int, Any]:
    if host == EVERYWHERE:
        host = "::" if _has_ipv6() else "0.0.0.0"
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = found[0]
    return family, kind, protocol, address


def _has_ipv6() -> bool:
    """A kernel may have been booted without it."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def place_of(host: str, port: int) -> str:
    """A TCP address in words: IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_abstract(path: str) -> bool:
    return path.startswith("\0")


def shown(path: str | bytes) -> str:
    """The path of a Unix socket in words, printable; abstract ones as ss(8) writes them."""
    return printable(os.fsdecode(path).replace("\0", "@"))


def listen_unix(path: str | bytes, backlog: int) -> Listener:
    """Listen on a Unix socket, in the place of one that a dead server left behind.

    ConnectionLostError, with its cause, when that cannot be.
    """
    path = os.fsdecode(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if not is_abstract(path):
            _remove_stale(path)
        _begin(sock, path, backlog)
        return Listener(sock, path)
    except OSError as error:
        sock.close()
        if error.errno is None:  # CPython's own check
            error = OSError(errno.ENAMETOOLONG, "the path of a Unix socket has at most 107 bytes")
        raise _cannot_listen(shown(path), error) from error


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return  # bind will say that something is there
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except BlockingIOError:
            pass  # somebody listens, and is busy


def _begin(sock: socket.socket, address: Any, backlog: int) -> None:
    sock.setblocking(False)
    sock.bind(address)
    sock.listen(backlog)


def _cannot_listen(place: str, error: OSError) -> ConnectionLostError:
    return ConnectionLostError(f"cannot listen on {place}: {error.strerror}")
