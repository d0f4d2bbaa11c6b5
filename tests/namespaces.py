"""Two network namespaces joined by a veth pair: one process with sockets on both sides of a wire."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.raw_peer import Link

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _enter(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(fd, _CLONE_NEWNET) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(fd)


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Sockets that this thread makes in the block belong to the namespace."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(f"/run/netns/{namespace}")
        try:
            yield
        finally:
            _enter(f"/proc/self/fd/{home}")
    finally:
        os.close(home)


class VethLink(Link):
    """The server in one namespace, its peers in the other."""

    host = "10.231.7.1"

    def __init__(self) -> None:
        self.names = f"zcs{os.getpid()}a", f"zcs{os.getpid()}b"

    def server_side(self) -> object:
        return inside(self.names[0])

    def client_side(self) -> object:
        return inside(self.names[1])

    def build(self) -> None:
        server, client = self.names
        for name in self.names:
            _ip("netns", "add", name)
        _ip("link", "add", server, "netns", server, "type", "veth", "peer", "name", client, "netns", client)
        for name, address in ((server, self.host), (client, "10.231.7.2")):
            _ip("-n", name, "address", "add", f"{address}/30", "dev", name)
            _ip("-n", name, "link", "set", name, "up")

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextmanager
def veth() -> Iterator[VethLink]:
    """Make the two namespaces; skip the test where that is not allowed."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the ip command")
    link = VethLink()
    try:
        try:
            link.build()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not to be had here: {error.stderr.strip()}")
        yield link
    finally:
        link.remove()
