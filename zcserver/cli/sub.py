"""``zcserver sub``: the messages of a topic to standard output, or each to a file of its own."""

import contextlib
import errno
import mimetypes
import os
import secrets
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import anyio
import anyio.to_thread

from zcserver.client import Client, Subscription, TopicMessage, client_context, parse_url
from zcserver.client.descriptors import ready, writing
from zcserver.client.partial import DATA
from zcserver.errors import printable

from .exits import ExitCode
from .loop import Interruption
from .standard import standard_output
from .ticker import Ticker

Write = Callable[[TopicMessage], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class SubSettings:
    """``count``: end after so many messages (0: never). ``name``: commit what is written under this name."""

    output: str
    start: str | int
    policy: str
    name: str
    count: int
    quiet: bool


async def subscribe(url: str, settings: SubSettings) -> ExitCode:
    """Write what comes until ``count`` or a signal. Raises the client's errors, and OSError."""
    address = parse_url(url)
    ticker = Ticker("received", settings.quiet)
    destination = _to_stdout() if settings.output == "-" else _to_directory(Path(settings.output))
    with destination as write, Interruption() as interruption, client_context() as context:
        with interruption.cancels():
            async with (
                Client(address, context=context) as client,
                client.subscribe(
                    address.path,
                    start=settings.start,
                    policy=settings.policy,
                    name=settings.name,
                    on_retry=ticker.retrying,
                ) as messages,
            ):
                try:
                    await _write_all(messages, write, ticker, settings)
                finally:  # no message may follow what is missing
                    ticker.miss(messages.missing, messages.missed)
        ticker.finish()
        interruption.raise_if_caught()
    return ExitCode.OK


async def _write_all(messages: Subscription, write: Write, ticker: Ticker, settings: SubSettings) -> None:
    async with anyio.create_task_group() as tasks:
        if settings.output == "-":
            tasks.start_soon(_until_unread, standard_output())
        async for message in messages:
            ticker.miss(message.missed, messages.missed)
            await write(message)
            ticker.add(len(message))
            if settings.name:
                await message.commit()
            if ticker.messages == settings.count:
                break
        tasks.cancel_scope.cancel()


async def _until_unread(fd: int) -> None:
    """Raise BrokenPipeError once a pipe or socket has no reader any more: it shows without a message, too."""
    if await ready(fd, 0):  # errors and hang-ups are waited for whatever else is
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@contextlib.contextmanager
def _to_stdout() -> Iterator[Write]:
    """The payloads, one after the other. A terminal gets no control characters."""
    with writing(standard_output()) as write_all:
        shown = _for_terminals if sys.stdout.isatty() else _as_it_is

        async def write(message: TopicMessage) -> None:
            await write_all([shown(message.data)])

        yield write


def _as_it_is(data: memoryview) -> memoryview:
    return data


def _for_terminals(data: memoryview) -> memoryview:
    lines = str(data, "utf-8", "replace").removesuffix("\n").split("\n")
    return memoryview("".join(f"{printable(line)}\n" for line in lines).encode())


@contextlib.contextmanager
def _to_directory(directory: Path) -> Iterator[Write]:
    """Files named EPOCH-SEQUENCE, so that their order is that of the messages; whole or none.

    The same message may come twice; numbers alone come again with a server that was restarted.
    """
    directory.mkdir(parents=True, exist_ok=True)

    def save(message: TopicMessage) -> None:
        kind, _, _ = message.content_type.partition(";")
        suffix = mimetypes.guess_extension(kind.strip()) or ""
        path = directory / f"{quote(message.epoch, safe='')}-{message.sequence:012}{suffix}"
        # Of a name that nobody can have put something under: epoch and number are told to every subscriber.
        part = directory / f".{secrets.token_hex(16)}{DATA}"
        try:
            with part.open("xb") as file:
                file.write(message.data)
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise

    async def write(message: TopicMessage) -> None:
        await anyio.to_thread.run_sync(save, message)

    yield write
