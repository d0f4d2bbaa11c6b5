"""``zcserver serve``: a directory, read-only, until a signal ends it."""

import contextlib
import errno
import ipaddress
import json
import logging
import resource
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Any

import anyio

import zcserver
from zcserver.errors import ConnectionLostError
from zcserver.server import FileServer, Root

from .exits import CommandError, ExitCode, printable
from .loop import Interruption


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """``pool_size`` in bytes; ``grace``: seconds that running transfers get after a signal."""

    directory: str
    host: str
    port: int
    pool_size: int
    lanes: tuple[str, ...] | None
    grace: float
    summary: bool
    verbose: bool


async def serve_directory(settings: ServeSettings) -> ExitCode:
    """Serve until SIGINT or SIGTERM, then finish what runs. A second signal ends it at once."""
    logging.basicConfig(
        stream=sys.stderr, format="%(message)s", level=logging.INFO if settings.verbose else logging.WARNING
    )
    with (
        Root(settings.directory) as root,
        zcserver.Context(pool_size=settings.pool_size, lanes=settings.lanes) as context,
        Interruption() as interruption,
    ):
        files = FileServer(root)
        async with contextlib.AsyncExitStack() as stack:
            try:
                server = await stack.enter_async_context(
                    zcserver.serve(files.handle, settings.host, settings.port, context=context)
                )
            except (ConnectionLostError, socket.gaierror) as error:
                raise _cannot_listen(settings, error) from error
            _announce(settings, server.port, context)
            begun = _cpu_seconds()
            with interruption.cancels():
                await anyio.sleep_forever()
            await _finish(files, server, interruption, settings.grace)
            if settings.summary:
                print(json.dumps(_summary(files, context, _cpu_seconds() - begun)), flush=True)
    return ExitCode.INTERRUPTED if interruption.signal is signal.SIGINT else ExitCode.OK


async def _finish(
    files: FileServer, server: zcserver.serve, interruption: Interruption, grace: float
) -> None:
    """Let running requests end; whoever is still at it after ``grace`` seconds loses the connection."""
    if files.active:
        print(f"finishing {files.active} running requests (Ctrl-C ends them)", file=sys.stderr, flush=True)
    with interruption.cancels():
        await server.aclose(grace)


def _announce(settings: ServeSettings, port: int, context: zcserver.Context) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    lanes = [
        lane
        for lane, used in (
            ("file", context.splices_files),
            ("vmsplice", context.by_reference),
            ("copy", True),
        )
        if used
    ]
    if not _is_loopback(settings.host):
        print(
            f"anyone who reaches port {port} of this machine can read {printable(settings.directory)}: "
            "there is no authentication yet",
            file=sys.stderr,
        )
    url = f"zc://{host}:{port}/"
    print(f"serving {printable(settings.directory)} at {url} (lanes: {', '.join(lanes)})", flush=True)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def _cannot_listen(settings: ServeSettings, error: Exception) -> CommandError:
    place = f"{settings.host}:{settings.port}"
    cause = error if isinstance(error, socket.gaierror) else error.__cause__
    match cause:
        case OSError(errno=errno.EADDRINUSE):
            return CommandError(f"{place} is taken: choose another with --port", ExitCode.CANNOT_LISTEN)
        case PermissionError():
            return CommandError(
                f"{place} is not for this user: choose a --port over 1023", ExitCode.CANNOT_LISTEN
            )
        case OSError(strerror=str(words)):
            return CommandError(f"cannot listen on {place}: {words}", ExitCode.CANNOT_LISTEN)
        case _:
            return CommandError(printable(str(error)), ExitCode.CANNOT_LISTEN)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _summary(files: FileServer, context: zcserver.Context, cpu_seconds: float) -> dict[str, Any]:
    pool = context.pool.stats()
    return {
        **files.totals.as_dict(),
        "cpu_seconds": round(cpu_seconds, 3),
        "pool_size": pool.size,
        "pool_peak": pool.peak,
        "pool_recycled": pool.recycled,
        "pool_free": pool.free,
    }
