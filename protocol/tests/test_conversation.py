"""Whole conversations of two codecs joined in memory."""

import pytest
from codec_pair import End, Piece, deliver, joined, settle, stream_between, unhurried
from hypothesis import given
from hypothesis import strategies as st

from zcserver_protocol import events, frames
from zcserver_protocol.codec import Limits
from zcserver_protocol.errors import ErrorCode, RemoteProtocolError, TooManyStreams
from zcserver_protocol.frames import END_MESSAGE, END_STREAM
from zcserver_protocol.streams import StreamState


def close(client: End, server: End) -> None:
    client.codec.goaway(ErrorCode.NO_ERROR, "")
    settle(client, server)


def test_a_file_is_fetched_committed_and_both_ends_part() -> None:
    client, server = joined()
    ours = client.codec.open("GET", "/film", {"offset": 0}, 1 << 20)
    client.codec.goaway(ErrorCode.NO_ERROR, "one file only")
    settle(client, server)
    [opened] = server.of(events.Opened)
    assert isinstance(opened, events.Opened)
    theirs = opened.stream
    server.codec.reply(theirs, {"size": 300}, 64)
    server.send(theirs, b"a" * 200, 0, 100)
    server.send(theirs, b"b" * 100, END_MESSAGE | END_STREAM)
    settle(client, server)
    assert b"".join(piece.payload for piece in client.pieces) == b"a" * 200 + b"b" * 100
    assert server.codec.peer_acknowledged == 364
    assert not client.codec.finished
    client.codec.commit(ours, 1)
    client.send(ours, b"", END_STREAM)
    settle(client, server)
    [committed] = server.of(events.Committed)
    assert isinstance(committed, events.Committed)
    assert committed.count == 1
    for end in (client, server):
        assert not end.codec.streams
        assert end.codec.finished


@pytest.mark.parametrize("portion", [1, 7, 31, 33])
def test_a_conversation_survives_any_segmentation(portion: int) -> None:
    client, server = End("client"), End("server")

    def trickle() -> None:
        while client.wire or server.wire or client.codec.control_pending or server.codec.control_pending:
            deliver(client, server, portion)
            deliver(server, client, portion)

    client.write_control()
    trickle()
    ours = client.codec.open("PUT", "/x", {}, 0)
    trickle()
    server.codec.reply(server.codec.streams[ours.id], {}, 1000)
    trickle()
    client.send(ours, b"hello", END_MESSAGE)
    client.send(ours, b"", END_MESSAGE | END_STREAM)
    trickle()
    assert [bytes(piece.payload) for piece in server.pieces] == [b"hello", b""]


def test_either_end_opens_streams_and_their_ids_do_not_collide() -> None:
    client, server = joined()
    assert [client.codec.open("A", "", {}, 0).id for _ in range(3)] == [1, 3, 5]
    assert [server.codec.open("B", "", {}, 0).id for _ in range(3)] == [2, 4, 6]
    settle(client, server)
    assert set(client.codec.streams) == set(server.codec.streams) == {1, 2, 3, 4, 5, 6}
    assert not client.codec.streams[2].ours
    assert client.codec.streams[1].ours


def test_an_acknowledgement_may_end_within_a_frame() -> None:
    client, server = joined()
    ours, _ = stream_between(client, server)
    client.send(ours, b"x" * 1000, END_MESSAGE)
    deliver(client, server, 532)
    server.codec.acknowledge()
    [acked] = deliver(server, client)
    assert isinstance(acked, events.Acked)
    assert acked.upto == 532


def test_data_of_a_reset_stream_is_drained_and_acknowledged() -> None:
    client, server = joined()
    ours, theirs = stream_between(client, server)
    client.send(ours, b"x" * 100, END_MESSAGE)
    deliver(client, server, 60)  # in the middle of the frame
    server.codec.reset(theirs, ErrorCode.TOO_LARGE, "no")
    client.send(ours, b"y" * 50, END_MESSAGE | END_STREAM)
    settle(client, server)
    [reset] = client.of(events.Reset)
    assert isinstance(reset, events.Reset)
    assert reset.code == ErrorCode.TOO_LARGE
    late = server.pieces[-1]
    assert late == Piece(None, 50, 0, END_MESSAGE | END_STREAM, bytearray(b"y" * 50))
    assert client.codec.peer_acknowledged == client.codec.framed == 214
    assert theirs.recv_messages == 0
    assert not theirs.recv_ended


