"""Whatever the sizes and however the bytes arrive, each message is whole, stays as it is, and goes back.

The socket is played by a kernel that hands out scripted bytes, the peer by a codec.
"""

import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcserver.kernel.calls import Kernel
from zcserver.memory import Pool
from zcserver.receiving.inbox import CHUNKS, MESSAGES, Inbox
from zcserver.receiving.memory import ReceiveMemory
from zcserver.receiving.receiver import Receiver
from zcserver.sending.statistics import TransferStatistics
from zcserver_protocol.codec import Codec, Limits
from zcserver_protocol.errors import RemoteProtocolError
from zcserver_protocol.frames import CREDIT, END_MESSAGE, HEADER_SIZE, UNKNOWN, pack

KIB = 1024
MIB = 1 << 20
MIDDLE = 64 * KIB
LARGEST = MIB // 3 - HEADER_SIZE  # that may share a block
SIZES = [0, 1, 100, 16 * KIB, 16 * KIB + 1, 20_000, 48 * KIB, MIDDLE - 1, MIDDLE, MIDDLE + 1, 300 * KIB]
SIZES += [LARGEST, LARGEST + 1]


class Script(Kernel):
    """``here`` can be read now; more than that blocks."""

    def __init__(self):
        self.here = bytearray()
        self.calls = 0

    def recv_into(self, sock, buffer):
        return self.recvmsg_into(sock, [buffer])

    def recvmsg_into(self, sock, buffers):
        self.calls += 1
        if not self.here:
            raise BlockingIOError
        total = 0
        for buffer in buffers:
            count = min(len(buffer), len(self.here))
            buffer[:count] = self.here[:count]
            del self.here[:count]
            total += count
        return total

    def unread(self, sock):
        return len(self.here)


class Ends:
    """A sending codec, and a receiver with one stream."""

    def __init__(self, mode=MESSAGES, max_message=64 * MIB):
        limits = Limits(window=8 * MIB)
        self.peer = Codec("client", limits, 0.0)
        codec = Codec("server", limits, 0.0)
        self.kernel = Script()
        self.pool = Pool(64 * MIB)
        self.memory = ReceiveMemory(256 * MIB, self.pool)
        self.statistics = TransferStatistics()
        self.refused = []
        self.opened = []
        self.receiver = Receiver(
            None, self.kernel, codec, self.memory, self.statistics, None, self.opened.append,
            lambda channel: None, lambda channel: None, lambda channel, error: self.refused.append(error),
        )  # fmt: skip
        self.codec = codec
        self.exchange()
        self.stream = self.peer.open("TEST", "/", {}, 0)
        self.exchange()
        state = next(event.stream for event in self.opened if type(event).__name__ == "Opened")
        self.inbox = Inbox(state, self.memory, 32 * MIB, max_message)
        self.inbox.mode = mode
        state.owner = SimpleNamespace(inbox=self.inbox, wants_news=False)
        self.memory.reserve(40 * MIB)
        codec.reply(state, {}, 0)
        codec.credit(state, 40 * MIB)
        self.exchange()

    def exchange(self):
        for _ in range(4):
            self.arrive(self.peer.take_control())
            answer = memoryview(self.codec.take_control())
            while answer:
                needs = self.peer.needs
                self.peer.feed(answer[:needs])
                answer = answer[needs:]

    def arrive(self, data):
        self.kernel.here += data
        while self.kernel.here:
            self.receiver.read()

    def frame(self, payload, left=0, flags=END_MESSAGE):
        header = bytearray(HEADER_SIZE)
        self.peer.data_header_into(header, 0, self.stream, len(payload), left, 0 if left else flags, 0)
        return bytes(header) + payload

    def message(self, payload, frame=MIB, known=True):
        """In frames of at most ``frame`` bytes, which tell how much follows if that is ``known``."""
        parts = [payload[start : start + frame] for start in range(0, len(payload), frame)] or [b""]
        left = len(payload)
        wire = b""
        for part in parts:
            left -= len(part)
            wire += self.frame(part, left if known else left and UNKNOWN)
        return wire


