"""What a handler raises: its stream pays for it, its peer learns of it, and nobody else does."""

import asyncio
import contextlib
import logging

import anyio
import pytest

import zcserver
from tests.raw_peer import deadline, until
from zcserver_protocol.errors import ErrorCode

pytestmark = pytest.mark.anyio
FAILED = "the handler of <Stream"


@pytest.fixture(autouse=True)
def errors_are_captured(caplog):
    caplog.set_level(logging.WARNING, "zcserver")


async def end_of(handler, make_context):
    """How the peer sees the end of a stream that is handled so; its connection is to live on."""

    async def both(stream):
        if stream.path == "/":
            await stream.send(b"part 1 of 2")
            await handler(stream)
        else:
            await stream.send(b"alive")

    context = make_context()
    with deadline():
        async with (
            zcserver.serve(both, port=0, context=context) as server,
            zcserver.connect(port=server.port, context=context) as connection,
        ):
            stream = await connection.open("GET", "/")
            with pytest.raises(zcserver.StreamResetError) as caught:
                async for _ in stream:
                    pass
            other = await connection.open("GET", "/other")
            assert bytes(await other.receive()) == b"alive"
    return caught.value


async def test_what_a_handler_lost_elsewhere_does_not_look_like_the_end_of_its_stream(make_context, caplog):
    async def dies(stream):
        await stream.send(b"part 1 of 2")
        await stream.receive()
        stream.connection.abort()

    context = make_context()
    async with zcserver.serve(dies, port=0, context=context) as origin:

        async def proxy(stream):
            async with zcserver.connect(port=origin.port, context=context) as upstream:
                source = await upstream.open("GET", "/")
                async for message in source:
                    await stream.send(bytes(message))
                    await source.send(b"go on")

        assert (await end_of(proxy, make_context)).code == ErrorCode.INTERNAL
    assert FAILED in caplog.text
    assert "closed the connection before the transfer was complete" in caplog.text


# -- cancellation ------------------------------------------------------------------------------------------


async def test_awaiting_what_somebody_cancelled_costs_the_stream_only(make_context, caplog, anyio_backend):
    if anyio_backend[0] == "trio":
        pytest.skip("asyncio's")

    async def handler(stream):
        job = asyncio.get_running_loop().create_future()
        job.cancel()
        await job

    assert (await end_of(handler, make_context)).code == ErrorCode.INTERNAL
    assert FAILED in caplog.text
    assert "CancelledError" in caplog.text


async def test_a_handler_whose_task_is_cancelled_costs_its_stream_only(make_context, caplog, anyio_backend):
    if anyio_backend[0] == "trio":
        pytest.skip("asyncio's")

    async def handler(stream):
        asyncio.current_task().cancel()
        await anyio.sleep_forever()

    assert (await end_of(handler, make_context)).code == ErrorCode.CANCELLED
    assert not caplog.records


async def test_a_server_that_is_cancelled_takes_its_handlers_along(make_context, caplog):
    """Also where one task of a handler loses the connection while another is cancelled."""
    at_work = cancelled = 0

    async def sleep():
        nonlocal at_work, cancelled
        at_work += 1
        try:
            await anyio.sleep_forever()
        finally:
            cancelled += 1

    async def handler(stream):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sleep)
            tasks.start_soon(stream.receive)

    context = make_context()
    with deadline(), anyio.CancelScope() as scope:
        async with (
            zcserver.serve(handler, port=0, context=context) as server,
            zcserver.connect(port=server.port, context=context) as connection,
        ):
            _stream = await connection.open("GET", "/")  # (dropped, it would be given up)
            await until(lambda: at_work)
            scope.cancel()
    assert cancelled == at_work == 1
    assert not caplog.records


def test_a_program_that_ends_without_ending_its_server_logs_no_failures(caplog):
    async def handler(stream):
        at_work.set()
        await anyio.sleep_forever()

    async def serve(tell):
        async with (
            zcserver.serve(handler, port=0) as server,
            zcserver.connect(port=server.port) as connection,
        ):
            tell.set_result(await connection.open("GET", "/"))
            await anyio.sleep_forever()

    async def main():
        nonlocal at_work, task
        at_work = asyncio.Event()
        tell = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(serve(tell))
        await tell
        await at_work.wait()

    at_work = task = None
    asyncio.run(main())
    assert task.cancelled()
    assert not caplog.records


# -- errors as handlers raise them -------------------------------------------------------------------------


@pytest.mark.parametrize("code", [-1, 2**32])
async def test_a_reset_code_that_is_none_costs_the_stream_only(make_context, caplog, code):
    async def handler(stream):
        raise zcserver.StreamResetError(code, "no such user")

    assert (await end_of(handler, make_context)).code == ErrorCode.INTERNAL
    assert f"{code} is no reset code: choose one of 0 to 4294967295" in caplog.text


async def test_an_error_that_cannot_be_told_the_peer_costs_the_stream_only(make_context, caplog):
    class MyError(zcserver.StreamResetError):
        def __init__(self):
            self.args = ("neither code nor reason",)

    async def handler(stream):
        raise MyError

    assert (await end_of(handler, make_context)).code == ErrorCode.INTERNAL
    assert "neither code nor reason" in caplog.text


def raises(error):
    async def fail():
        raise error

    return fail


async def test_an_error_of_a_task_group_counts_as_what_is_in_it(make_context, caplog):
    async def handler(stream):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(raises(zcserver.StreamResetError(0x1234, "mine")))

    caught = await end_of(handler, make_context)
    assert (caught.code, caught.reason) == (0x1234, "mine")
    assert not caplog.records


async def test_a_group_with_anything_else_in_it_is_a_failure(make_context, caplog):
    async def handler(stream):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(raises(zcserver.StreamResetError(0x1234, "mine")))
            tasks.start_soon(raises(ZeroDivisionError()))

    assert (await end_of(handler, make_context)).code == ErrorCode.INTERNAL
    assert "ZeroDivisionError" in caplog.text


async def read(stream):
    async for _ in stream:
        pass


async def read_in_a_group(stream):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep_forever)
        tasks.start_soon(read, stream)


@pytest.mark.parametrize("how", ["reset", "abort"])
@pytest.mark.parametrize("handler", [read, read_in_a_group])
async def test_a_client_that_goes_is_no_failure_of_the_handler(make_context, caplog, handler, how):
    handled = anyio.Event()

    async def to_its_end(stream):
        try:
            await handler(stream)
        finally:
            handled.set()

    context = make_context()
    with deadline():
        async with zcserver.serve(to_its_end, port=0, context=context) as server:
            with contextlib.suppress(zcserver.ConnectionLostError):
                async with zcserver.connect(port=server.port, context=context) as connection:
                    stream = await connection.open("GET", "/")
                    await (await stream.send(b"begun")).wait()
                    if how == "reset":
                        stream.reset()
                    else:
                        connection.abort()
                    await handled.wait()
            await until(lambda: not server.connections)
    assert not caplog.records


async def test_trouble_that_a_peer_makes_is_logged_in_one_line(make_context, caplog):
    async def handler(stream):
        await stream.receive()

    async with (
        zcserver.serve(handler, port=0, context=make_context(max_message=1000)) as server,
        zcserver.connect(port=server.port, context=make_context()) as connection,
    ):
        stream = await connection.open("PUT", "/")
        await stream.send(bytes(1001))
        with pytest.raises(zcserver.StreamResetError) as caught:
            await stream.receive()
        assert caught.value.code == ErrorCode.TOO_LARGE
        await until(lambda: FAILED in caplog.text)
    assert "Traceback" not in caplog.text
