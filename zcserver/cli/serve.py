"""``zcserver serve``: directories and topics, until a signal ends it."""

import contextlib
import errno
import ipaddress
import json
import logging
import os
import resource
import socket
import sys
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

import anyio

import zcserver
from zcserver.context import MIB
from zcserver.errors import ConnectionLostError, MisuseError, printable
from zcserver.listeners import shown
from zcserver.server import AccessLog, FileServer, Request, Root
from zcserver.server.cgroup import affordable

from .exits import CommandError, ExitCode, explain
from .loop import Interruption
from .serving_topics import Offer
from .settings import ServeSettings, url_host
from .standard import say

OnRequest = Callable[[Request], object]
_RECEIVE_MEMORY: Final = 256 * MIB


def _use_all_descriptors() -> None:
    """The soft limit is low for the sake of programs that call select(2), which this one does not."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a sandbox may not have it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def serve_directory(settings: ServeSettings) -> ExitCode:
    """Serve until a signal, then finish what runs. A second signal ends it at once."""
    _use_all_descriptors()
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    async with contextlib.AsyncExitStack() as stack:
        on_request = _access_log(settings, stack)
        files = _open(settings, stack, on_request) if settings.roots else None
        context = stack.enter_context(
            zcserver.Context(
                pool_size=settings.pool_size,
                receive_memory=affordable(_RECEIVE_MEMORY),
                lanes=settings.lanes,
            )
        )
        interruption = stack.enter_context(Interruption())
        offer = Offer(settings, files, context, on_request)
        try:
            server = await stack.enter_async_context(
                zcserver.serve(offer.handle, binds=settings.binds, paths=settings.unix, context=context)
            )
        except ConnectionLostError as error:
            over_unix = any(f" {shown(path)}: " in str(error) for path in settings.unix)
            raise cannot_listen(error, unix=over_unix) from error
        _announce(settings, server.ports, context)
        begun = _cpu_seconds()
        with interruption.cancels():
            if settings.stdin:
                await offer.publish_standard_input()
            await anyio.sleep_forever()
        await _finish(offer, server, interruption, settings.grace)
        if settings.summary:
            print(json.dumps(_summary(offer, context, _cpu_seconds() - begun)), flush=True)
    return interruption.code_of_server


def _access_log(settings: ServeSettings, stack: contextlib.AsyncExitStack) -> OnRequest:
    if not settings.access_log:
        return lambda request: None
    try:
        log = AccessLog(settings.access_log, settings.log_format)
    except OSError as error:
        line = (
            f"cannot write to {settings.access_log}: {error.strerror} (name another file with --access-log)"
        )
        raise CommandError(printable(line), explain(error)[1]) from error
    stack.callback(log.close)
    return log.add


def _open(settings: ServeSettings, stack: contextlib.AsyncExitStack, on_request: OnRequest) -> FileServer:
    """The directories and what serves them; ``stack`` closes them."""
    roots = [
        stack.enter_context(Root(directory, name=name, hidden=settings.hidden, links=settings.links))
        for name, directory in settings.roots
    ]
    try:
        files = FileServer(
            *roots,
            writable=settings.writable,
            rate=settings.limit_rate,
            on_request=on_request,
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


async def _finish(offer: Offer, server: zcserver.serve, interruption: Interruption, grace: float) -> None:
    """Let running requests end; whoever is still at it after ``grace`` seconds loses the connection."""
    offer.close()
    if offer.active:
        say(f"finishing {offer.active} running requests (Ctrl-C ends them)")
    with interruption.cancels():
        await server.aclose(grace)


def _announce(settings: ServeSettings, ports: list[int], context: zcserver.Context) -> None:
    offered = [f"{name}={path}" if name else path for name, path in settings.roots]
    if settings.topics:
        offered.append("topics")
    if settings.stdin:
        offered.append(f"topic {settings.stdin}")
    what = printable(", ".join(offered))
    for _, directory in settings.roots:
        if not os.access(directory, os.R_OK):
            say(printable(f"{directory} cannot be listed: check its permissions, unless that is meant"))
    places = []
    for (host, _), port in zip(settings.binds, ports, strict=True):
        places.append(f"zc://{url_host(host, socket.gethostname())}:{port}/")
        if not _is_loopback(host):
            may = "read and change" if settings.writable or settings.topics else "read"
            say(
                f"anyone who reaches port {port} of this machine can {may} {what}: "
                "there is no authentication yet"
            )
    places += [f"zc+unix://{quote(path, safe='')}/" for path in settings.unix]
    used = {"file": context.splices_files, "vmsplice": context.by_reference, "copy": True}
    lanes = ", ".join(lane for lane, works in used.items() if works)
    how = f"(lanes: {lanes}{'; writable' if settings.writable else ''})"
    if sys.__stdout__ is not None:  # who closes it knows where to find the server
        print(f"serving {what} at {places[0]} {how}", *places[1:], sep="\nand at ", flush=True)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def cannot_listen(
    error: ConnectionLostError, options: str = "--port or --bind", unix: bool = False
) -> CommandError:
    """What the user is told when an address cannot be listened on; ``options`` would choose another."""
    match error.__cause__:
        case OSError(errno=errno.EADDRINUSE) if unix:
            advice = " (something is there: choose another path with --bind)"
        case PermissionError() if unix:
            advice = " (check the permissions, or choose another path with --bind)"
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


def _summary(offer: Offer, context: zcserver.Context, cpu_seconds: float) -> dict[str, Any]:
    pool = context.pool.stats()
    return {
        **offer.totals.as_dict(),
        "cpu_seconds": round(cpu_seconds, 3),
        "pool_size": pool.size,
        "pool_peak": pool.peak,
        "pool_recycled": pool.recycled,
        "pool_free": pool.free,
    }
