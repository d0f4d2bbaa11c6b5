"""Safety rules broken on purpose. ``ZCSERVER_MUTANT=name`` plants one (tests/conftest.py).

Each names the test that must fail while it is planted, and what that failure says; ``test_mutants.py``
sees to it that it does.
"""

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import pytest

MUTANTS: dict[str, tuple[str, str, Callable[[pytest.MonkeyPatch], None]]] = {}


def mutant(
    test: str, because: str = "TimeoutError"
) -> Callable[[Callable[[pytest.MonkeyPatch], None]], None]:
    def register(plant: Callable[[pytest.MonkeyPatch], None]) -> None:
        MUTANTS[plant.__name__] = (test, because, plant)

    return register


SAFETY = "tests/test_safety.py::"
DEADLOCKS = "tests/test_deadlocks.py::"
CLOSING = "tests/test_closing.py::"
SLOW_PEER = (
    f"{SAFETY}test_a_peer_that_reads_late_finds_every_digest_right_although_pages_are_poisoned"
    "[asyncio-reference-loopback]"
)


@mutant(SLOW_PEER, because="was changed while it was in flight")
def recycle_when_tcp_has_acknowledged(patch: pytest.MonkeyPatch) -> None:
    """What SIOCOUTQ does not count any more is taken for free."""
    from zcserver.sending.sender import Sender

    pump = Sender.pump

    def too_early(self: Any) -> bool:
        blocked = pump(self)
        lanes = self._lanes
        acknowledged = lanes.written - lanes._kernel.unacknowledged(lanes._sock)
        for frame in self.ledger:
            count = bisect_right(frame.ends, acknowledged - frame.end + frame.nbytes)
            for outgoing in frame.messages[: count if frame.last else 0]:
                outgoing.memory_home()
        return blocked

    patch.setattr(Sender, "pump", too_early)


@mutant(
    f"{SAFETY}test_a_message_is_complete_only_with_its_last_byte[asyncio-reference]",
    because="assert not True",
)
def acknowledgement_off_by_one(patch: pytest.MonkeyPatch) -> None:
    """The last byte of a frame is not waited for."""
    from zcserver.sending.ledger import Ledger

    acknowledge = Ledger.acknowledge
    patch.setattr(Ledger, "acknowledge", lambda self, upto: acknowledge(self, upto + 1))


@mutant(
    f"{SAFETY}test_what_was_begun_of_a_message_is_read_before_it_fails[asyncio-reference-False]",
    because="assert received == b",
)
def fail_what_is_still_to_be_read(patch: pytest.MonkeyPatch) -> None:
    """The program is told that its message is lost while bytes of it wait for the socket."""
    from zcserver.sending.message import Outgoing

    patch.setattr(Outgoing, "doom", Outgoing.resolve)


@mutant("tests/memory/test_buffer.py", because="DID NOT RAISE")
def release_twice(patch: pytest.MonkeyPatch) -> None:
    """A buffer that is home may be given back once more: two owners for the same pages."""
    from zcserver.memory.buffer import FILLING, Buffer

    release = Buffer.release

    def again(self: Any) -> None:
        self.state = FILLING
        release(self)

    patch.setattr(Buffer, "release", again)


@mutant(f"{DEADLOCKS}test_a_full_socket_is_written_on_as_soon_as_it_takes_more[asyncio-reference]")
def lost_writable_wakeup(patch: pytest.MonkeyPatch) -> None:
    """EAGAIN, and nobody asks to be told when the socket takes bytes again."""
    from zcserver.engine import Engine

    patch.setattr(Engine, "on_writable", lambda self: None)


@mutant(
    f"{CLOSING}test_three_megabytes_sent_and_closed_at_once_arrive[asyncio-reference]",
    because="ConnectionLostError",
)
def close_with_unread_input(patch: pytest.MonkeyPatch) -> None:
    """close() at once, with an ACK unread: the kernel sends RST, and the peer loses what it had not read."""
    from zcserver.engine import Engine

    def careless(self: Any, deadline: float) -> None:
        self.flush()
        self.ending._close(None)

    patch.setattr(Engine, "close", careless)


@mutant(
    f"{SAFETY}test_a_blocked_connection_leaves_nothing_in_the_shared_pipe[asyncio-reference]",
    because="RemoteProtocolError",  # it is given what the blocked one had queued
)
def dirty_pipe_reused(patch: pytest.MonkeyPatch) -> None:
    """What the socket did not take stays in the pipe that everybody shares."""
    from zcserver.kernel.pipe import Pipe

    def keep(self: Any) -> None:
        self.queued = 0

    patch.setattr(Pipe, "discard", keep)


@mutant(f"{DEADLOCKS}test_an_end_that_cannot_write_goes_on_reading[asyncio-reference]")
def reading_waits_for_writing(patch: pytest.MonkeyPatch) -> None:
    """Deadlock 1: nothing is read while the socket takes nothing."""
    from zcserver.engine import Engine

    on_readable = Engine.on_readable

    def only_if_writable(self: Any) -> None:
        if not self._writer_armed:
            on_readable(self)

    patch.setattr(Engine, "on_readable", only_if_writable)


