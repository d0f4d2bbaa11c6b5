"""Messages cross a real connection, by every lane, on every loop, and their memory comes home."""

import array

import anyio
import pytest

import zcserver
from tests.raw_peer import RawPeer, deadline, serving, until

pytestmark = pytest.mark.anyio
KIB = 1024
MIB = 1 << 20


@pytest.mark.parametrize("size", [0, 1, 4095, 64 * KIB, MIB, MIB + 1, 5 * MIB])
async def test_a_message_of_any_size_arrives_as_it_was_sent(make_context, size):
    received = []

    async def handler(stream):
        received.extend([bytes(message) async for message in stream])

    content = bytes(range(256)) * (size // 256 + 1)
    context = make_context()
    async with (
        zcserver.serve(handler, port=0, context=context) as server,
        zcserver.connect(port=server.port, context=context) as connection,
    ):
        stream = await connection.open("PUBLISH", "/x")
        if size:
            buffer = await connection.acquire(size)
            buffer.view[:] = content[:size]
            await (await stream.send(buffer)).wait()
        await (await stream.send(content[:size], end=True)).wait()
    assert [len(message) for message in received] == ([size, size] if size else [0])
    assert all(message == content[:size] for message in received)
    stats = context.pool.stats()
    assert (stats.in_flight, stats.filling) == (0, 0)


@pytest.mark.parametrize("window", [16 * KIB, 64 * KIB])
async def test_a_long_message_in_short_frames_arrives(make_context, window):
    async def handler(stream):
        async for message in stream:
            await stream.send(bytes(message))

    content = bytes(range(256)) * 4 * KIB
    context = make_context(window=window)
    with deadline():
        async with (
            zcserver.serve(handler, port=0, context=context) as server,
            zcserver.connect(port=server.port, context=context) as connection,
        ):
            stream = await connection.open("ECHO", "/")
            await stream.send(content)
            assert bytes(await stream.receive()) == content


async def test_an_echo_of_many_messages_both_ways_on_many_streams(make_context):
    async def echo(stream):
        async for message in stream:
            await stream.send(bytes(message))

    context = make_context()
    async with (
        zcserver.serve(echo, port=0, context=context) as server,
        zcserver.connect(port=server.port, context=context) as connection,
    ):

        async def talk(number):
            stream = await connection.open("ECHO", f"/{number}")

            async def produce():
                for index in range(50):
                    buffer = await connection.acquire(1 + index * 1000)
                    buffer.view[:] = bytes([number]) * len(buffer)
                    await stream.send(buffer)
                await stream.end()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(produce)
                lengths = []
                async for message in stream:
                    assert bytes(message) == bytes([number]) * len(message)
                    lengths.append(len(message))
            assert lengths == [1 + index * 1000 for index in range(50)]

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(talk, number)
    assert context.pool.stats().in_flight == 0


async def test_a_completion_means_that_the_peer_has_it_all(make_context):
    async def handler(stream):
        async for _ in stream:
            pass

    context = make_context()
    async with (
        zcserver.serve(handler, port=0, context=context) as server,
        zcserver.connect(port=server.port, context=context) as connection,
    ):
        stream = await connection.open("PUT", "/x")
        completions = [await stream.send(b"x" * 100_000) for _ in range(20)]
        await completions[-1].wait()
        assert all(completion.done for completion in completions)
        assert connection.engine.sender.ledger.acknowledged == connection.engine.sender.ledger.framed


async def test_copied_memory_is_free_for_those_who_wait_as_soon_as_it_is_in_the_socket(
    make_context, monkeypatch
):
    """Not only when they look for memory that came back by itself."""
    monkeypatch.setattr("zcserver.memory.pool.ROUND", 1e6)
    context = make_context(pool_size=4 * MIB, lanes=("copy",), memory_seconds=1e6)
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        held = [await stream.connection.acquire(MIB) for _ in range(4)]
        await stream.send(held.pop())
        async with anyio.create_task_group() as tasks:

            async def read_without_acknowledging():
                await peer.read_until(lambda: theirs.id in peer.messages, acknowledge=False)

            tasks.start_soon(read_without_acknowledging)
            held.append(await stream.connection.acquire(MIB))
        for buffer in held:
            buffer.release()


async def test_a_file_goes_out_from_the_page_cache(make_context, tmp_path):
    content = b"".join(index.to_bytes(8) for index in range(2 * MIB)) + b"tail"  # 16 MiB: the socket fills up
    path = tmp_path / "file"
    path.write_bytes(content)

    async def handler(stream):
        with path.open("rb") as file:
            await stream.send_file(file, end=True)

    context = make_context()
    async with (
        zcserver.serve(handler, port=0, context=context) as server,
        zcserver.connect(port=server.port, context=context) as connection,
    ):
        stream = await connection.open("GET", "/file")
        received = b"".join([bytes(chunk) async for chunk in stream.chunks()])
        assert received == content
        (peer,) = server.connections
        assert peer.statistics.file_bytes == len(content)
        assert peer.statistics.copied_bytes == 0


async def test_received_bytes_land_in_the_callers_memory(make_context):
    content = bytes(range(256)) * 20_000

    async def handler(stream):
        await stream.send(content, end=True)

    context = make_context()
    async with (
        zcserver.serve(handler, port=0, context=context) as server,
        zcserver.connect(port=server.port, context=context) as connection,
    ):
        stream = await connection.open("GET", "/array")
        target = array.array("B", bytes(len(content) + 10))
        assert await stream.receive_into(target) == len(content)
        assert bytes(target[: len(content)]) == content
        with pytest.raises(anyio.EndOfStream):
            await stream.receive_into(target)


async def test_small_files_sent_one_after_the_other_do_not_wait_for_credit(make_context, tmp_path):
    """Nobody receives, so no CREDIT comes that would wake the sender for the second."""
    paths = [tmp_path / name for name in "abc"]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 5000)
    over = anyio.Event()

    async def handler(stream):
        await over.wait()

    context = make_context()
    with anyio.fail_after(20):
        async with (
            zcserver.serve(handler, port=0, context=context) as server,
            zcserver.connect(port=server.port, context=context) as connection,
        ):
            stream = await connection.open("PUT", "/")
            completions = []
            for path in paths:
                with path.open("rb") as file:
                    completions.append(await stream.send_file(file))
            for completion in completions:
                await completion.wait()
            over.set()


