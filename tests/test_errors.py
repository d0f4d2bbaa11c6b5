"""What goes wrong is said clearly, costs as little as it must, and never hangs."""

import contextlib
import errno
import logging
import os
import resource
import socket
from functools import partial

import anyio
import numpy
import pytest

import zcserver
from tests.raw_peer import MIB, RawPeer, deadline, dial, joined, serving, until
from zcserver.kernel.calls import Kernel
from zcserver.memory import BufferState
from zcserver_protocol.errors import ErrorCode
from zcserver_protocol.events import Goaway
from zcserver_protocol.frames import HEADER_SIZE, HELLO, PING, PREFACE, pack

pytestmark = pytest.mark.anyio
KIB = 1024
HTTP = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
NEXT_VERSION = (
    b'{"versions":[2,3],"max_frame":1048576,"max_control":16384,"window":8388608,'
    b'"max_streams":256,"features":[]}'
)
OTHER_VERSION = PREFACE + pack(HELLO, length=len(NEXT_VERSION)) + NEXT_VERSION
HUGE_HELLO = PREFACE + pack(HELLO, length=1 << 30)
EMPTY_HELLO = PREFACE + pack(HELLO, length=4) + b"null"
STRANGERS = {
    "random bytes": (bytes(range(100, 200)), "does not speak ZCP"),
    "HTTP": (HTTP, "does not speak ZCP"),
    "another version": (OTHER_VERSION, "versions 2 to 3"),
    "a huge HELLO": (HUGE_HELLO, "1073741824 bytes"),
    "an empty HELLO": (EMPTY_HELLO, "HELLO is malformed"),
    "no HELLO": (PREFACE + pack(PING), "first frame has type 10"),
}


# -- the handshake -----------------------------------------------------------------------------------------


async def to_the_end(sock):
    """Everything that comes until the other end closes."""
    received = b""
    while True:
        await anyio.wait_readable(sock)
        data = sock.recv(1 << 16)
        if not data:
            return received
        received += data


@pytest.mark.parametrize("kind", STRANGERS)
async def test_a_stranger_is_refused_with_a_reason(make_context, kind):
    said, reason = STRANGERS[kind]
    context = make_context()
    async with serving(context) as served:
        with dial(served.server.port) as sock:
            sock.setblocking(False)
            sock.send(said)
            await until(lambda: served.server.connections)
            (connection,) = served.server.connections
            answer = await to_the_end(sock)
        await connection.wait_closed()
        assert isinstance(connection.engine.error, zcserver.HandshakeError)
        assert reason in str(connection.engine.error)
        assert connection.name in str(connection.engine.error)
        if kind == "HTTP":  # told in its own words: tests/test_strangers.py
            return
        # It is told in ZCP, behind the preface and perhaps our HELLO.
        assert answer.startswith(PREFACE)
        goaway = answer[answer.rindex(b'{"code"') :]
        assert reason.encode() in goaway
        await served.peer()  # and the next one is served as ever


@pytest.mark.parametrize("kind", STRANGERS)
async def test_connecting_to_something_else_fails_clearly(make_context, kind):
    said, reason = STRANGERS[kind]
    context = make_context()
    with deadline(), listener() as listening:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer_with, listening, said)
            with pytest.raises(zcserver.HandshakeError, match=reason):
                async with zcserver.connect(port=listening.getsockname()[1], context=context):
                    pass


async def test_connecting_to_something_that_hangs_up_fails_clearly(make_context):
    context = make_context()
    with deadline(), listener() as listening:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer_with, listening, b"")
            with pytest.raises(zcserver.HandshakeError, match="closed the connection during the handshake"):
                async with zcserver.connect(port=listening.getsockname()[1], context=context):
                    pass


def listener():
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    return listening


async def answer_with(listening, said):
    await anyio.wait_readable(listening)
    sock, _ = listening.accept()
    with sock:
        sock.setblocking(False)
        await anyio.wait_readable(sock)
        sock.recv(1 << 16)
        sock.sendall(said)
        if said:
            await to_the_end(sock)