def test_a_reset_does_not_break_the_frame_that_was_begun() -> None:
    client, server = joined()
    ours, theirs = stream_between(client, server)
    client.frame(ours, 100, 0, remaining=900)
    client.write_control()
    client.wire += client.header + b"x" * 40
    client.codec.data_written(72)
    client.codec.reset(ours, ErrorCode.CANCELLED, "changed my mind")
    client.wire += b"x" * 60  # the frame first, then control
    client.codec.data_written(60)
    settle(client, server)
    assert theirs.reset_code == ErrorCode.CANCELLED
    assert server.codec.acknowledged == 132
    other, _ = stream_between(client, server)
    client.send(other, b"still in step", END_MESSAGE)
    settle(client, server)
    assert server.pieces[-1].payload == b"still in step"


def test_resets_that_cross_are_no_violation() -> None:
    client, server = joined()
    ours, theirs = stream_between(client, server)
    client.codec.reset(ours, 1000, "mine")
    server.codec.reset(theirs, 2000, "yours")
    settle(client, server)
    assert (ours.reset_code, theirs.reset_code) == (1000, 2000)
    assert not client.of(events.Reset) + server.of(events.Reset)


def test_late_control_frames_of_a_finished_stream_are_ignored() -> None:
    client, server = joined()
    ours, theirs = stream_between(client, server)
    client.send(ours, b"x", END_MESSAGE)
    deliver(client, server)
    server.codec.credit(theirs, 1 << 30)
    server.codec.commit(theirs, 1)
    client.codec.reset(ours, 0, "")
    settle(client, server)
    assert not client.of(events.Credited)
    assert not client.of(events.Committed)


def test_too_many_streams_are_refused_one_by_one() -> None:
    client, server = joined(server=Limits(max_streams=1))
    stream_between(client, server)
    body = b'{"method":"GET","path":"/"}'
    client.wire += (
        frames.pack(frames.OPEN, stream=7, length=len(body)) + body
    )  # by a peer that does not count
    client.wire += frames.pack(frames.DATA, END_MESSAGE, stream=7, length=1) + b"x"
    client.codec._next_id = 9
    client.codec.framed = client.codec.written = 33
    settle(client, server)
    assert len(server.of(events.Opened)) == 1
    assert server.pieces[-1].stream is None
    assert server.codec.acknowledged == 33
    assert server.codec.streams.keys() == {1}


def test_a_slot_is_free_only_when_the_end_of_its_stream_is_written() -> None:
    """An OPEN overtakes DATA that waits for the socket: the peer would see one stream too many."""
    client, server = joined(server=Limits(max_streams=1))
    ours, theirs = stream_between(client, server)
    server.send(theirs, b"", END_STREAM)
    settle(client, server)
    client.frame(ours, 1, END_MESSAGE | END_STREAM)
    assert not client.codec.streams
    assert client.codec.openable == 0
    with pytest.raises(TooManyStreams):
        client.codec.open("GET", "/2", {}, 0)
    client.write(b"x")
    assert client.codec.openable == 1
    client.codec.open("GET", "/2", {}, 0)
    settle(client, server)
    assert len(server.of(events.Opened)) == 2
    assert not client.of(events.Reset)


def test_after_goaway_open_streams_run_to_their_end_and_new_ones_are_refused() -> None:
    client, server = joined()
    ours, theirs = stream_between(client, server)
    crossing = server.codec.open("PUSH", "/late", {}, 0)
    client.codec.goaway(ErrorCode.NO_ERROR, "maintenance")
    client.codec.goaway(ErrorCode.NO_ERROR, "twice is once")
    settle(client, server)
    [goaway] = server.of(events.Goaway)
    assert isinstance(goaway, events.Goaway)
    assert (goaway.reason, goaway.last_stream) == ("maintenance", 0)
    assert crossing.reset_code == ErrorCode.REFUSED
    assert client.codec.goaway_received  # the answer comes by itself
    assert not client.codec.finished
    server.send(theirs, b"last words", END_MESSAGE | END_STREAM)
    client.send(ours, b"bye", END_MESSAGE | END_STREAM)
    settle(client, server)
    assert client.codec.finished
    assert server.codec.finished


