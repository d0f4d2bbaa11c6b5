"""What a protocol may expect of its transport: bytes in order, callbacks in order, one end."""

import array
import asyncio
import socket

import numpy
import pytest

import zcserver
from tests.transport.recorders import KIB, MIB, BufferedRecorder, Recorder, paired, until

pytestmark = pytest.mark.asyncio


async def test_bytes_arrive_in_order_in_both_directions(pair):
    left, right = bytes(range(256)) * 4 * KIB, bytes(reversed(range(256))) * 8 * KIB
    for start in range(0, len(left), 100_000):
        pair.left.write(left[start : start + 100_000])
    pair.right.writelines([right[:1], bytearray(right[1:KIB]), memoryview(right)[KIB:]])
    await until(lambda: len(pair.server.data) == len(left) and len(pair.client.data) == len(right))
    assert (bytes(pair.server.data), bytes(pair.client.data)) == (left, right)


async def test_small_and_large_writes_keep_their_order(pair):
    expected = bytearray()
    for index in range(200):
        piece = bytes([index]) * (1 + (index * 7919) % 90_000)
        expected += piece
        pair.left.write(piece if index % 3 else bytearray(piece))
    await until(lambda: len(pair.server.data) == len(expected))
    assert pair.server.data == expected


async def test_what_has_come_in_small_pieces_is_handed_on_in_large_ones(pair):
    pair.right.pause_reading()
    sent = [bytes([number]) * (40 * number) for number in range(1, 101)]
    for piece in sent:
        pair.left.send(piece)
    await until(lambda: pair.left.get_write_buffer_size() == 0)
    pair.right.resume_reading()
    await until(lambda: pair.server.data == b"".join(sent))
    assert len(pair.server.pieces) == 1


async def test_small_writes_of_one_turn_travel_together(pair):
    for _ in range(100):
        pair.left.write(b"x" * 100)
    await until(lambda: len(pair.server.data) == 10_000)
    assert pair.left.get_extra_info("stats").messages_sent == 1


async def test_an_answer_written_in_data_received_leaves_with_the_acknowledgement(make_context, kernel):
    class Echo(Recorder):
        def data_received(self, data):
            super().data_received(data)
            self.transport.write(data)

    watched, calls = type(kernel)(), []
    send, sendmsg = watched.send, watched.sendmsg
    watched.send = lambda sock, data, flags=0: (calls.append("ACK"), send(sock, data, flags))[1]
    watched.sendmsg = lambda sock, buffers: (calls.append("both"), sendmsg(sock, buffers))[1]
    async with paired(make_context(), make_context(kernel=watched), server=Echo) as pair:
        await until(lambda: pair.right._channel.state.send_credit > 0)
        calls.clear()
        pair.left.write(b"ping")
        await until(lambda: pair.client.data == b"ping")
        assert calls == ["both"], "two system calls, or the peer was woken twice"


async def test_callbacks_are_not_entered_from_within_write(make_context):
    within = []

    class Guarded(Recorder):
        def note(self, name):
            if self.inside_write and name != "pause_writing":
                within.append(name)
            super().note(name)

        def write(self, data):
            self.inside_write = True
            self.transport.write(data)
            self.inside_write = False

    async with paired(make_context(), make_context(), client=Guarded, server=Guarded) as pair:
        pair.left.set_write_buffer_limits(high=100 * KIB)
        for _ in range(30):
            pair.client.write(b"a" * 70 * KIB)
            pair.server.write(bytearray(70 * KIB))
            await asyncio.sleep(0)
        pair.right.abort()
        for _ in range(30):
            pair.client.write(b"b" * 600 * KIB)  # finds the connection lost
            await asyncio.sleep(0)
        await pair.over()
        assert pair.client.calls.count("connection_lost") == 1
    assert within == []


async def test_a_buffered_protocol_is_given_bytes_in_its_own_memory(make_context):
    data = bytes(range(256)) * 4 * KIB
    async with paired(
        make_context(), make_context(), server=lambda: BufferedRecorder(10_000, keep_open=True)
    ) as pair:
        pair.left.write(data)
        pair.left.write_eof()
        await until(lambda: "eof_received" in pair.server.calls)
        assert pair.server.data == data
        assert "data_received" not in pair.server.calls