def narrow(kernel):
    """A kernel whose sockets, once it is ``cutting``, take 8 bytes of control frames, then none: ``full``."""

    class Narrow(type(kernel)):
        full = cutting = False

        def send(self, sock, data, flags=0):
            if self.full:
                raise BlockingIOError
            if self.cutting:
                self.full = True
                return super().send(sock, data[:8], flags)
            return super().send(sock, data, flags)

    return Narrow()


async def test_no_message_overtakes_its_reply_when_the_socket_was_full_amid_earlier_control_frames(
    make_context, kernel
):
    socket = narrow(kernel)
    queued = 0

    async def handler(stream):
        nonlocal queued
        socket.cutting = True
        await stream.reply(path=stream.path)
        await stream.send(b"content", end=True)
        queued += 1

    with deadline():
        async with zcserver.serve(handler, port=0, context=make_context(kernel=socket)) as server:
            with await RawPeer.connect(server.port) as peer:
                first = await peer.open()
                await until(lambda: socket.full)
                second = await peer.open()
                await until(lambda: queued == 2)
                socket.cutting = socket.full = False
                # (Its codec refuses DATA before the REPLY.)
                await peer.read_until(lambda: len(peer.messages) == 2)
    assert peer.messages == {first.id: [b"content"], second.id: [b"content"]}


@pytest.mark.parametrize("most", [1, 13, 40])
async def test_frames_that_go_together_arrive_whole_however_little_the_socket_takes(
    make_context, kernel, most
):
    class Sipping(type(kernel)):
        def send(self, sock, data, flags=0):
            return super().send(sock, data[:most], flags)

        def sendmsg(self, sock, buffers, flags=0):
            return super().sendmsg(sock, [b"".join(buffers)[:most]], flags)

    async def echo(stream):
        await stream.reply(path=stream.path)
        async for message in stream:
            await stream.send(bytes(message))

    async def converse(connection, path):
        async with await connection.open("ECHO", path) as stream:
            for number in range(10):
                await stream.send(path.encode() * number)
                assert bytes(await stream.receive()) == path.encode() * number

    context = make_context(kernel=Sipping())
    with deadline():
        async with (
            zcserver.serve(echo, port=0, context=context) as server,
            zcserver.connect(port=server.port, context=context) as connection,
            anyio.create_task_group() as tasks,
        ):
            for path in ("/one", "/two", "/three"):
                tasks.start_soon(converse, connection, path)


async def test_a_refusal_continues_the_control_frames_before_it(make_context, kernel):
    socket = narrow(kernel)

    async def handler(stream):
        socket.cutting = True
        await stream.reply(path=stream.path)
        with pytest.raises(zcserver.ConnectionLostError):
            await stream.receive()

    with deadline():
        async with zcserver.serve(handler, port=0, context=make_context(kernel=socket)) as server:
            with await RawPeer.connect(server.port) as peer:
                await peer.open()
                await until(lambda: socket.full)
                await peer.write(b"\x3f" + bytes(31))  # no such frame type
                socket.cutting = socket.full = False
                await peer.read_until(lambda: "Goaway" in peer.log, acknowledge=False)
    assert sorted(peer.log) == ["Credited", "Goaway", "Hello", "Replied"]


async def test_a_completion_shows_what_it_is_of_and_how_that_stands(make_context):
    async with serving(make_context()) as served:
        stream, peer, theirs = await served.peer()
        completion = await stream.send(b"x" * 5)
        batch = await stream.connection.acquire_batch(MIB)
        for _ in range(3):
            batch.add(10)
        several = await stream.send(batch)
        assert repr(completion) == "<Completion of 5 bytes, on its way>"
        assert repr(several) == "<Completion of 3 messages, on its way>"
        await peer.read_until(lambda: len(peer.messages.get(theirs.id, ())) == 4)
        await completion
        assert repr(completion) == "<Completion of 5 bytes, acknowledged>"
        lost = await stream.send(b"y")
        stream.connection.abort()
        assert repr(lost) == "<Completion of 1 bytes, failed>"