def test_nobody_is_finished_before_everything_is_acknowledged() -> None:
    client, server = joined()
    ours, theirs = stream_between(client, server)
    server.send(theirs, b"", END_STREAM)
    client.send(ours, b"x" * 100, END_MESSAGE | END_STREAM)
    client.codec.goaway(ErrorCode.NO_ERROR, "")
    settle(client, server, acknowledge=False)
    assert not client.codec.streams
    assert not server.codec.streams
    assert not client.codec.finished
    assert not server.codec.finished
    settle(client, server)
    assert client.codec.finished
    assert server.codec.finished


def test_late_data_of_a_reset_stream_is_acknowledged_before_anybody_is_finished() -> None:
    """Without the final GOAWAY, the resetting end would send FIN with the peer's DATA still on its way."""
    client, server = joined()
    _, theirs = stream_between(client, server)
    client.codec.goaway(ErrorCode.NO_ERROR, "")
    settle(client, server)
    server.send(theirs, b"x" * 100, END_MESSAGE)
    server.codec.acknowledge()
    client.codec.reset(client.codec.streams[1], ErrorCode.CANCELLED, "enough")
    deliver(client, server)
    assert not client.codec.streams
    assert not client.codec.finished
    assert not server.codec.finished
    deliver(server, client)
    assert client.codec.acknowledgeable == 132
    assert not client.codec.finished
    settle(client, server)
    assert client.codec.finished
    assert server.codec.finished
    assert server.codec.peer_acknowledged == 132


def test_data_after_the_final_goaway_is_a_violation() -> None:
    client, server = joined()
    stream_between(client, server)
    client.codec.reset(client.codec.streams[1], 0, "")
    close(client, server)
    assert client.codec.finished
    with pytest.raises(RemoteProtocolError, match="after the final"):
        client.read(frames.pack(frames.DATA, END_MESSAGE, stream=1))


def test_a_finished_end_answers_no_ping_and_still_understands_the_peer() -> None:
    client, server = joined()
    close(client, server)
    client.read(frames.pack(frames.PING, offset=5))
    assert not client.codec.control_pending
    client.codec.tick(20.0, False)
    assert not client.codec.control_pending
    assert client.codec.finished


def test_a_version_of_the_future_is_refused_in_words() -> None:
    server = End("server")
    body = b'{"versions":[7,9],"max_frame":16384,"max_control":1024,"window":16384,"max_streams":0}'
    client_hello = frames.PREFACE + frames.pack(frames.HELLO, length=len(body)) + body
    with pytest.raises(RemoteProtocolError, match="versions 7 to 9") as caught:
        server.read(client_hello)
    assert caught.value.code is ErrorCode.VERSION
    client = End("client")
    [goaway] = client.read(server.codec.take_control())[-1:]
    assert isinstance(goaway, events.Goaway)
    assert goaway.code == ErrorCode.VERSION
    assert "this end 1 to 1" in goaway.reason


def test_a_newer_peer_that_also_speaks_version_1_is_met_there() -> None:
    client = End("client")
    body = (
        b'{"versions":[1,9],"max_frame":16384,"max_control":1024,"window":16384,"max_streams":0,'
        b'"features":["teleport","NOT A NAME"],"colour":{"deep":["thing"]}}'
    )
    [hello] = client.read(frames.PREFACE + frames.pack(frames.HELLO, length=len(body)) + body)
    assert isinstance(hello, events.Hello)
    assert hello.version == 1
    assert hello.limits.features == ("teleport",)


# -- any conversation of two correct ends ----------------------------------------------------------------