@pytest.mark.parametrize(
    "memory",
    [array.array("I", bytes(400)), numpy.zeros((10, 10), numpy.float32), bytearray(400)],
    ids=["array", "two dimensions", "bytearray"],
)
async def test_a_buffered_protocol_may_give_memory_of_any_shape(make_context, memory):
    class Shaped(BufferedRecorder):
        def get_buffer(self, sizehint):
            return memory

        def buffer_updated(self, nbytes):
            self.data += memoryview(memory).cast("B")[:nbytes]

    async with paired(make_context(), make_context(), server=lambda: Shaped(0, keep_open=True)) as pair:
        data = bytes(range(256)) * 4
        pair.left.write(data)
        await until(lambda: pair.server.data == data)


async def test_an_empty_buffer_of_a_buffered_protocol_is_an_error(make_context):
    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
    async with paired(make_context(), make_context(), server=lambda: BufferedRecorder(0)) as pair:
        pair.left.write(b"x")
        await pair.over()
        assert isinstance(pair.server.error, RuntimeError)
        assert "get_buffer() call failed" in errors[0]["message"]


async def test_the_protocol_can_be_exchanged_for_one_of_the_other_kind(pair):
    second = BufferedRecorder(1000)
    second.transport = pair.right
    pair.left.write(b"first")
    await until(lambda: pair.server.data == b"first")
    pair.right.set_protocol(second)
    assert pair.right.get_protocol() is second
    pair.left.write(b"second")
    await until(lambda: second.data == b"second")
    pair.right.set_protocol(pair.server)


async def test_what_the_transport_tells_about_itself(pair):
    sock = pair.left.get_extra_info("socket")
    assert sock.family == socket.AF_INET
    assert pair.left.get_extra_info("peername") == pair.listening.sockets[0].getsockname()
    assert pair.left.get_extra_info("sockname") == pair.right.get_extra_info("peername")
    assert pair.left.get_extra_info("lane") in ("vmsplice", "copy")
    assert pair.left.get_extra_info("pool").size > 0
    assert pair.left.get_extra_info("nothing", 7) == 7
    pair.left.write(b"x" * 1000)
    await until(lambda: len(pair.server.data) == 1000)
    assert pair.left.get_extra_info("stats").copied_bytes == 1000
    assert pair.left.can_write_eof()


@pytest.mark.parametrize("callback", ["data_received", "eof_received"])
@pytest.mark.parametrize("kind", [ZeroDivisionError, asyncio.CancelledError])
async def test_an_error_of_the_protocol_costs_the_connection_and_is_reported(make_context, callback, kind):
    def fail(*_):
        raise kind

    class Failing(Recorder):
        locals()[callback] = fail

    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
    async with paired(make_context(), make_context(), server=Failing) as pair:
        pair.left.write(b"x")
        pair.left.write_eof()
        await pair.over()
        assert isinstance(pair.server.error, kind)
        assert isinstance(pair.client.error, ConnectionResetError)
        assert errors[0]["message"] == f"Fatal error: protocol.{callback}() call failed."
        assert errors[0]["transport"] is pair.right


async def test_what_is_no_memory_is_refused_and_changes_nothing(pair):
    for data in ("text", None, 7, ["list"]):
        with pytest.raises(TypeError, match="bytes-like"):
            pair.left.write(data)
    pair.left.write(b"")
    pair.left.write(bytearray())
    pair.left.write(b"end")
    await until(lambda: pair.server.data == b"end")


async def test_nothing_is_left_of_a_connection_that_was_closed(make_context):
    client, server = make_context(), make_context()
    async with paired(client, server) as pair:
        pair.left.write(b"x" * MIB)
        pair.left.close()
        await pair.over()
    for context in (client, server):
        assert context.pool.stats().in_flight == 0
        assert context.receive_memory.promised == 0
        assert context.receive_memory.used == 0


async def test_each_loop_has_one_context_for_those_who_bring_none():
    from zcserver.transport.shared import context_of

    loop = asyncio.get_running_loop()
    mine = context_of(loop)
    assert context_of(loop) is mine
    other = asyncio.new_event_loop()
    theirs = context_of(other)
    assert theirs is not mine
    other.close()
    del other
    assert isinstance(theirs, zcserver.Context)
