"""``zcserver demo``: a server and a client in two processes of this machine, or one of them alone."""

import subprocess
import sys
from pathlib import Path
from typing import Final

from rich.console import Console

from zcserver.connection import DEFAULT_PORT

from .demo_client import fetch_demo
from .demo_server import serve_demo, workplace
from .exits import CommandError, ExitCode
from .loop import Interruption, run
from .options import lanes_of
from .settings import parse_bind

_PATIENCE: Final = 60.0  # seconds for the server to end


def demonstrate(directory: Path, size: int, stream: int, ring: int, lanes: str, subscribers: int) -> ExitCode:
    """Both halves, each in a process of its own; sizes are bytes. MISMATCH if a byte differs."""
    with workplace(directory, 2 * size + (64 << 20)) as place:
        served = ["--serve", "127.0.0.1:0", "--dir", str(place), "--size", str(size), "--ring", str(ring)]
        command = [sys.executable, "-m", "zcserver", "demo", *served, "--lanes", lanes]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                code = fetch(_url_of(server), place, stream, subscribers)
                server.terminate()
                if server.wait(_PATIENCE):
                    raise CommandError("the server of the demo failed; its error is above", ExitCode.FAILED)
            finally:
                server.kill()
    return code


def _url_of(server: "subprocess.Popen[str]") -> str:
    """Pass on what the server says until it has named its URL."""
    assert server.stdout is not None
    for line in server.stdout:
        if " at zc://" in line:
            return line.split(" at ")[-1].split()[0]
        print(line, end="", flush=True)
    raise CommandError("the server of the demo ended early; its error is above", ExitCode.FAILED)


def serve(where: str, directory: Path, size: int, ring: int, lanes: str) -> ExitCode:
    """The serving half, until a signal ends it."""
    try:
        host, port = parse_bind(where)
    except ValueError as error:
        raise CommandError(f"--serve: {error}", ExitCode.USAGE) from None
    if host.startswith("unix:"):
        raise CommandError("--serve: the demo listens on TCP only", ExitCode.USAGE)
    bind = host, DEFAULT_PORT if port is None else port
    return run(serve_demo, bind, directory, size, ring, lanes_of(lanes))


def fetch(url: str, directory: Path, stream: int, subscribers: int) -> ExitCode:
    """The fetching half."""
    console = Console(markup=False, highlight=False, soft_wrap=True)
    with workplace(directory, 0) as place:
        return run(_fetch, url, stream, place, console, subscribers)


async def _fetch(url: str, stream: int, place: Path, console: Console, subscribers: int) -> ExitCode:
    """As :func:`fetch_demo`, until a signal ends it."""
    code = ExitCode.OK
    with Interruption() as interruption:
        with interruption.cancels():
            code = await fetch_demo(url, stream, place, console, subscribers)
        interruption.raise_if_caught()
    return code
