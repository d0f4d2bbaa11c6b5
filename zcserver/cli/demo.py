"""``zcserver demo``: serve and fetch files, then stream memory, between processes; check everything."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from zcserver.client import Client, parse_url
from zcserver.kernel.probe import probe

from .exits import CommandError, ExitCode, explain
from .loop import run
from .options import amount, lanes_of, rate
from .ring import MESSAGE, Account

SMALL_FILES: Final = 200
_PATIENCE: Final = 600.0  # seconds for a child to do its part
_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """Sizes in bytes; ``directory`` gets a temporary one inside."""

    size: int
    stream: int
    ring: int
    directory: str
    lanes: str


@dataclass(frozen=True, slots=True)
class Part:
    """The numbers of one half, and what was wrong (nothing, one hopes)."""

    nbytes: int
    seconds: float
    sender: dict[str, Any]
    receiver: dict[str, Any]
    faults: list[str]


def demonstrate(settings: DemoSettings) -> ExitCode:
    """Both halves, a table, a verdict. MISMATCH if a byte differs."""
    console = Console(markup=False, highlight=False, soft_wrap=True)
    _tell_lanes(console, settings.lanes)
    with _workplace(settings) as place:
        console.print(
            f"files: writing {amount(settings.size)} and {SMALL_FILES} small ones to {place / 'served'}"
        )
        make_files(place / "served", settings.size)
        console.print("files: serving and fetching them …")
        files = _files(settings, place)
    console.print(f"memory: streaming {amount(settings.stream)} through a ring of {amount(settings.ring)} …")
    memory = _memory(settings)
    console.print(_table(files, memory))
    faults = files.faults + memory.faults
    for fault in faults:
        console.print(f"  {fault}")
    if faults:
        console.print("FAILED: what arrived is not what was sent")
        return ExitCode.MISMATCH
    console.print(
        f"OK: {files.receiver['files']} files identical, {memory.receiver['messages']} messages verified, "
        f"{amount(_copied(files, memory))} of {amount(files.nbytes + memory.nbytes)} copied by the senders"
    )
    return ExitCode.OK


def _tell_lanes(console: Console, chosen: str) -> None:
    capabilities = probe()
    lanes = lanes_of(chosen) or capabilities.lanes
    console.print(f"lanes: {', '.join(lanes)}")
    for lane in ("vmsplice", "file"):
        if lane not in capabilities.lanes:
            console.print(
                f"  {lane} does not work here, bytes are copied instead: {capabilities.reasons[lane]}"
            )


# -- files ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _workplace(settings: DemoSettings) -> Iterator[Path]:
    parent = Path(settings.directory)
    existed = parent.exists()
    parent.mkdir(parents=True, exist_ok=True)
    wanted = 2 * settings.size + (64 << 20)
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
    directory.mkdir()
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


def _files(settings: DemoSettings, place: Path) -> Part:
    """Serve ``served`` from another process, fetch it to ``fetched`` in this one, compare."""
    server = _start("serve", place / "served", "--port", "0", "--summary", *_lanes_option(settings))
    try:
        url = _first_line(server).split(" at ")[-1].split()[0]
        receiver = run(_fetch, url, place / "fetched")
        summary = _finish(server, signal.SIGTERM)
    finally:
        _stop(server)
    faults = compare(place / "served", place / "fetched")
    return Part(receiver["bytes"], receiver["seconds"], summary, receiver, receiver["faults"] + faults)


async def _fetch(url: str, target: Path) -> dict[str, Any]:
    """Fetch the tree. Without the server's digests: the demo compares the files themselves afterwards."""
    account = Account()
    address = parse_url(url)
    async with Client(address) as client:
        tree = await client.fetch_tree(address.path, target)
    faults = [explain(error)[0] for _, error in tree.failures]
    return {**account.numbers(), "files": tree.files, "bytes": tree.nbytes, "faults": faults}


def compare(served: Path, fetched: Path) -> list[str]:
    """Compare two trees file by file, by SHA-256; what differs, a line each."""
    names = sorted(_names(served) | _names(fetched))
    with ThreadPoolExecutor(2) as pool:
        ours = pool.map(_digest, (served / name for name in names))
        theirs = pool.map(_digest, (fetched / name for name in names))
        return [f"{name} differs" for name, a, b in zip(names, ours, theirs, strict=True) if a != b]


def _names(top: Path) -> set[Path]:
    return {path.relative_to(top) for path in top.rglob("*") if path.is_file()}


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return "missing"


# -- memory -----------------------------------------------------------------------------------------


def _memory(settings: DemoSettings) -> Part:
    """Stream through the ring between two processes, each on a processor of its own if there are two."""
    cores = sorted(os.sched_getaffinity(0))
    receiver = _start_role("receive")
    try:
        _pin(receiver, cores[-1:])
        port = _first_line(receiver)
        sizes = (str(settings.stream), str(settings.ring))
        sender = _start_role("send", port, *sizes, *(lanes_of(settings.lanes) or ()))
        try:
            _pin(sender, cores[:1] if len(cores) > 1 else [])
            sent = _finish(sender)
            received = _finish(receiver)
        finally:
            _stop(sender)
    finally:
        _stop(receiver)
    return Part(received["bytes"], sent["seconds"], sent, received, _ring_faults(settings, sent, received))


def _ring_faults(settings: DemoSettings, sent: dict[str, Any], received: dict[str, Any]) -> list[str]:
    faults: list[str] = list(received["faults"])
    due = max(1, settings.stream // MESSAGE)
    if received["wrong"]:
        faults.append(f"{received['wrong']} messages are wrong")
    if received["messages"] != due:
        faults.append(f"{received['messages']} messages arrived, {due} were sent")
    if not sent["pool_home"]:
        faults.append("pool memory is still out after the last acknowledgement")
    return faults


def _pin(process: "subprocess.Popen[str]", cores: list[int]) -> None:
    if cores and len(os.sched_getaffinity(0)) > 1:
        with contextlib.suppress(OSError):  # forbidden here, or it has ended: its result will tell
            os.sched_setaffinity(process.pid, cores)


# -- processes --------------------------------------------------------------------------------------


def _start(*arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "zcserver.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _start_role(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "zcserver.cli.ring", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise CommandError("a process of the demo ended early; its error is above", ExitCode.FAILED)
    return line


def _finish(process: "subprocess.Popen[str]", number: signal.Signals | None = None) -> dict[str, Any]:
    """The JSON line that the process prints at its end."""
    if number is not None:
        process.send_signal(number)
    try:
        output, _ = process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        raise CommandError(
            f"a process of the demo made no end within {_PATIENCE:.0f} s", ExitCode.FAILED
        ) from None
    if process.returncode or not output:
        raise CommandError("a process of the demo failed; its error is above", ExitCode.FAILED)
    numbers: dict[str, Any] = json.loads(output)
    return numbers


def _stop(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()


def _lanes_option(settings: DemoSettings) -> list[str]:
    return ["--lanes", settings.lanes] if settings.lanes else []


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
    return _per_gib(numbers["cpu_seconds"] - numbers.get("work_seconds", 0.0), nbytes)


def _work(numbers: dict[str, Any], nbytes: int) -> str:
    return _per_gib(numbers.get("work_seconds", 0.0), nbytes)


def _per_gib(seconds: float, nbytes: int) -> str:
    return f"{seconds * (1 << 30) / nbytes:.2f}" if nbytes and seconds else "-"


def _copied(files: Part, memory: Part) -> int:
    return int(files.sender["copied_bytes"] + memory.sender["copied_bytes"])
