"""Other processes seen from outside: their processor time and their sockets.

The servers of `files.py` are measured as they are, without code of ours in them, so nothing in them reports.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

_PIDFD_GETFD = 438  # the same number on every architecture (pidfd_getfd(2)); glibc has no wrapper
_PROCESS_CLOCK = 2  # CPUCLOCK_SCHED in the low bits of a process's clock id


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of these processes with all their threads, also those that have ended.

    By each process's own clock (clock_getcpuclockid(3)): `/proc/PID/stat` counts in steps of 10 ms.
    Raises `OSError` if one of them is gone.
    """
    return sum(time.clock_gettime((~pid << 3) | _PROCESS_CLOCK) for pid in pids)


def family(root: int) -> list[int]:
    """`root` and all its descendants, such as the workers of nginx."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        parent = int(text.rpartition(")")[2].split()[1])
        children.setdefault(parent, []).append(int(path.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def tcp_sockets(pid: int) -> Iterator[socket.socket]:
    """Duplicates of the TCP sockets that a process has open; the caller closes each.

    What is set on a duplicate is set on the socket. Raises `PermissionError` where tracing that process is
    not allowed, and `OSError` (ENOSYS) before Linux 5.6.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                    continue
            except FileNotFoundError:
                continue
            copy = libc.syscall(_PIDFD_GETFD, pidfd, int(name), 0)
            if copy < 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            sock = socket.socket(fileno=copy)
            if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM:
                yield sock
            else:
                sock.close()
    finally:
        os.close(pidfd)


def tune(pids: list[int], congestion: str) -> None:
    """Give the TCP sockets of these processes this congestion control and TCP_NODELAY.

    What a listener is given, the connections it accepts afterwards inherit. Raises as `tcp_sockets` does.
    """
    for pid in pids:
        for sock in tcp_sockets(pid):
            with sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())


def congestion_in_force(pids: list[int]) -> str:
    """The congestion control of the TCP sockets of these processes, joined by `+` should they differ."""
    names = set()
    for pid in pids:
        for sock in tcp_sockets(pid):
            with sock:
                name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
                names.add(name.rstrip(b"\0").decode())
    return "+".join(sorted(names))
