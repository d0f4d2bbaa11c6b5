"""The fetching half of ``zcserver demo``: files and a stream, every byte checked, and the numbers."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
from rich.console import Console
from rich.table import Table

from zcserver.client import Client, local_path, parse_url
from zcserver.client.request import ask, request
from zcserver.connection import Connection
from zcserver.errors import StreamResetError, TransferError
from zcserver.file_protocol import escape

from .demo_server import NUMBERS, RING
from .exits import CommandError, ExitCode, explain, printable
from .options import amount, rate
from .ring import MESSAGE, Consumer, cpu_seconds

_HASHED_AT_ONCE: Final = 2
_COUNTED: Final = (
    "cpu_seconds",
    "work_seconds",
    "reference_bytes",
    "file_bytes",
    "copied_bytes",
    "pool_recycled",
)
_STATES: Final = ("pool_size", "pool_peak", "pool_out")


@dataclass(frozen=True, slots=True)
class Part:
    """The numbers of one half, and what was wrong (nothing, one hopes). ``sender`` is the server."""

    nbytes: int
    seconds: float
    sender: dict[str, Any]
    receiver: dict[str, Any]
    faults: list[str]


class _Measured:
    """A block's wall and CPU seconds here, and what the server counted meanwhile."""

    def __init__(self, client: Client) -> None:
        self._connection = client.connection
        self.work = 0.0
        """CPU seconds of the block that are the demo's own, not the transfer's."""

    async def __aenter__(self) -> "_Measured":
        self._before = await numbers(self._connection)
        self._begin, self._used = time.monotonic(), cpu_seconds()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        self.seconds = time.monotonic() - self._begin
        self.receiver = {"cpu_seconds": cpu_seconds() - self._used, "work_seconds": self.work}
        after = await numbers(self._connection)
        self.sender = {**after, **{key: after[key] - self._before[key] for key in _COUNTED}}


async def numbers(connection: Connection) -> dict[str, Any]:
    """What the demo server has used and carried so far. CommandError if it is none."""
    try:
        reply = await ask(connection, NUMBERS, "/")
    except StreamResetError as error:
        line = printable(f"there is no demo ({error.reason}): start it there with `zcserver demo --serve`")
        raise CommandError(line, ExitCode.FAILED) from error
    if not all(isinstance(reply.get(key), int | float) for key in (*_COUNTED, *_STATES)):
        raise CommandError("the demo there is of another version: install the same one", ExitCode.VERSION)
    return reply


async def fetch_demo(url: str, stream: int, place: Path, console: Console) -> ExitCode:
    """Fetch the files to ``place``, then ``stream`` bytes; print a table and a verdict.

    MISMATCH if a byte differs.
    """
    address = parse_url(url)
    async with Client(address) as client:
        _tell_lanes(console, await numbers(client.connection))
        console.print("files: fetching them …")
        files = await _files(client, address.path, place)
        console.print(f"memory: streaming {amount(stream)} …")
        memory = await _memory(client, stream)
    console.print(_table(files, memory))
    faults = files.faults + memory.faults
    for fault in faults:
        console.print(f"  {fault}")
    if faults:
        console.print("FAILED: what arrived is not what was sent")
        return ExitCode.MISMATCH
    copied = files.sender["copied_bytes"] + memory.sender["copied_bytes"]
    console.print(
        f"OK: {files.receiver['files']} files identical, {memory.receiver['messages']} messages verified, "
        f"{amount(copied)} of {amount(files.nbytes + memory.nbytes)} copied by the sender"
    )
    return ExitCode.OK


def _tell_lanes(console: Console, told: dict[str, Any]) -> None:
    lanes = str(told.get("lanes", "")).split(",")
    console.print(f"lanes: {', '.join(lanes)}")
    for lane in ("vmsplice", "file"):
        if reason := told.get(f"no_{lane}"):
            console.print(f"  {lane} does not work there, bytes are copied instead: {reason}")


# -- files ------------------------------------------------------------------------------------------


