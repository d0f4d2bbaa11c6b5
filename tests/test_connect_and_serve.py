"""``connect`` and ``serve`` themselves: how they are made, what they refuse, and when they are over."""

import anyio
import anyio.from_thread
import pytest

import zcserver
from tests.raw_peer import deadline


async def hello(stream):
    await stream.send(b"hello")


@pytest.mark.parametrize("port", [-1, 65536, 99999, "abc", "7420", 1.5])
def test_what_is_no_port_is_refused(make_context, port):
    context = make_context()
    words = f"{port!r} is no port: give a number of 0 to 65535"
    with pytest.raises(zcserver.MisuseError, match=words):
        zcserver.connect(port=port, context=context)
    with pytest.raises(zcserver.MisuseError, match=words):
        zcserver.serve(hello, port=port, context=context)
    with pytest.raises(zcserver.MisuseError, match=words):
        zcserver.serve(hello, binds=[("127.0.0.1", 0), ("::1", port)], context=context)


def test_a_server_without_room_for_a_connection_is_refused(make_context):
    with pytest.raises(zcserver.MisuseError, match="max_connections is 0; it must be at least 1"):
        zcserver.serve(hello, port=0, context=make_context(), max_connections=0)


def test_both_can_be_made_outside_an_event_loop(make_context, anyio_backend):
    backend, options = anyio_backend
    context = make_context()
    with anyio.from_thread.start_blocking_portal(backend, options) as portal:
        enter = portal.wrap_async_context_manager
        with (
            enter(zcserver.serve(hello, port=0, context=context)) as server,
            enter(zcserver.connect(port=server.port, context=context)) as connection,
        ):
            stream = portal.call(connection.open, "GET", "/")
            assert bytes(portal.call(stream.receive)) == b"hello"


@pytest.mark.anyio
async def test_waiting_for_a_server_ends_when_it_is_closed(make_context):
    context = make_context()
    with deadline():
        async with (
            zcserver.serve(hello, port=0, context=context) as server,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(server.wait_closed)
            await anyio.wait_all_tasks_blocked()
            await server.aclose()
        await server.wait_closed()


@pytest.mark.anyio
async def test_waiting_for_a_server_ends_when_it_is_left_by_an_error(make_context):
    context = make_context()
    with deadline():
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as scope:
                async with zcserver.serve(hello, port=0, context=context) as server:
                    tasks.start_soon(server.wait_closed)
                    scope.cancel()