async def test_connecting_to_something_silent_ends_at_the_deadline(make_context):
    context = make_context()
    with deadline(), listener() as listening, pytest.raises(zcserver.HandshakeError, match="did not answer"):
        async with zcserver.connect(port=listening.getsockname()[1], context=context, timeout=0.05):
            pass


async def test_a_silent_client_is_dropped_at_the_handshakes_deadline(make_context):
    context = make_context(handshake_seconds=0.05)
    async with serving(context) as served:
        with dial(served.server.port) as sock:
            sock.setblocking(False)
            await until(lambda: served.server.connections)
            (connection,) = served.server.connections
            assert await to_the_end(sock) in (b"", PREFACE + told(ErrorCode.TIMEOUT, connection))
            await connection.wait_closed()
            assert isinstance(connection.engine.error, zcserver.ConnectionLostError)
            assert "no handshake for 0.05 seconds" in str(connection.engine.error)


def told(code, connection):
    body = b'{"code":%d,"reason":"no handshake for 0.05 seconds"}' % code
    return pack(9, length=len(body)) + body


async def test_connecting_where_nobody_listens_says_so(make_context):
    with listener() as listening:
        port = listening.getsockname()[1]
    context = make_context()
    with pytest.raises(zcserver.ConnectionLostError, match=f"127.0.0.1:{port}: Connection refused"):
        async with zcserver.connect(port=port, context=context):
            pass
    with pytest.raises(zcserver.ConnectionLostError, match=rf"cannot connect to \[::1\]:{port}: "):
        async with zcserver.connect("::1", port, context=context):
            pass
    with pytest.raises(zcserver.ConnectionLostError, match="cannot be resolved"):
        async with zcserver.connect("no.such.host.invalid", context=context):
            pass


async def test_a_violation_later_on_is_answered_with_its_reason(make_context):
    context = make_context()
    async with serving(context) as served:
        stream, peer, _ = await served.peer()
        await peer.write(pack(77))
        await peer.read_until(lambda: peer.fin or any(type(event) is Goaway for event in peer.events))
        (goaway,) = [event for event in peer.events if type(event) is Goaway]
        assert (goaway.code, goaway.reason) == (ErrorCode.PROTOCOL, "unknown frame type 77")
        with pytest.raises(zcserver.ConnectionLostError, match="unknown frame type 77"):
            await stream.receive()


async def test_a_goaway_with_an_error_reaches_the_application(make_context):
    context = make_context()
    async with serving(context) as served:
        stream, peer, _ = await served.peer()
        peer.codec.goaway(ErrorCode.INTERNAL, "the disk is on fire")
        await peer.flush()
        with pytest.raises(zcserver.ConnectionLostError, match="the disk is on fire"):
            await stream.receive()


# -- sending -----------------------------------------------------------------------------------------------


async def test_a_cancelled_send_leaves_no_half_message_and_the_buffer_with_its_owner(make_context):
    context = make_context(window=MIB)
    async with serving(context) as served:
        stream, peer, theirs = await served.peer(credit=1)  # not enough for any frame
        for _ in range(2):
            await stream.send(b"x" * 600 * KIB)
        buffer = await stream.connection.acquire(64 * KIB)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.send, buffer)
            await until(lambda: stream._wakeups._room is not None)
            tasks.cancel_scope.cancel()
        assert buffer.state == BufferState.FILLING
        buffer.view[:] = b"y" * 64 * KIB
        peer.codec.credit(theirs, 1 << 40)
        await peer.flush()
        await peer.read_until(lambda: len(peer.messages.get(theirs.id, ())) == 2)
        completion = await stream.send(buffer, end=True)
        await peer.read_until(lambda: len(peer.messages[theirs.id]) == 3)
        await completion.wait()
        assert peer.messages[theirs.id] == [b"x" * 600 * KIB, b"x" * 600 * KIB, b"y" * 64 * KIB]