def content(number, size):
    return bytes([number % 251 + 1]) * size


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_message_is_whole_and_stays_as_it_is(data):
    ends = Ends()
    sizes = data.draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=40), label="sizes")
    frame = data.draw(st.sampled_from([5_000, 20_000, MIDDLE, MIB]), label="frame")
    wire = b"".join(ends.message(content(number, size), frame) for number, size in enumerate(sizes))
    keep = data.draw(st.integers(1, 5), label="keep every n-th")
    kept, taken = [], 0
    while wire:
        step = data.draw(st.sampled_from([10, HEADER_SIZE, 5_000, 70_000, 200_000, MIB]), label="arrives")
        ends.arrive(wire[:step])
        wire = wire[step:]
        while (view := ends.inbox.take_message()) is not None:
            assert view == content(taken, sizes[taken])
            if taken % keep == 0:
                kept.append((taken, view))
            taken += 1
            del view
    assert taken == len(sizes)
    for number, view in kept:
        assert view == content(number, sizes[number]), "what the application keeps was overwritten"
    kept.clear()
    del view
    assert ends.memory.used == ends.memory.promised, "memory did not come back"


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_chunks_are_the_bytes_in_order(data):
    ends = Ends(CHUNKS)
    sizes = data.draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=30), label="sizes")
    wire = b"".join(ends.message(content(number, size), 50_000) for number, size in enumerate(sizes))
    got = bytearray()
    while wire:
        step = data.draw(st.sampled_from([HEADER_SIZE, 5_000, 200_000, MIB]), label="arrives")
        ends.arrive(wire[:step])
        wire = wire[step:]
        while (view := ends.inbox.take_chunk()) is not None:
            got += view
    assert got == b"".join(content(number, size) for number, size in enumerate(sizes))


@pytest.mark.parametrize("size", [0, 1, 100, 16 * KIB])
@pytest.mark.parametrize("leave", ["taken", "dropped", "forgotten"])
def test_short_messages_that_nobody_took_are_on_the_account(size, leave):
    ends = Ends()
    idle = ends.memory.used
    ends.arrive(b"".join(ends.message(content(1, size)) for _ in range(200)))
    tuples = 200 * sys.getsizeof((b"", True, 0))
    assert ends.memory.used >= idle + tuples, "what was promised for them is held, and what keeps them"
    if leave == "taken":
        while ends.inbox.take_message() is not None:
            pass
    elif leave == "dropped":
        ends.inbox.drop()
    else:
        ends.inbox.state.owner.inbox = ends.inbox = None
    assert ends.memory.used == idle - 200 * (HEADER_SIZE + size)


@pytest.mark.parametrize("known", [True, False])
def test_a_message_in_short_frames_is_as_long_as_allowed_and_no_longer(known):
    ends = Ends(max_message=100 * KIB)
    ends.arrive(ends.message(content(1, 100 * KIB), 16 * KIB, known))
    assert ends.inbox.take_message() == content(1, 100 * KIB)
    ends.arrive(ends.message(content(2, 100 * KIB + 1), 16 * KIB, known))
    assert "max_message" in str(ends.refused[0])


def test_an_assembled_message_counts_with_all_its_frames():
    ends = Ends()
    wire = ends.message(content(1, 3 * MIB), MIB)
    ends.arrive(wire)
    assert ends.inbox.held == len(wire)


def test_what_a_peer_only_claims_takes_no_memory_that_others_need():
    ends = Ends()
    half = ends.memory.limit // 2
    others = ends.memory.take(half - 41 * MIB)
    begun = ends.frame(content(1, MIB), 2 * MIB)
    ends.arrive(begun)
    assert ends.memory.used <= half
    ends.arrive(ends.message(content(1, 2 * MIB)))
    assert ends.inbox.take_message() == content(1, 3 * MIB)
    del others


