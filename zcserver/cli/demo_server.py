"""``zcserver demo --serve``: the serving half. Random files, a ring of memory, and the numbers."""

import contextlib
import random
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import anyio

import zcserver
from zcserver.context import Context
from zcserver.errors import ConnectionLostError
from zcserver.server import FileServer, Root, arguments
from zcserver.stream import Stream
from zcserver.topics import Topics, TopicSettings

from .exits import CommandError, ExitCode
from .loop import Interruption
from .options import amount
from .ring import FRAME, Producer, cpu_seconds
from .serve import cannot_listen
from .settings import url_host

RING: Final = "RING"
"""Opens a stream of ``nbytes`` in checkable messages; see ``ring``."""
NUMBERS: Final = "NUMBERS"
"""Asks what the process has used and carried so far; the reply comes when no stream is running."""

SMALL_FILES: Final = 200
_PIECE: Final = 1 << 20


class DemoServer:
    """Give ``handle`` to :func:`zcserver.serve`: files, topics, RING and NUMBERS. Close it first."""

    def __init__(self, files: FileServer, context: Context) -> None:
        self._files = files
        # What is retained of earlier demos is not there for the ring.
        retained = max(FRAME, context.pool.size // 4)
        self._topics = Topics(context, TopicSettings(retain_bytes=retained, block=True))
        self._context = context
        self._producer = Producer()
        self._alone = anyio.Lock()  # one stream at a time: the numbers are the process's

    async def handle(self, stream: Stream) -> None:
        """Serve one request."""
        if stream.method == RING:
            nbytes = arguments.number(stream, "nbytes", 1) or 1
            async with self._alone:
                self._files.totals.add(stream.connection)
                await self._producer.send(stream, nbytes)
        elif stream.method in self._topics.methods:
            self._files.totals.add(stream.connection)
            await self._topics.handle(stream)
        elif stream.method == NUMBERS:
            async with self._alone:
                await self._tell(stream)
        else:
            await self._files.handle(stream)

    def close(self) -> None:
        """End the streams of subscribers."""
        self._topics.close()

    async def _tell(self, stream: Stream) -> None:
        context = self._context
        pool, capabilities = context.pool.stats(), context.capabilities
        missing = {
            lane: reason for lane, reason in capabilities.reasons.items() if lane not in capabilities.lanes
        }
        await stream.reply(
            **self._files.totals.as_dict(),
            cpu_seconds=cpu_seconds(),
            work_seconds=self._producer.work,
            pool_size=pool.size,
            pool_peak=pool.peak,
            pool_recycled=pool.recycled,
            pool_out=pool.size - pool.free,
            lanes=",".join(lanes_used(context)),
            **{f"no_{lane}": reason for lane, reason in missing.items()},
        )
        await stream.end()


def lanes_used(context: Context) -> list[str]:
    """The lanes that this context sends by."""
    used = {"vmsplice": context.by_reference, "file": context.splices_files, "copy": True}
    return [lane for lane, works in used.items() if works]


async def serve_demo(
    bind: tuple[str, int], directory: Path, size: int, ring: int, lanes: tuple[str, ...] | None
) -> ExitCode:
    """Make the files; serve them and the ring until a signal. ``size`` and ``ring``: bytes."""
    host, port = bind
    with contextlib.ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        place = stack.enter_context(workplace(directory, size + (32 << 20)))
        with interruption.cancels():
            print(f"files: writing {amount(size)} and {SMALL_FILES} small ones to {place}", flush=True)
            await anyio.to_thread.run_sync(make_files, place, size)
        context = stack.enter_context(Context(pool_size=ring, lanes=lanes))
        files = FileServer(stack.enter_context(Root(place)))
        stack.callback(files.close)
        demo = DemoServer(files, context)
        try:
            # Trusted: all that a peer could read too late is more random bytes.
            async with zcserver.serve(demo.handle, host, port, context=context, trust_peer=True) as server:
                where = f"zc://{url_host(host, socket.gethostname())}:{server.port}/"
                print(f"serving the demo at {where} (lanes: {', '.join(lanes_used(context))})", flush=True)
                with interruption.cancels():
                    await anyio.sleep_forever()
                demo.close()
        except ConnectionLostError as error:
            raise cannot_listen(error, "--serve ADDRESS:PORT") from error
    return interruption.code_of_server


@contextlib.contextmanager
def workplace(parent: Path, wanted: int) -> Iterator[Path]:
    """A temporary directory in ``parent``, which must have ``wanted`` bytes free, and is made if need be."""
    existed = parent.exists()
    parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(parent).free
    if free < wanted:
        raise CommandError(
            f"{parent} has {amount(free)} free, the demo needs {amount(wanted)}: choose another --dir, "
            f"or a smaller --size",
            ExitCode.NO_SPACE,
        )
    try:
        with tempfile.TemporaryDirectory(dir=parent) as place:
            yield Path(place)
    finally:
        if not existed:
            with contextlib.suppress(OSError):  # somebody else uses it by now
                parent.rmdir()


def make_files(directory: Path, size: int) -> None:
    """One large file and 200 small ones, of 0 bytes to 128 KiB, in five folders; random content."""
    chance = random.Random(7420)
    block = memoryview(chance.randbytes(2 * _PIECE))
    with (directory / "large.bin").open("wb", buffering=0) as file:
        for position in range(0, size, _PIECE):
            count = min(_PIECE, size - position)
            file.write(b"".join((position.to_bytes(8, "little"), _slice(block, chance)))[:count])
    for number in range(SMALL_FILES):
        folder = directory / f"folder {number % 5}"
        folder.mkdir(exist_ok=True)
        length = 0 if number == 0 else chance.randrange(1, 128 << 10)
        (folder / f"small-{number:03}.bin").write_bytes(_slice(block, chance)[:length])


def _slice(block: memoryview, chance: random.Random) -> memoryview:
    start = chance.randrange(_PIECE)
    return block[start : start + _PIECE]