async def test_cancelling_the_wait_for_a_completion_cancels_nothing_else(make_context):
    context = make_context()
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        completion = await stream.send(b"x" * 64 * KIB)
        with anyio.move_on_after(0) as scope:
            await completion.wait()
        assert scope.cancelled_caught
        assert not completion.done
        await peer.read_until(lambda: theirs.id in peer.messages)
        await completion.wait()


async def test_misuse_of_buffers_and_streams_is_named(make_context):
    async with joined(make_context()) as ends:
        ours, theirs = await ends.stream()
        buffer = await ends.client.acquire(10_000)
        array = numpy.frombuffer(buffer.view, "u1")
        with pytest.raises(zcserver.ViewsAliveError, match="are alive"):
            await ours.send(buffer)
        array[:] = 7
        view = buffer.view
        del array
        await ours.send(buffer)
        with pytest.raises(zcserver.BufferStateError, match="sent already"):
            await ours.send(buffer)
        with pytest.raises(ValueError, match="released"):
            view[0] = 1
        with pytest.raises(zcserver.BufferStateError):
            buffer.release()
        with await ends.client.acquire(10) as released:
            released.release()
            with pytest.raises(zcserver.BufferStateError, match="released"):
                await ours.send(released)
        with pytest.raises(zcserver.MisuseError, match="str as memory"):
            await ours.send("text")
        with pytest.raises(zcserver.MisuseError, match="ndarray as memory"):
            await ours.send(numpy.zeros(1, "M8[s]"))
        with pytest.raises(zcserver.MisuseError, match="contiguous"):
            await ours.send(numpy.zeros((10, 10))[:, 1])
        with pytest.raises(zcserver.RequestTooLargeError):
            await ends.client.acquire(1 << 40)
        await ours.end()
        with pytest.raises(zcserver.MisuseError, match="was ended"):
            await ours.send(b"more")
        assert await ours.end() is await ours.end()
        assert bytes(await theirs.receive()) == b"\7" * 10_000
        with pytest.raises(anyio.EndOfStream):
            await theirs.receive()


async def test_an_address_family_that_is_off_on_this_machine_is_passed_over(make_context, monkeypatch):
    async def both(host, port, **_):
        v6 = (socket.AF_INET6, socket.SOCK_STREAM, 0, "", ("::1", port, 0, 0))
        return [v6, (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))]

    class WithoutV6(socket.socket):
        def __init__(self, family=-1, *arguments, **options):
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            super().__init__(family, *arguments, **options)

    async def handler(stream):
        await stream.end()

    context = make_context()
    async with zcserver.serve(handler, "127.0.0.1", 0, context=context) as server:
        monkeypatch.setattr(anyio, "getaddrinfo", both)
        monkeypatch.setattr(socket, "socket", WithoutV6)
        with deadline():
            async with zcserver.connect("localhost", server.port, context=context) as connection:
                stream = await connection.open("GET", "/")
                assert [message async for message in stream] == []


async def test_a_refused_send_changes_nothing(make_context):
    async with joined(make_context()) as ends:
        ours, theirs = await ends.stream()
        await ours.end()
        with await ends.client.acquire(10_000) as buffer:
            with pytest.raises(zcserver.MisuseError):
                await ours.send(buffer)
            buffer.view[:1] = b"x"
            assert buffer.state == BufferState.FILLING
        with pytest.raises(anyio.EndOfStream):
            await theirs.receive()


async def test_waiting_for_memory_ends_with_the_connection(make_context):
    context = make_context(pool_size=4 * MIB)
    async with serving(context) as served:
        stream, peer, _ = await served.peer()
        connection = stream.connection

        async def wait():
            with pytest.raises(zcserver.ConnectionLostError):
                await connection.acquire(4 * MIB)

        with await connection.acquire(2 * MIB):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await until(lambda: context.pool.stats().waiters)
                peer.close()