def test_middle_messages_in_numbers_are_slices_of_few_blocks():
    ends = Ends()
    ends.arrive(b"".join(ends.message(content(number, MIDDLE)) for number in range(4)))
    calls, copied = ends.kernel.calls, ends.statistics.received_copied_bytes
    ends.arrive(b"".join(ends.message(content(number, MIDDLE)) for number in range(4, 16)))
    views = [ends.inbox.take_message() for _ in range(16)]
    assert [view[0] for view in views] == [content(number, 1)[0] for number in range(16)]
    assert len({id(view.obj) for view in views[4:]}) == 3
    assert ends.kernel.calls - calls <= 4
    assert ends.statistics.received_copied_bytes == copied


@pytest.mark.parametrize(("size", "count"), [(20_000, 52), (MIDDLE, 15), (200_000, 5), (LARGEST, 3)])
def test_a_peer_that_sends_faster_than_is_read_fills_larger_blocks(size, count):
    ends = Ends()
    ends.arrive(b"".join(ends.message(content(0, size)) for _ in range(3 * MIB // size)))
    while ends.inbox.take_message() is not None:
        pass
    calls, copied = ends.kernel.calls, ends.statistics.received_copied_bytes
    ends.arrive(b"".join(ends.message(content(number, size)) for number in range(count)))
    views = [ends.inbox.take_message() for _ in range(count)]
    assert [bytes(view) for view in views] == [content(number, size) for number in range(count)]
    assert len({id(view.obj) for view in views}) == 1
    assert ends.kernel.calls - calls <= 2
    assert ends.statistics.received_copied_bytes == copied
    assert ends.memory.used - ends.memory.promised == MIB


def test_an_application_that_keeps_a_few_of_many_messages_keeps_small_blocks():
    ends = Ends()
    ends.memory.unreserve(40 * MIB)
    kept = [ends.memory.take(MIB) for _ in range(ends.memory.limit // 4 // MIB)]
    ends.memory.reserve(40 * MIB)
    ends.arrive(b"".join(ends.message(content(0, MIDDLE)) for _ in range(48)))
    one = [ends.inbox.take_message() for _ in range(48)][40]
    assert len(one) < ends.memory.used - ends.memory.promised - len(kept) * MIB <= 5 * MIDDLE


def test_a_lone_middle_message_has_memory_of_its_own():
    ends = Ends()
    for number in range(4):
        ends.arrive(ends.message(content(number, MIDDLE)))
    views = [ends.inbox.take_message() for _ in range(4)]
    assert len({id(view.obj) for view in views}) == 4
    assert ends.memory.used - ends.memory.promised == 4 * MIDDLE


def test_an_idle_connection_holds_no_block():
    ends = Ends()
    ends.arrive(b"".join(ends.message(content(number, MIDDLE)) for number in range(16)))
    while ends.inbox.take_message() is not None:
        pass
    assert ends.memory.used == ends.memory.promised


def test_a_stream_given_up_while_its_frame_lands_in_a_block_harms_nobody():
    ends = Ends()
    ends.arrive(b"".join(ends.message(content(number, MIDDLE)) for number in range(4)))
    wire = b"".join(ends.message(content(number, MIDDLE)) for number in range(4, 8))
    ends.arrive(wire[: len(wire) - 30_000])
    ends.inbox.discarding = True
    ends.arrive(wire[len(wire) - 30_000 :])
    assert ends.codec.payload_left == 0
    assert ends.codec.acknowledgeable == ends.peer.framed
    assert [ends.inbox.take_message()[0] for _ in range(7)] == [content(n, 1)[0] for n in range(7)]
    assert ends.inbox.take_message() is None


def test_memory_attached_while_a_frame_lands_in_a_block_gets_it_first():
    ends = Ends(CHUNKS)
    ends.arrive(b"".join(ends.message(content(number, MIDDLE)) for number in range(4)))
    while ends.inbox.take_chunk() is not None:
        pass
    wire = b"".join(ends.message(content(number, MIDDLE)) for number in range(4, 8))
    ends.arrive(wire[: len(wire) - 30_000])
    sink = bytearray(4 * MIDDLE)
    filled = []
    for _ in range(4):
        ends.inbox.attach(memoryview(sink)[sum(filled) :])
        if not ends.inbox.sink_done:
            ends.arrive(wire[len(wire) - 30_000 :])
        filled.append(ends.inbox.detach())
    assert filled == [MIDDLE] * 4
    assert bytes(sink) == b"".join(content(number, MIDDLE) for number in range(4, 8))


def test_a_message_too_large_is_refused_in_a_block_too():
    ends = Ends(max_message=40_000)
    ends.arrive(b"".join(ends.message(content(number, 30_000)) for number in range(8)))
    ends.arrive(ends.message(content(8, 30_000)) + ends.message(content(9, 50_000)))
    assert [len(ends.inbox.take_message()) for _ in range(9)] == [30_000] * 9
    (error,) = ends.refused
    assert "50000 bytes exceeds max_message (40000 bytes)" in str(error)


@pytest.mark.parametrize("size", [0, 100, 20_000, MIDDLE])
def test_messages_that_come_together_count_like_those_that_come_alone(size):
    counts = []
    for together in (False, True):
        ends = Ends()
        ends.arrive(b"".join(ends.message(content(number, MIDDLE)) for number in range(4)))  # a block is due
        messages = [ends.message(content(number, size)) for number in range(12)]
        for wire in [b"".join(messages)] if together else messages:
            ends.arrive(wire)
        inbox, state = ends.inbox, ends.inbox.state
        counts.append(
            (inbox.held, inbox.messages, ends.memory.promised, ends.codec.acknowledged, state.recv_messages,
             ends.statistics.received_bytes)
        )  # fmt: skip
    assert counts[0] == counts[1]
    assert counts[0][2] == 40 * MIB - counts[0][0]


@pytest.mark.parametrize("mode", [MESSAGES, CHUNKS])
def test_a_message_too_large_among_short_ones_is_refused_to_those_who_want_messages(mode):
    ends = Ends(mode, max_message=1000)
    ends.arrive(b"".join(ends.message(content(number, size)) for number, size in enumerate([10, 1000, 1001])))
    if mode == MESSAGES:
        assert [len(ends.inbox.take_message()) for _ in range(2)] == [10, 1000]
        assert "1001 bytes exceeds max_message (1000 bytes)" in str(ends.refused[0])
    else:
        assert [len(ends.inbox.take_chunk()) for _ in range(3)] == [10, 1000, 1001]
        assert not ends.refused


@pytest.mark.parametrize("size", [100, MIDDLE])
def test_a_broken_rule_behind_whole_messages_is_seen_after_them(size):
    ends = Ends()
    ends.arrive(b"".join(ends.message(content(number, size)) for number in range(4)))
    wire = bytearray(b"".join(ends.message(content(number, size)) for number in range(4, 8)))
    wire[3 * (HEADER_SIZE + size) + 2] = 1  # the reserved field of the fourth
    with pytest.raises(RemoteProtocolError, match="reserved 256"):
        ends.arrive(bytes(wire))
    assert [ends.inbox.take_message()[:1] for _ in range(7)] == [content(number, 1) for number in range(7)]
    assert ends.inbox.take_message() is None


@pytest.mark.parametrize(
    ("size", "count"), [*((MIDDLE, count) for count in (15, 16, 17, 40)), (KIB - HEADER_SIZE, KIB)]
)
def test_a_full_turn_leaves_no_acknowledgement_behind(size, count):
    """What fills a turn exactly is acknowledged at once; what does not is when the rest is read."""
    ends = Ends()
    ends.arrive(b"".join(ends.message(content(number, size)) for number in range(count)))
    assert ends.codec.acknowledged == ends.peer.framed


def test_a_turn_ends_after_about_a_thousand_control_frames():
    ends = Ends()
    for number in range(5000):
        ends.kernel.here += pack(CREDIT, stream=ends.stream.id, offset=number)
    ends.receiver.read()
    left = len(ends.kernel.here) // HEADER_SIZE
    assert 5000 - 1024 - 2048 <= left < 5000  # (what one system call has read is gone through)
