"""The fetching half of ``zcserver demo``: files and a stream, every byte checked, and the numbers."""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import anyio
import anyio.to_thread
from rich.console import Console
from rich.table import Table

from zcserver.client import Address, Client, Subscription, local_path, parse_url
from zcserver.client.request import ask, request
from zcserver.connection import Connection
from zcserver.errors import StreamResetError, TransferError, printable
from zcserver.file_protocol import escape
from zcserver.topic_protocol import Policy

from .demo_server import NUMBERS, RING
from .exits import CommandError, ExitCode, explain
from .options import amount, rate
from .ring import FRAME, MESSAGE, Consumer, Producer, cpu_seconds

_HASHED_AT_ONCE: Final = 2
_COUNTED: Final = (
    "cpu_seconds",
    "work_seconds",
    "reference_bytes",
    "file_bytes",
    "copied_bytes",
    "pool_recycled",
    "pool_out",
)
_STATES: Final = ("pool_size", "pool_peak")


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


async def fetch_demo(url: str, stream: int, place: Path, console: Console, subscribers: int = 0) -> ExitCode:
    """Fetch the files to ``place``, then ``stream`` bytes; print a table and a verdict.

    With ``subscribers``, publish as much for all of them together. MISMATCH if a byte differs.
    """
    address = parse_url(url)
    async with Client(address) as client:
        _tell_lanes(console, await numbers(client.connection))
        console.print("files: fetching them …")
        parts = {"files": await _files(client, address.path, place)}
        console.print(f"memory: streaming {amount(stream)} …")
        parts["memory"] = await _memory(client, stream)
        if subscribers:
            console.print(f"topic: publishing {amount(stream // subscribers)} to {subscribers} subscribers …")
            parts[f"1 to {subscribers}"] = await _topic(client, address, stream // subscribers, subscribers)
    console.print(_table(parts))
    faults = [fault for part in parts.values() for fault in part.faults]
    for fault in faults:
        console.print(printable(f"  {fault}"), markup=False)
    if faults:
        console.print("FAILED: what arrived is not what was sent")
        return ExitCode.MISMATCH
    copied = sum(part.sender["copied_bytes"] for part in parts.values())
    nbytes = sum(part.nbytes for part in parts.values())
    messages = sum(part.receiver.get("messages", 0) for part in parts.values())
    console.print(
        f"OK: {parts['files'].receiver['files']} files identical, {messages} messages verified, "
        f"{amount(copied)} of {amount(nbytes)} copied by the sender"
    )
    return ExitCode.OK


def _tell_lanes(console: Console, told: dict[str, Any]) -> None:
    lanes = str(told.get("lanes", "")).split(",")
    console.print(printable(f"lanes: {', '.join(lanes)}"), markup=False)
    for lane in ("vmsplice", "file"):
        if reason := told.get(f"no_{lane}"):
            line = f"  {lane} does not work there, bytes are copied instead: {reason}"
            console.print(printable(line), markup=False)


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
            await consumer.receive(stream)
        measured.work = consumer.work
    faults = consumer.faults(nbytes)
    if measured.sender["pool_out"] >= MESSAGE:  # others may hold pages for a moment: a health check
        faults.append(f"{amount(measured.sender['pool_out'])} of the ring are out after its last message")
    receiver = {**measured.receiver, "messages": consumer.messages}
    return Part(consumer.nbytes, measured.seconds, measured.sender, receiver, faults)


async def _topic(client: Client, address: Address, nbytes: int, subscribers: int) -> Part:
    """Publish to subscribers with a connection each, who have the publisher wait for them."""
    topic = f"/{uuid4().hex}"
    consumers = [Consumer(FRAME) for _ in range(subscribers)]
    producer = Producer(FRAME)
    measured = _Measured(client)
    faults: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        subscriptions = []
        for _ in consumers:
            one = await stack.enter_async_context(Client(address, context=client.connection.context))
            subscription = one.subscribe(topic, policy=str(Policy.BLOCK), retry_seconds=0)
            subscriptions.append(await stack.enter_async_context(subscription))

        async def subscribe(consumer: Consumer, subscription: Subscription) -> None:
            with _noting(faults, "a subscriber", tasks.cancel_scope):
                await consumer.subscribe(subscription, nbytes)

        async with measured:
            async with anyio.create_task_group() as tasks:
                for consumer, subscription in zip(consumers, subscriptions, strict=True):
                    tasks.start_soon(subscribe, consumer, subscription)
                with _noting(faults, "the publisher", tasks.cancel_scope):
                    async with client.publisher(topic, retry_seconds=0) as publisher:
                        await producer.publish(publisher, nbytes)
            measured.work = producer.work + sum(consumer.work for consumer in consumers)
    for number, consumer in enumerate(consumers, 1):
        faults += [f"subscriber {number}: {fault}" for fault in consumer.faults(nbytes)]
    receiver = {**measured.receiver, "messages": sum(consumer.messages for consumer in consumers)}
    delivered = sum(consumer.nbytes for consumer in consumers)
    return Part(delivered, measured.seconds, measured.sender, receiver, faults)


@contextlib.contextmanager
def _noting(faults: list[str], who: str, everybody: anyio.CancelScope) -> Iterator[None]:
    """Note a failure, and end what the others wait for."""
    try:
        yield
    except (TransferError, OSError) as error:
        faults.append(f"{who} failed: {explain(error)[0]}")
        everybody.cancel()


# -- the table --------------------------------------------------------------------------------------


def _table(parts: dict[str, Part]) -> Table:
    """The parts side by side. CPU is what moving took; the demo's own work on messages is shown apart.

    Of a topic, ``moved`` is what was delivered; the publisher is at the receivers' end.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    for heading in parts:
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
        table.add_row(label, *(cell(part) for part in parts.values()))
    return table


def _cpu(numbers: dict[str, Any], nbytes: int) -> str:
    return _per_gib(numbers["cpu_seconds"] - numbers["work_seconds"], nbytes)


def _work(numbers: dict[str, Any], nbytes: int) -> str:
    return _per_gib(numbers["work_seconds"], nbytes)


def _per_gib(seconds: float, nbytes: int) -> str:
    return f"{seconds * (1 << 30) / nbytes:.2f}" if nbytes and seconds else "-"