async def test_two_tasks_cannot_receive_from_one_stream(make_context):
    async with joined(make_context()) as ends:
        ours, _ = await ends.stream()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ours.receive)
            await until(lambda: ours._receiving)
            for receive in (ours.receive, partial(ours.receive_into, bytearray(9))):
                with pytest.raises(zcserver.MisuseError, match="another task"):
                    await receive()
            tasks.cancel_scope.cancel()


async def test_the_memory_of_a_task_that_receives_is_not_replaced_by_another(make_context):
    async with joined(make_context()) as ends:
        ours, theirs = await ends.stream()
        first = bytearray(5)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ours.receive_into, first)
            await until(lambda: ours._receiving)
            with pytest.raises(zcserver.MisuseError, match="another task"):
                await ours.receive_into(bytearray(5))
            await theirs.send(b"whole")
        assert first == b"whole"


# -- streams and handlers ----------------------------------------------------------------------------------


async def test_a_handler_that_raises_costs_its_stream_only(make_context, caplog):
    async def handler(stream):
        if stream.path == "/bad":
            raise ZeroDivisionError
        await echo(stream)

    context = make_context()
    with deadline():
        async with (
            zcserver.serve(handler, port=0, context=context) as server,
            zcserver.connect(port=server.port, context=context) as connection,
        ):
            bad = await connection.open("GET", "/bad")
            good = await connection.open("GET", "/good")
            with pytest.raises(zcserver.StreamResetError) as caught:
                await bad.receive()
            assert caught.value.code == ErrorCode.INTERNAL
            assert "ZeroDivisionError" not in str(caught.value)  # the peer need not know our insides
            await good.send(b"still here", end=True)
            assert [bytes(message) async for message in good] == [b"still here"]
    assert "the handler of <Stream" in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_streams_to_an_end_without_handler_are_refused(make_context):
    context = make_context()
    async with joined(context) as ends:
        stream = await ends.server.open("GET", "/")
        with pytest.raises(zcserver.StreamResetError) as caught:
            await stream.receive()
        assert caught.value.code == ErrorCode.REFUSED


async def test_a_reset_reaches_all_who_wait_with_code_and_reason(make_context):
    async with joined(make_context()) as ends:
        ours, theirs = await ends.stream()
        completions = [await ours.send(b"x" * MIB) for _ in range(3)]
        theirs.reset(ErrorCode.FORBIDDEN, "not for you")
        for wait in (ours.receive, ours.response, completions[-1].wait):
            with pytest.raises(zcserver.StreamResetError, match="not for you") as caught:
                await wait()
            assert caught.value.code == ErrorCode.FORBIDDEN
        with pytest.raises(zcserver.StreamResetError, match="not for you"):  # a failure resurfaces
            await ours.send(b"more")
        other, their_other = await ends.stream()
        await other.send(b"the connection lives on")
        assert bytes(await their_other.receive()) == b"the connection lives on"


@pytest.mark.parametrize("end", ["reply", "abort"])
async def test_all_who_wait_for_the_reply_are_woken(make_context, end):
    with contextlib.suppress(zcserver.ConnectionLostError):
        async with joined(make_context()) as ends:
            ours, theirs = await ends.stream()
            learned = []

            async def wait():
                try:
                    learned.append(await ours.response())
                except zcserver.ConnectionLostError:
                    learned.append("abort")

            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                if end == "reply":
                    await theirs.reply(size=5)
                else:
                    ours.connection.abort()
            assert learned == 3 * [{"size": 5} if end == "reply" else "abort"]


async def test_a_message_too_large_resets_its_stream_and_says_how_to_read_it(make_context):
    context = make_context(max_message=MIB)
    async with joined(context) as ends:
        ours, theirs = await ends.stream()
        other, their_other = await ends.stream()

        async def receive():
            with pytest.raises(zcserver.MessageTooLargeError, match=r"receive_into\(\) or chunks\(\)"):
                await theirs.receive()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await until(lambda: theirs._receiving)
            await ours.send(b"x" * (MIB + 1))
        with pytest.raises(zcserver.StreamResetError) as caught:
            await ours.receive()
        assert caught.value.code == ErrorCode.TOO_LARGE
        await other.send(b"x" * MIB)
        assert len(await their_other.receive()) == MIB


