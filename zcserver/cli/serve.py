"""``zcserver serve``: directories, until a signal ends it."""

import contextlib
import errno
import ipaddress
import json
import logging
import resource
import signal
import socket
import sys
from typing import Any, Final
from urllib.parse import quote

import anyio

import zcserver
from zcserver.context import MIB
from zcserver.errors import ConnectionLostError, MisuseError
from zcserver.server import AccessLog, FileServer, Root
from zcserver.server.cgroup import affordable

from .exits import CommandError, ExitCode, explain, printable
from .loop import Interruption
from .settings import ServeSettings, url_host

_RECEIVE_MEMORY: Final = 256 * MIB


async def serve_directory(settings: ServeSettings) -> ExitCode:
    """Serve until SIGINT or SIGTERM, then finish what runs. A second signal ends it at once."""
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    async with contextlib.AsyncExitStack() as stack:
        files = _open(settings, stack)
        context = stack.enter_context(
            zcserver.Context(
                pool_size=settings.pool_size,
                receive_memory=affordable(_RECEIVE_MEMORY),
                lanes=settings.lanes,
            )
        )
        interruption = stack.enter_context(Interruption())
        try:
            server = await stack.enter_async_context(
                zcserver.serve(files.handle, binds=settings.binds, paths=settings.unix, context=context)
            )
        except ConnectionLostError as error:
            raise cannot_listen(error) from error
        _announce(settings, server.ports, context)
        begun = _cpu_seconds()
        with interruption.cancels():
            await anyio.sleep_forever()
        await _finish(files, server, interruption, settings.grace)
        if settings.summary:
            print(json.dumps(_summary(files, context, _cpu_seconds() - begun)), flush=True)
    return ExitCode.INTERRUPTED if interruption.signal is signal.SIGINT else ExitCode.OK


def _open(settings: ServeSettings, stack: contextlib.AsyncExitStack) -> FileServer:
    """The directories, the access log and what serves them; ``stack`` closes them."""
    roots = [
        stack.enter_context(Root(directory, name=name, hidden=settings.hidden, links=settings.links))
        for name, directory in settings.roots
    ]
    log = None
    if settings.access_log:
        log = AccessLog(settings.access_log, settings.log_format)
        stack.callback(log.close)
    try:
        files = FileServer(
            *roots,
            writable=settings.writable,
            rate=settings.limit_rate,
            on_request=log.add if log is not None else lambda request: None,
        )
    except BlockingIOError as error:
        line = f"another server writes to {printable(str(error.filename))}: stop it, or leave out --writable"
        raise CommandError(line, ExitCode.FAILED) from error
    except OSError as error:
        line, code = explain(error)
        raise CommandError(f"cannot write there: {line}, or leave out --writable", code) from error
    except MisuseError as error:
        raise CommandError(printable(str(error)), ExitCode.USAGE) from error
    stack.callback(files.close)
    return files


async def _finish(
    files: FileServer, server: zcserver.serve, interruption: Interruption, grace: float
) -> None:
    """Let running requests end; whoever is still at it after ``grace`` seconds loses the connection."""
    if files.active:
        print(f"finishing {files.active} running requests (Ctrl-C ends them)", file=sys.stderr, flush=True)
    with interruption.cancels():
        await server.aclose(grace)


def _announce(settings: ServeSettings, ports: list[int], context: zcserver.Context) -> None:
    what = printable(", ".join(f"{name}={path}" if name else path for name, path in settings.roots))
    places = []
    for (host, _), port in zip(settings.binds, ports, strict=True):
        places.append(f"zc://{url_host(host, socket.gethostname())}:{port}/")
        if not _is_loopback(host):
            may = "read and change" if settings.writable else "read"
            print(
                f"anyone who reaches port {port} of this machine can {may} {what}: "
                "there is no authentication yet",
                file=sys.stderr,
            )
    places += [f"zc+unix://{quote(path, safe='')}/" for path in settings.unix]
    used = {"file": context.splices_files, "vmsplice": context.by_reference, "copy": True}
    lanes = ", ".join(lane for lane, works in used.items() if works)
    how = f"(lanes: {lanes}{'; writable' if settings.writable else ''})"
    print(f"serving {what} at {places[0]} {how}", flush=True)
    for place in places[1:]:
        print(f"and at {place}", flush=True)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def cannot_listen(error: ConnectionLostError, options: str = "--port or --bind") -> CommandError:
    """What the user is told when an address cannot be listened on; ``options`` would choose another."""
    match error.__cause__:
        case OSError(errno=errno.EADDRINUSE):
            advice = f" (choose another with {options})"
        case PermissionError():
            advice = " (choose a --port over 1023, or check the permissions)"
        case _:
            advice = ""
    return CommandError(printable(f"{error}{advice}"), ExitCode.CANNOT_LISTEN)


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
