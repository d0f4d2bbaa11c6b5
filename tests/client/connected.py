"""A client and its server in one program; files for them, and ways to interfere."""

import contextlib
import random

import anyio

import zcserver
from zcserver import Client
from zcserver.client import Progress
from zcserver.server import FileServer, Root

MIB = 1 << 20


@contextlib.asynccontextmanager
async def client_for(directory, make_context, rate=0, disk=None, limit_rate=0, **settings):
    """A client of a writable server of ``directory``, with a deadline around everything."""
    with (
        Root(directory) as root,
        contextlib.closing(FileServer(root, writable=True, rate=rate, disk=disk)) as files,
        anyio.fail_after(60),
    ):
        async with (
            zcserver.serve(files.handle, port=0, context=make_context(**settings)) as server,
            Client(f"zc://127.0.0.1:{server.port}", context=make_context(), limit_rate=limit_rate) as client,
        ):
            yield client


@contextlib.asynccontextmanager
async def client_of(handle, make_context):
    """A client of a server with this handler, with a deadline around everything."""
    with anyio.fail_after(60):
        async with (
            zcserver.serve(handle, port=0, context=make_context()) as server,
            Client(f"zc://127.0.0.1:{server.port}", context=make_context()) as client,
        ):
            yield client


def filled(path, nbytes, seed=1):
    path.write_bytes(random.Random(seed).randbytes(nbytes))
    return path.read_bytes()


class AbandonedError(Exception):
    pass


class AfterBytes(Progress):
    """Calls ``action`` once when so many bytes of a file have come."""

    def __init__(self, nbytes, action):
        self.left = nbytes
        self.action = action

    def moved(self, path, nbytes):
        self.left -= nbytes
        if self.left <= 0:
            action, self.action = self.action, lambda: None
            action()


def abandon():
    raise AbandonedError