@mutant(f"{DEADLOCKS}test_a_stream_that_nobody_receives_from_does_not_stop_the_others[asyncio-reference]")
def first_stream_first(patch: pytest.MonkeyPatch) -> None:
    """Deadlock 2: a stream without credit stays at the head of the queue."""
    from zcserver.sending.framing import Framer

    set_aside = Framer._set_aside

    def insist(self: Any, channel: Any) -> None:
        if channel.outgoing:
            raise BlockingIOError
        set_aside(self, channel)

    patch.setattr(Framer, "_set_aside", insist)


@mutant(f"{DEADLOCKS}test_acknowledgements_pass_between_the_frames_of_a_long_message[asyncio-reference]")
def control_waits_for_the_queue(patch: pytest.MonkeyPatch) -> None:
    """Deadlock 3: control frames go when the message that was begun is out."""
    from zcserver.sending.sender import Sender

    pump = Sender.pump

    def data_first(self: Any) -> bool:
        codec = self._codec
        due = codec.control_pending
        queues = [state.owner.outgoing for state in codec.streams.values() if state.owner is not None]
        if any(queue and queue[0].framed for queue in queues):
            codec.control_pending = False
        blocked = pump(self)
        codec.control_pending |= due
        return blocked

    patch.setattr(Sender, "pump", data_first)


@mutant(
    f"{DEADLOCKS}test_a_frame_that_was_begun_is_finished_before_its_stream_is_reset[asyncio-reference]",
    # What the peer makes of a broken framing depends on how much the socket had taken.
    because=">               await peer.read_until(lambda: others.id in peer.messages)",
)
def reset_drops_the_started_frame(patch: pytest.MonkeyPatch) -> None:
    """Deadlock 4: what is on its way is simply forgotten."""
    from zcserver.sending.sender import Sender

    cut = Sender.cut

    def forget(self: Any, channel: Any, error: BaseException, then: Callable[[], None]) -> None:
        self._lanes.train.clear()
        cut(self, channel, error, then)

    patch.setattr(Sender, "cut", forget)


@mutant(f"{DEADLOCKS}test_two_that_need_several_buffers_never_hold_half_of_them_each[asyncio-reference]")
def acquire_one_after_the_other(patch: pytest.MonkeyPatch) -> None:
    """Deadlock 5: the first buffers are held while the next are waited for."""
    from zcserver.connection import Connection

    acquire_many = Connection.acquire_many

    async def piecemeal(self: Any, sizes: list[int], timeout: float | None = None) -> list[Any]:
        import anyio.lowlevel

        buffers = []
        for size in sizes:
            buffers += await acquire_many(self, [size], timeout)
            await anyio.lowlevel.checkpoint()
        return buffers

    patch.setattr(Connection, "acquire_many", piecemeal)


TRANSPORT = "tests/transport/"


@mutant(
    f"{TRANSPORT}test_ownership.py::test_write_lets_the_caller_change_mutable_memory_at_once"
    "[asyncio-reference-bytearray-8388608-stranger]",
    because="AssertionError",
)
def keep_what_the_caller_may_change(patch: pytest.MonkeyPatch) -> None:
    """``write(bytearray)`` keeps a reference to what the socket did not take, as asyncio does."""
    from zcserver.sending.message import Outgoing

    patch.setattr(Outgoing, "keep_rest", lambda self: None)


@mutant(
    f"{TRANSPORT}test_flow_control.py::"
    "test_a_paused_reader_gets_nothing_grants_nothing_and_acknowledges_everything[asyncio-reference]",
    because="credit was granted",
)
def paused_readers_grant_credit(patch: pytest.MonkeyPatch) -> None:
    """``pause_reading`` withholds delivery, and the peer may send on all the same."""
    from zcserver.receiving.inbox import Inbox

    def generous(self: Any) -> int:
        return 1 << 20 if self._memory.reserve(1 << 20) else -1

    patch.setattr(Inbox, "grant", generous)


@mutant(
    "tests/topics/test_fan_out.py::test_what_a_dead_subscriber_holds_is_cut_loose_and_the_others_go_on"
    "[asyncio-reference]",
    because="quarantined",
)
def dead_subscriber_returns_its_pages(patch: pytest.MonkeyPatch) -> None:
    """A subscriber that died with pages of its topic in flight is taken for one that has read them."""
    from zcserver.memory.buffer import Buffer

    patch.setattr(Buffer, "abandon", Buffer.home)


@mutant(
    "tests/client/test_swapped_links.py::test_a_folder_that_becomes_a_link_between_two_pages"
    "[openat2-asyncio-reference]",
    because="AssertionError",
)
def go_through_links_below_a_tree(patch: pytest.MonkeyPatch) -> None:
    """A folder of a tree is opened wherever its name leads by now."""
    from zcserver.client import place

    patch.setattr(place, "BENEATH", 0)
    patch.setattr(place, "RESOLVE_NO_SYMLINKS", 0)
