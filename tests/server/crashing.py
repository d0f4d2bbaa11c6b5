"""A server that is killed at each step of a PUT in turn, and what its successor finds. A process of its own.

python -m tests.server.crashing DIRECTORY

Prints a line for each step: what the target held after the death (old, new, or what else), whether the
client had been told COMMIT, how many uploads lay about then, and how many after the next start.
"""

import os
import signal
import sys
from pathlib import Path

import anyio

import zcserver
from zcserver.errors import TransferError
from zcserver.file_protocol import PUT
from zcserver.server import FileServer, Root
from zcserver.server.disk import Disk

OLD = b"old" * 1000
NEW = bytes(range(256)) * 1280
WRITTEN = 16 * 1024  # bytes at a time: each such step is one at which the server dies once


class MortalDisk(Disk):
    """Kills its process before or after the nth call, counted together."""

    def __init__(self, step):
        self.left = step

    def live(self, call, *arguments):
        self._step()
        result = call(*arguments)
        self._step()
        return result

    def _step(self):
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def write(self, fd, pieces, offset):
        return self.live(super().write, fd, [pieces[0][:WRITTEN]], offset)

    def create(self, *arguments):
        return self.live(super().create, *arguments)

    def set_mode(self, *arguments):
        return self.live(super().set_mode, *arguments)

    def set_mtime(self, *arguments):
        return self.live(super().set_mtime, *arguments)

    def sync(self, *arguments):
        return self.live(super().sync, *arguments)

    def rename(self, *arguments):
        return self.live(super().rename, *arguments)

    def remove(self, *arguments):
        return self.live(super().remove, *arguments)


async def serve(directory: Path, step: int, ready: int) -> None:
    with Root(directory / "served") as root:
        files = FileServer(root, writable=True, disk=MortalDisk(step))
        async with zcserver.serve(files.handle, paths=[str(directory / "socket")]) as server:
            os.write(ready, b"!")
            await server.wait_closed()


async def put(directory: Path) -> int:
    """The count of COMMIT, whether the server lives on or not."""
    with anyio.fail_after(30):
        try:
            async with zcserver.connect(path=str(directory / "socket")) as connection:
                stream = await connection.open(PUT, "/file", size=len(NEW), mtime_ns=0)
                try:
                    await stream.response()
                    await stream.send(NEW, end=True)
                    async for _ in stream:
                        raise AssertionError("a message where none was due")
                finally:
                    committed = stream.committed
        except TransferError:
            pass
        return committed


def die_at(directory: Path, step: int) -> bool:
    """One life. False when the server survived the whole PUT."""
    target = directory / "served" / "file"
    target.write_bytes(OLD)
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        try:
            anyio.run(serve, directory, step, tell)
        finally:
            os._exit(1)
    os.read(ready, 1)
    committed = anyio.run(put, directory)
    died = os.waitpid(child, os.WNOHANG if committed else 0)[0] == child
    if not died:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    for fd in (ready, tell):
        os.close(fd)
    content = target.read_bytes()
    held = {OLD: "old", NEW: "new"}.get(content, "neither")
    stray = len(os.listdir(directory / "served" / ".zcserver"))
    with Root(directory / "served") as root:
        FileServer(root, writable=True).close()
    left = os.listdir(directory / "served" / ".zcserver") + os.listdir(directory / "served")
    print(held, committed, stray, len(left) - 2, flush=True)
    return died


def main(directory: Path) -> None:
    (directory / "served").mkdir()
    step = 0
    while die_at(directory, step):
        step += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
