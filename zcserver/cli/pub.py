"""``zcserver pub``: what comes on standard input, or a file, to a topic."""

import contextlib
import os
import stat
from dataclasses import dataclass

from zcserver.client import Client, client_context, parse_url
from zcserver.errors import printable

from .exits import CommandError, ExitCode
from .loop import Interruption
from .pieces import Pieces
from .standard import standard_input
from .ticker import Ticker

_STDIN = "-"


@dataclass(frozen=True, slots=True)
class PubSettings:
    """``form``: see :mod:`.pieces`. ``name``: of the publisher, empty for a unique one."""

    form: int
    key: str
    content_type: str
    name: str
    quiet: bool
    lanes: tuple[str, ...] | None


async def publish(url: str, source: str, settings: PubSettings) -> ExitCode:
    """Publish until the input ends, and wait until the server has it all. Raises the client's errors."""
    address = parse_url(url)
    ticker = Ticker("published", settings.quiet)
    with contextlib.ExitStack() as stack:
        fd = _opened(source, stack)
        interruption = stack.enter_context(Interruption())
        context = stack.enter_context(client_context(lanes=settings.lanes))
        with interruption.cancels():
            async with (
                Client(address, context=context) as client,
                client.publisher(address.path, name=settings.name, on_retry=ticker.retrying) as publisher,
            ):
                pieces = Pieces(fd, settings.form, publisher.acquire, publisher.max_message)
                while (piece := await pieces.next()) is not None:
                    size = len(piece)
                    await publisher.publish(piece, key=settings.key, content_type=settings.content_type)
                    ticker.add(size)
        interruption.raise_if_caught()
    ticker.finish()
    return ExitCode.OK


def _opened(source: str, stack: contextlib.ExitStack) -> int:
    """The descriptor to read from; ``stack`` closes it."""
    if source == _STDIN:
        fd = standard_input()
    else:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        raise CommandError(f"{printable(source)} is a directory: name a file", ExitCode.NOT_A_FILE)
    return fd
