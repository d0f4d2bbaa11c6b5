"""The servers that `files.py` compares: how each is started, and what it needs to run at all."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from benchmarks import processes
from benchmarks.side import HOST

ROOT = Path(__file__).parent.parent
_START_SECONDS = 15.0
_STOP_SECONDS = 5.0


class RunError(Exception):
    """A server or a receiver did not do its work; what it wrote to standard error says why."""


class Server(NamedTuple):
    """`command(folder, port, place)`: its command line; `place` is a directory of its own.
    `version()`: what is installed; raises `RunError` if nothing is."""

    protocol: str
    command: Callable[[Path, int, Path], list[str]]
    version: Callable[[], str]


# -- the contenders ----------------------------------------------------------------------------------------


def _zcserver(folder: Path, port: int, place: Path) -> list[str]:
    return [sys.executable, "-m", "zcserver", "serve", str(folder), "--bind", f"{HOST}:{port}"]


def _http_server(folder: Path, port: int, place: Path) -> list[str]:
    # Its default is HTTP/1.0, which closes the connection after each file.
    options = ["--bind", HOST, "--protocol", "HTTP/1.1", "--directory", str(folder)]
    return [sys.executable, "-m", "http.server", *options, str(port)]


def _aiohttp(folder: Path, port: int, place: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.aiohttp_files", str(folder), str(port)]


def _nginx(folder: Path, port: int, place: Path) -> list[str]:
    user = "user root;" if os.geteuid() == 0 else ""  # else its worker may not read the directory
    temporary = "\n".join(
        f"    {kind}_temp_path {place}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = f"""{user}
worker_processes 1;
daemon off;
pid {place}/nginx.pid;
error_log stderr;
events {{ worker_connections 64; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush off;
    keepalive_timeout 60;
    keepalive_requests 1000000;
{temporary}
    server {{ listen {HOST}:{port}; root {folder}; }}
}}
"""
    path = place / "nginx.conf"
    path.write_text(configuration)
    return [_nginx_binary(), "-e", "stderr", "-p", str(place), "-c", str(path)]


def _nginx_binary() -> str:
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        raise RunError("no nginx here: apt-get install nginx-light")
    return binary


def _nginx_version() -> str:
    done = subprocess.run([_nginx_binary(), "-v"], capture_output=True, text=True, check=True, timeout=10)
    return done.stderr.strip().rpartition("/")[2]


def _aiohttp_version() -> str:
    if importlib.util.find_spec("aiohttp") is None:
        raise RunError("no aiohttp here: pip install aiohttp (or zcserver's extra 'bench')")
    return metadata.version("aiohttp")


SERVERS = {
    "zcserver": Server("zcp", _zcserver, lambda: metadata.version("zcserver")),
    "nginx": Server("http", _nginx, _nginx_version),
    "aiohttp": Server("http", _aiohttp, _aiohttp_version),
    "http.server": Server("http", _http_server, lambda: sys.version.split()[0]),
}


# -- running one -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(name: str, folder: Path, place: Path, core: int, congestion: str) -> Iterator[tuple[int, int]]:
    """Process id and port of the server `name`, which serves `folder` until the block is left.

    `place` is an empty directory for its own files. Its listener has the congestion control, so that its
    connections have it from their first packet on. Raises `RunError` if it does not come up.
    """
    port = _free_port()
    command = SERVERS[name].command(folder, port, place)
    errors = place / "stderr"
    with open(errors, "wb") as stderr, _on_core(core):
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
        )
    try:
        _wait_for(process, port, errors)
        with contextlib.suppress(PermissionError):  # the results show what was in force
            processes.tune(processes.family(process.pid), congestion)
        yield process.pid, port
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(ProcessLookupError):  # workers that outlived it
            os.killpg(process.pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def _on_core(core: int) -> Iterator[None]:
    """What is started in the block stays on this core (−1: any)."""
    before = os.sched_getaffinity(0)
    if core >= 0:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _wait_for(process: subprocess.Popen[bytes], port: int, errors: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.02)
    raise RunError(f"the server did not come up: {errors.read_text(errors='replace').strip()[-500:]}")
