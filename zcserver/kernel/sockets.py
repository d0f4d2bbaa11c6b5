"""Options that every ZCP/1 socket gets, at both ends."""

import contextlib
import ipaddress
import socket

from zcserver.kernel.calls import DEFAULT, Kernel
from zcserver.kernel.probe import Capabilities


def begin_unpaced(sock: socket.socket, capabilities: Capabilities, kernel: Kernel = DEFAULT) -> bool:
    """Before ``sock`` connects or listens: choose an unpaced congestion control; True if that was done.

    For peers on this host :func:`prepare` would be too late: once bbr has run on a connection, Linux keeps a
    pacing timer for every segment, whatever replaces it (nothing resets ``sk_pacing_status``); measured, half
    of a sender's system time. Call :func:`settle` when connected. Sockets that do not have the system's
    default, because somebody chose for them, are left alone.
    """
    wanted, default = capabilities.congestion_unpaced, capabilities.congestion_default
    if sock.family == socket.AF_UNIX or wanted is None or wanted == default:
        return False
    try:
        if kernel.get_congestion(sock) != default:
            return False
        kernel.set_congestion(sock, wanted)
    except OSError:  # :func:`prepare` tries again
        return False
    return True


def settle(sock: socket.socket, capabilities: Capabilities, kernel: Kernel = DEFAULT) -> None:
    """A connection that began unpaced is made: remote peers get the default after all.

    Unless a route of the administrator's (``ip route … congctl``) has chosen for this connection.
    """
    default = capabilities.congestion_default
    if default is None or is_same_host(sock):
        return
    with contextlib.suppress(OSError):  # the peer is gone already
        if kernel.get_congestion(sock) == capabilities.congestion_unpaced:
            kernel.set_congestion(sock, default)


def prepare(sock: socket.socket, capabilities: Capabilities, kernel: Kernel = DEFAULT) -> str:
    """Make a connected socket ready for the engine: non-blocking; TCP without Nagle, unpaced to this host.

    Returns the congestion control in use, empty if there is none.

    Without ``TCP_NODELAY`` a header sent by itself and the payload behind it cost 44 ms instead of 0.04.
    The congestion control of remote peers is the administrator's choice and stays, and so does what may not
    be changed. ``OSError`` if it is neither a TCP nor a Unix socket.
    """
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        return ""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wanted = capabilities.congestion_unpaced
    if wanted is not None and wanted != capabilities.congestion_default and is_same_host(sock):
        with contextlib.suppress(OSError):  # EPERM, ENOENT: slower, not wrong
            kernel.set_congestion(sock, wanted)
    try:
        return kernel.get_congestion(sock)
    except OSError:
        return ""


def is_same_host(sock: socket.socket) -> bool:
    """Whether the peer is surely on this host: a loopback address, or our own.

    False for containers of this host, which have addresses of their own, and for a socket whose peer
    is gone already.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return sock.family == socket.AF_UNIX
    try:
        peer, ours = sock.getpeername()[0], sock.getsockname()[0]
    except OSError:
        return False
    address = ipaddress.ip_address(peer)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or bool(peer == ours)