async def _files(client: Client, path: str, place: Path) -> Part:
    """Fetch the tree, and only then have both ends hash it, so that the figures are the transfer's."""
    measured = _Measured(client)
    async with measured:
        tree = await client.fetch_tree(path, place)
    faults = [explain(error)[0] for _, error in tree.failures]
    faults += await compare(client, path, place)
    receiver = {**measured.receiver, "files": tree.files}
    return Part(tree.nbytes, measured.seconds, measured.sender, receiver, faults)


async def compare(client: Client, path: str, place: Path) -> list[str]:
    """Compare the server's tree with a local one, file by file, by SHA-256; what differs, a line each."""
    faults: list[str] = []
    theirs = {entry.path async for entry in client.list(path, recursive=True) if entry.type == "file"}
    limiter = anyio.CapacityLimiter(_HASHED_AT_ONCE)

    async def compare_one(name: str) -> None:
        async with limiter:
            try:
                ours = await anyio.to_thread.run_sync(_digest, place / local_path(name))
                if ours != await client.digest(f"{path.rstrip('/')}/{name}"):
                    faults.append(f"{name} differs")
            except (TransferError, OSError) as error:
                faults.append(f"{name} was not compared: {explain(error)[0]}")

    async with anyio.create_task_group() as tasks:
        for name in sorted(theirs):
            tasks.start_soon(compare_one, name)
    ours = await anyio.to_thread.run_sync(_names, place)
    return faults + [f"{name} is not on the server" for name in sorted(ours - theirs)]


def _names(top: Path) -> set[str]:
    return {escape(bytes(path.relative_to(top))) for path in top.rglob("*") if path.is_file()}


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return "missing"


# -- memory -----------------------------------------------------------------------------------------


async def _memory(client: Client, nbytes: int) -> Part:
    consumer = Consumer()
    measured = _Measured(client)
    async with measured:
        async with request(client.connection, RING, "/", nbytes=nbytes) as stream:
            await consumer.receive(stream, nbytes)
        measured.work = consumer.work
    faults = list(consumer.faults)
    if measured.sender["pool_out"] >= MESSAGE:  # others may hold pages for a moment: a health check
        faults.append(f"{amount(measured.sender['pool_out'])} of the ring are out after its last message")
    receiver = {**measured.receiver, "messages": consumer.messages}
    return Part(consumer.nbytes, measured.seconds, measured.sender, receiver, faults)


# -- the table --------------------------------------------------------------------------------------


def _table(files: Part, memory: Part) -> Table:
    """Both parts side by side. CPU is what moving took; the demo's own work on messages is shown apart."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    for heading in ("files", "memory"):
        table.add_column(heading, justify="right")
    rows: list[tuple[str, Callable[[Part], str]]] = [
        ("moved", lambda part: amount(part.nbytes)),
        ("rate", lambda part: rate(part.nbytes, part.seconds)),
        ("sender, CPU s/GiB", lambda part: _cpu(part.sender, part.nbytes)),
        ("  filling the buffers", lambda part: _work(part.sender, part.nbytes)),
        ("receiver, CPU s/GiB", lambda part: _cpu(part.receiver, part.nbytes)),
        ("  checking every message", lambda part: _work(part.receiver, part.nbytes)),
        ("by reference (vmsplice)", lambda part: amount(part.sender["reference_bytes"])),
        ("from the page cache (file)", lambda part: amount(part.sender["file_bytes"])),
        ("copied by the sender", lambda part: amount(part.sender["copied_bytes"])),
        ("buffers recycled", lambda part: f"{part.sender['pool_recycled']}"),
        ("peak pool use", lambda part: amount(part.sender["pool_peak"])),
        ("pool size", lambda part: amount(part.sender["pool_size"])),
    ]
    for label, cell in rows:
        table.add_row(label, cell(files), cell(memory))
    return table


def _cpu(numbers: dict[str, Any], nbytes: int) -> str:
    return _per_gib(numbers["cpu_seconds"] - numbers["work_seconds"], nbytes)


def _work(numbers: dict[str, Any], nbytes: int) -> str:
    return _per_gib(numbers["work_seconds"], nbytes)


def _per_gib(seconds: float, nbytes: int) -> str:
    return f"{seconds * (1 << 30) / nbytes:.2f}" if nbytes and seconds else "-"