class Talk:
    """Two ends that do whatever hypothesis draws, as long as it is legal, over a wire of random portions."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        limits = Limits(max_frame=16384, max_streams=draw(st.integers(0, 3)), window=16384)
        self.ends = joined(limits, limits)
        self.sent: dict[tuple[str, int], bytearray] = {}

    def step(self) -> None:
        me, other = self.ends if self.draw(st.booleans()) else self.ends[::-1]
        act = self.draw(
            st.sampled_from(
                ["open", "reply", "credit", "send", "commit", "reset", "ping", "ack", "read", "read"]
            )
        )
        codec = me.codec
        streams = list(codec.streams.values())
        if act == "open" and codec.openable:
            codec.open("M", "/", {}, self.draw(st.sampled_from([0, 31, 200])))
        elif act == "ping" and len(codec._pings) < 16:
            codec.ping(self.draw(st.integers(0, 9)))
        elif act == "ack":
            codec.acknowledge()
        elif act == "read":
            deliver(other, me, self.draw(st.integers(1, 400)))
        elif streams:
            self.act_on(me, self.draw(st.sampled_from(streams)), act)

    def act_on(self, me: End, stream: StreamState, act: str) -> None:
        codec = me.codec
        if act == "reply" and not stream.ours and stream.send_state == 0:
            codec.reply(stream, {}, self.draw(st.sampled_from([0, stream.recv_credit + 100])))
        elif act == "credit" and not stream.recv_ended:
            codec.credit(stream, stream.recv_credit + self.draw(st.integers(0, 300)))
        elif act == "commit":
            codec.commit(stream, self.draw(st.integers(stream.recv_committed, stream.recv_messages)))
        elif act == "reset" and self.draw(st.integers(0, 4)) == 0:
            codec.reset(stream, 1000, "drawn")
        elif act == "send" and codec.sendable(stream) >= 0:
            self.send(me, stream, codec.sendable(stream))

    def send(self, me: End, stream: StreamState, room: int) -> None:
        if stream.send_remaining > 0:
            size = min(room, stream.send_remaining, self.draw(st.integers(1, 100)))
            remaining = stream.send_remaining - size
        else:
            size = self.draw(st.integers(0, min(room, 100)))
            remaining = self.draw(st.integers(0, 100)) if size else 0
        if stream.send_remaining > 0 and not size:
            return
        flags = 0 if remaining else END_MESSAGE | (END_STREAM if self.draw(st.booleans()) else 0)
        payload = bytes([stream.id % 256]) * size
        self.sent.setdefault((me.codec.role, stream.id), bytearray()).extend(payload)
        me.send(stream, payload, flags, remaining)

    def part(self) -> None:
        """Give up what is open and close: must always come to its end."""
        for end in self.ends:
            end.codec.goaway(ErrorCode.NO_ERROR, "")
            for stream in list(end.codec.streams.values()):
                end.codec.reset(stream, ErrorCode.CANCELLED, "")
        settle(*self.ends)


@unhurried
@given(st.data())
def test_two_correct_ends_never_find_fault_with_each_other(data: st.DataObject) -> None:
    talk = Talk(data.draw)
    for _ in range(data.draw(st.integers(0, 60))):
        talk.step()
    settle(*talk.ends)
    for end, other in (talk.ends, talk.ends[::-1]):
        assert (
            end.codec.peer_acknowledged == end.codec.written == end.codec.framed == other.codec.acknowledged
        )
        for stream in end.codec.streams.values():
            twin = other.codec.streams[stream.id]
            assert stream.send_offset == twin.recv_offset
            assert stream.send_wire == twin.recv_wire <= stream.send_credit
            assert stream.send_credit == twin.recv_credit or twin.recv_ended  # then it is no use any more
            assert stream.send_messages == twin.recv_messages
            assert stream.send_committed == twin.recv_committed
            received = b"".join(piece.payload for piece in other.pieces if piece.stream is twin)
            assert received == talk.sent.get((end.codec.role, stream.id), b"")
        assert len(end.codec.streams) == len(other.codec.streams)
        # No stream is refused: whoever counts its slots is never over the limit.
        assert not [reset for reset in end.events if getattr(reset, "code", 0) == ErrorCode.REFUSED]
    talk.part()
    for end in talk.ends:
        assert end.codec.finished
        assert not end.codec.streams
        assert end.codec._own_streams == end.codec._peer_streams == 0
