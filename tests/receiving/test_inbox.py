"""Payload keeps its order wherever it lands: in messages, in the queue, or in the caller's memory."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zcserver.memory import Pool
from zcserver.receiving.inbox import CHUNKS, FIRST_WINDOW, MESSAGES, Inbox
from zcserver.receiving.memory import ReceiveMemory
from zcserver_protocol.frames import END_MESSAGE, HEADER_SIZE
from zcserver_protocol.streams import BOUNDARY, StreamState

KIB = 1024
SIZE = 32 * KIB


@pytest.fixture
def inbox():
    memory = ReceiveMemory(1024 * KIB, Pool(2048 * KIB))
    memory.reserve(10 * (SIZE + HEADER_SIZE))
    return Inbox(StreamState(1, "GET", "/", {}, ours=True), memory, window=512 * KIB, max_message=1024 * KIB)


def land(inbox, content):
    """Let bytes of the current frame arrive."""
    while content:
        target = inbox.landing(len(content))
        count = len(target)
        target[:] = content[:count]
        inbox.landed(count)
        content = content[count:]


@pytest.mark.parametrize("early", [0, 1000, SIZE - 1])
def test_memory_attached_in_mid_frame_gets_that_frame_before_the_next(inbox, early):
    first, second = b"1" * SIZE, b"2" * SIZE
    inbox.mode = CHUNKS
    inbox.begin(SIZE, SIZE)
    land(inbox, first[:early])
    sink = memoryview(bytearray(2 * SIZE))
    inbox.attach(sink)
    land(inbox, first[early:])
    inbox.complete(0, SIZE)
    inbox.begin(SIZE, 0)
    land(inbox, second)
    inbox.complete(END_MESSAGE, SIZE)
    assert inbox.sink_done
    assert inbox.detach() == 2 * SIZE
    assert bytes(sink) == first + second
    assert not inbox.pieces


def test_a_message_that_ends_in_mid_frame_of_small_memory_goes_on_in_the_next(inbox):
    content = bytes(range(256)) * (SIZE // 256)
    inbox.mode = CHUNKS
    inbox.begin(SIZE, 0)
    small = memoryview(bytearray(1000))
    inbox.attach(small)
    land(inbox, content)
    inbox.complete(END_MESSAGE, SIZE)
    assert inbox.detach() == 1000
    rest = memoryview(bytearray(SIZE))
    inbox.attach(rest)
    assert inbox.sink_done
    assert bytes(small) + bytes(rest[: inbox.detach()]) == content


@pytest.mark.parametrize("first", [SIZE, 0])
def test_memory_taken_back_gives_the_message_back_with_its_end(inbox, first):
    inbox.mode = CHUNKS
    inbox.attach(memoryview(bytearray(SIZE)))
    inbox.begin(first, 0)
    land(inbox, b"1" * first)
    inbox.complete(END_MESSAGE, first)
    assert inbox.sink_done
    inbox.give_back()
    inbox.begin(SIZE, 0)
    land(inbox, b"2" * SIZE)
    inbox.complete(END_MESSAGE, SIZE)
    assert inbox.messages == 2
    assert [bytes(inbox.take_message()) for _ in range(2)] == [b"1" * first, b"2" * SIZE]


def arrive(inbox, flags):
    inbox._memory.reserve(HEADER_SIZE + SIZE)
    inbox.begin(SIZE, 0 if flags else SIZE)
    land(inbox, bytes(SIZE))
    inbox.complete(flags, SIZE)
    inbox.state.recv_wire += HEADER_SIZE + SIZE


def test_what_is_taken_of_a_whole_message_does_not_count_as_taken_of_the_one_behind_it():
    inbox = flowing(16 * 1024 * KIB, FIRST_WINDOW)
    inbox.mode = CHUNKS
    for flags in 7 * [0] + [END_MESSAGE] + 8 * [0]:  # the second is as long as the window already
        arrive(inbox, flags)
    for _ in range(8):
        inbox.take_chunk()
    inbox.mode = MESSAGES
    inbox.state.recv_credit = inbox.state.recv_wire
    assert inbox.grant() >= SIZE, "the message would wait for its own end"


def stream_through(inbox, nbytes):
    """Let so many bytes come as messages that are taken at once, with credit granted as the engine does."""
    state = inbox.state
    while nbytes > 0:
        grant(inbox)
        state.recv_wire += HEADER_SIZE + SIZE
        inbox.begin(SIZE, 0)
        land(inbox, bytes(SIZE))
        inbox.complete(END_MESSAGE, SIZE)
        assert inbox.take_message() is not None
        nbytes -= SIZE


def flowing(limit, window=2048 * KIB):
    memory = ReceiveMemory(limit, Pool(limit))
    inbox = Inbox(StreamState(1, "GET", "/", {}, ours=True), memory, window, max_message=limit)
    inbox.mode = MESSAGES
    return inbox


@pytest.mark.parametrize("window", [2048 * KIB, 3072 * KIB])
def test_the_window_of_a_stream_that_flows_grows_to_its_limit(window):
    inbox = flowing(16 * 1024 * KIB, window)
    assert inbox.window == FIRST_WINDOW
    stream_through(inbox, 8 * 1024 * KIB)
    assert inbox.window == window


def test_the_window_does_not_grow_into_the_last_half_of_the_memory():
    inbox = flowing(2048 * KIB)
    stream_through(inbox, 8 * 1024 * KIB)
    assert FIRST_WINDOW < inbox.window <= 1024 * KIB


def grant(inbox):
    if inbox.grant_due:
        inbox.state.recv_credit += max(0, inbox.grant())


def cut(inbox, sizes):
    """Send messages as our sender does, cut where credit ends; return the payload sizes of their frames.

    The application takes what has come when the credit is used up.
    """
    state, frames = inbox.state, []

    def room(left):
        return min(left, state.recv_credit - state.recv_wire - HEADER_SIZE)

    for size in sizes:
        left = size
        while left:
            if room(left) <= 0:
                grant(inbox)
                while inbox.take_message() is not None:
                    grant(inbox)
            frame = room(left)
            assert frame > 0, f"{left} of {size} bytes wait for credit that nobody will give"
            left -= frame
            state.recv_wire += HEADER_SIZE + frame
            state.recv_remaining = left or BOUNDARY
            inbox.begin(frame, left)
            land(inbox, bytes(frame))
            inbox.complete(0 if left else END_MESSAGE, frame)
            frames.append(frame)
    return frames


@pytest.mark.parametrize("size", [64 * KIB, 256 * KIB, 1024 * KIB])
def test_messages_of_one_length_are_not_cut_where_credit_ends(size):
    inbox = flowing(16 * 1024 * KIB)
    cut(inbox, [100, 70 * KIB, 3000] + [size] * (8 * 1024 * KIB // size))  # until the window has grown
    assert set(cut(inbox, [size] * 20)) == {size}


@settings(deadline=None)
@given(st.lists(st.integers(1, 600 * KIB), max_size=30))
@example([600 * KIB] * 3)
def test_a_sender_that_has_used_its_credit_is_always_given_more(sizes):
    for limit in (2048 * KIB, 16 * 1024 * KIB):
        cut(flowing(limit), sizes)
