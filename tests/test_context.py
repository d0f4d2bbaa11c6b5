"""Contexts: settings that cannot work are refused where they are made, and threads are kept apart."""

import asyncio
import math

import anyio
import anyio.to_thread
import numpy
import pytest

import zcserver
from tests.raw_peer import deadline
from zcserver import transport

KIB = 1 << 10
MIB = 1 << 20


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"receive_memory": 1}, "receive_memory is 1; it must be at least 65536"),
        ({"stream_window": 32}, "stream_window is 32; it must be at least 33"),
        ({"stream_window": -1}, "stream_window is -1;"),
        ({"max_message": 1e6}, "max_message is 1000000.0: give a whole number of bytes"),
        ({"max_message": -1}, "max_message is -1; it must be at least 0"),
        (
            {"max_message": 2 * MIB, "receive_memory": MIB},
            r"max_message \(2097152 bytes\) is over receive_memory \(1048576 bytes\)",
        ),
        ({"window": 0}, "window is 0; it must be 16384 to"),
        ({"handshake_seconds": 0}, "handshake_seconds must be more than 0 seconds"),
        ({"close_seconds": -1}, "close_seconds is -1; it must be at least 0"),
        ({"memory_seconds": math.nan}, "memory_seconds is nan;"),
        ({"quarantine_seconds": -0.5}, "quarantine_seconds is -0.5;"),
    ],
)
def test_settings_that_cannot_work_are_misuse(settings, words):
    with pytest.raises(zcserver.MisuseError, match=words):
        zcserver.Context(**settings)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "settings",
    [
        {"receive_memory": 64 * KIB},
        {"stream_window": 33},
        dict.fromkeys(
            ("pool_size", "receive_memory", "window", "stream_window", "max_message"), numpy.int64(MIB)
        ),
    ],
    ids=["receive memory", "window", "numpy's numbers"],
)
async def test_the_least_that_is_allowed_works(make_context, settings):
    async def echo(stream):
        async for message in stream:
            await stream.send(bytes(message))

    async with (
        zcserver.serve(echo, port=0, context=make_context()) as server,
        zcserver.connect(port=server.port, context=make_context(**settings)) as connection,
    ):
        with deadline():
            stream = await connection.open("ECHO", "/")
            for _ in range(3):
                await stream.send(b"x" * 100)
                assert bytes(await stream.receive()) == b"x" * 100


@pytest.mark.anyio
async def test_a_message_that_receive_memory_can_never_hold_is_refused_at_once(make_context):
    async def handler(stream):
        with pytest.raises(zcserver.MessageTooLargeError, match=r"exceeds max_message \(1048576 bytes\)"):
            await stream.receive()
        refused.set()

    refused = anyio.Event()
    with deadline():
        async with (
            zcserver.serve(handler, port=0, context=make_context(receive_memory=MIB)) as server,
            zcserver.connect(port=server.port, context=make_context()) as connection,
        ):
            stream = await connection.open("PUT", "/")
            await stream.send(b"x" * 2 * MIB)
            await refused.wait()


# -- threads -----------------------------------------------------------------------------------------------


async def in_another_thread(function, *arguments):
    return await anyio.to_thread.run_sync(asyncio.run, function(*arguments))


async def connected(port, context):
    async with zcserver.connect(port=port, context=context) as connection:
        return bytes(await (await connection.open("GET", "/")).receive())


async def served(context):
    async with zcserver.serve(hello, port=0, context=context):
        pass


async def linked(port, context):
    opened, _ = await transport.create_connection(asyncio.Protocol, "127.0.0.1", port, context=context)
    opened.abort()


async def hello(stream):
    await stream.send(b"hello")


@pytest.mark.anyio
async def test_a_context_is_one_threads_at_a_time(make_context):
    context = make_context()
    words = "in use by 1 servers or connections of another thread"
    with deadline():
        async with zcserver.serve(hello, port=0, context=context) as server:
            with pytest.raises(zcserver.MisuseError, match=words):
                await in_another_thread(connected, server.port, context)
            with pytest.raises(zcserver.MisuseError, match=words):
                await in_another_thread(served, context)
            with pytest.raises(zcserver.MisuseError, match=words):
                await in_another_thread(linked, server.port, context)
            assert await connected(server.port, context) == b"hello"
        # One after the other they may use it.
        async with zcserver.serve(hello, port=0, context=make_context()) as server:
            assert await in_another_thread(connected, server.port, context) == b"hello"
            await in_another_thread(linked, server.port, context)
            assert await connected(server.port, context) == b"hello"