async def test_a_file_that_shrinks_while_it_is_sent_resets_the_stream(make_context, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 4 * MIB)
    context = make_context()
    async with serving(context) as served:
        stream, peer, theirs = await served.peer(credit=HEADER_SIZE + 100 * KIB)
        with path.open("rb") as file:
            completion = await stream.send_file(file)
        await peer.read_until(lambda: len(peer.partial(theirs.id)) == 100 * KIB)
        os.truncate(path, 2 * MIB)
        peer.codec.credit(theirs, 1 << 40)
        await peer.flush()
        await peer.read_until(lambda: theirs.reset_code is not None)
        assert theirs.reset_code == ErrorCode.CHANGED
        assert len(peer.partial(theirs.id)) == 2 * MIB  # not a byte of padding
        assert "shortened" in theirs.reset_reason
        with pytest.raises(zcserver.TransferError):
            await completion.wait()
        again, theirs = await served.stream(peer)
        await again.send(b"the connection lives on")
        await peer.read_until(lambda: peer.messages.get(theirs.id) == [b"the connection lives on"])
    assert context.pipes.file_pipes == 0


async def test_a_file_that_cannot_be_read_resets_the_stream(make_context, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * MIB)
    async with joined(make_context()) as ends:
        ours, theirs = await ends.stream()
        with path.open("ab") as write_only:
            completion = await ours.send_file(write_only)
        with pytest.raises(zcserver.StreamResetError, match="Bad file descriptor"):
            await completion.wait()
        with pytest.raises(zcserver.StreamResetError, match="Bad file descriptor") as caught:
            await theirs.receive()
        assert caught.value.code == ErrorCode.INTERNAL
        again, theirs = await ends.stream()
        await again.send(b"the connection lives on")
        assert bytes(await theirs.receive()) == b"the connection lives on"


# -- the system --------------------------------------------------------------------------------------------


async def test_running_out_of_descriptors_delays_new_connections_and_hurts_no_old_one(make_context, caplog):
    caplog.set_level(logging.WARNING, "zcserver")
    context = make_context()
    async with serving(context) as served:
        stream, peer, theirs = await served.peer()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as late:
            lowest_free = os.dup(late.fileno())
            os.close(lowest_free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
            try:
                late.connect(("127.0.0.1", served.server.port))
                await until(lambda: "cannot accept more connections" in caplog.text)
                await stream.send(b"as ever")
                await peer.read_until(lambda: theirs.id in peer.messages)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            late_peer = RawPeer(late)
            await late_peer.shake_hands()
            await served.stream(late_peer)


async def echo(stream):
    async for message in stream:
        await stream.send(bytes(message))


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.ENOMEM])
async def test_a_kernel_that_refuses_vmsplice_later_costs_the_lane_and_not_the_connection(
    make_context, number
):
    class Later(Kernel):
        refuses = False
        refused = 0

        def vmsplice(self, fd, iov, count):
            if self.refuses:
                self.refused += 1
                raise OSError(number, os.strerror(number))
            return super().vmsplice(fd, iov, count)

    kernel = Later()
    async with joined(make_context(kernel=kernel)) as ends:
        ours, theirs = await ends.stream()
        for letter in b"abc":
            buffer = await ours.connection.acquire(MIB)
            buffer.view[:] = bytes([letter]) * MIB
            await ours.send(buffer)
            assert bytes(await theirs.receive()) == bytes([letter]) * MIB
            kernel.refuses = True
        statistics = ours.connection.statistics
        assert (statistics.reference_bytes, statistics.copied_bytes) == (MIB, 2 * MIB)
        assert (kernel.refused == 1) is (number != errno.ENOMEM)


async def test_a_port_in_use_is_named(make_context):
    context = make_context()
    with listener() as listening:
        port = listening.getsockname()[1]
        with pytest.raises(zcserver.ConnectionLostError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with zcserver.serve(echo, port=port, context=context):
                pass
