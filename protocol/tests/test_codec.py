"""One codec: what it refuses from its caller, what it does with time, what it queues and in which order."""

from collections.abc import Callable
from typing import Any

import pytest
from codec_pair import End, deliver, handshake, joined, settle, snapshot, stream_between

from zcserver_protocol import events, frames
from zcserver_protocol.codec import Codec, Limits
from zcserver_protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError, TooManyStreams
from zcserver_protocol.frames import CRC, END_MESSAGE, END_STREAM, FEATURE_CRC32C, HEADER_SIZE, UNKNOWN
from zcserver_protocol.outbox import MAX_PENDING_ANSWERS, MAX_PENDING_PONGS
from zcserver_protocol.streams import StreamState


def refused(codec: Codec, call: Callable[[], object], kind: type[Exception] = LocalProtocolError) -> str:
    before = snapshot(codec)
    with pytest.raises(kind) as caught:
        call()
    assert snapshot(codec) == before
    return str(caught.value)


# -- the handshake ---------------------------------------------------------------------------------------


def test_a_client_speaks_first_and_a_server_only_to_a_client() -> None:
    client, server = Codec("client", Limits(), 0.0), Codec("server", Limits(), 0.0)
    assert client.control_pending
    assert not server.control_pending
    assert server.feed(client.take_control()[:8]) is None
    assert server.control_pending
    assert server.take_control().startswith(frames.PREFACE)


def test_hello_tells_limits_version_and_common_features() -> None:
    client, server = joined(
        Limits(max_frame=65536, features=("a", "b")),
        Limits(window=1 << 20, max_streams=3, features=("b", "c")),
    )
    [hello] = client.of(events.Hello)
    assert isinstance(hello, events.Hello)
    assert hello.limits.window == 1 << 20
    assert hello.limits.max_streams == 3
    assert hello.version == 1
    assert hello.features == client.codec.features == server.codec.features == {"b"}
    assert client.codec.acknowledge_every == 1 << 18
    assert server.codec.peer is not None
    assert server.codec.peer.max_frame == 65536


@pytest.mark.parametrize("role", ["client", "server"])
def test_another_protocol_gets_a_refusal_not_a_hang(role: str) -> None:
    codec = Codec(role, Limits(), 0.0)
    with pytest.raises(RemoteProtocolError, match="does not speak ZCP") as caught:
        codec.feed(b"GET / HT")
    assert caught.value.code is ErrorCode.PROTOCOL
    assert codec.control_pending
    refusal = codec.take_control()
    assert refusal.startswith(frames.PREFACE)
    assert frames.unpack(refusal[8:40]).type == frames.GOAWAY
    with pytest.raises(RemoteProtocolError, match="does not speak ZCP"):
        codec.feed(b"")
    assert codec.deadline() is None


def test_a_client_that_sent_its_preface_does_not_repeat_it_in_the_refusal() -> None:
    codec = Codec("client", Limits(), 0.0)
    codec.take_control()
    with pytest.raises(RemoteProtocolError):
        codec.feed(b"SSH-2.0-")
    assert frames.unpack(codec.take_control()[:32]).type == frames.GOAWAY


def test_limits_out_of_range_are_refused_where_they_are_made() -> None:
    for wrong in (
        {"max_frame": 1024},
        {"max_frame": 2 << 20},
        {"max_control": 100},
        {"window": 0},
        {"max_streams": -1},
        {"features": ("Ä",)},
        {"features": ("x",) * 33},
        {"ping_seconds": 0},
    ):
        with pytest.raises(LocalProtocolError):
            Limits(**wrong)  # type: ignore[arg-type]
    with pytest.raises(LocalProtocolError, match="role"):
        Codec("peer", Limits(), 0.0)


def test_the_largest_hello_fits_its_limit() -> None:
    greeting = handshake("client", Limits(features=tuple(f"{i:02}" + "x" * 62 for i in range(32))))
    assert len(greeting) - 40 <= frames.MAX_HELLO
    server = End("server")
    server.read(greeting)
    assert server.codec.peer is not None


# -- the caller's mistakes change nothing ----------------------------------------------------------------


def test_nothing_is_legal_before_the_handshake() -> None:
    codec = Codec("client", Limits(), 0.0)
    refused(codec, lambda: codec.open("GET", "/", {}, 0))
    refused(codec, lambda: codec.ping(1))
    refused(codec, lambda: codec.goaway(ErrorCode.NO_ERROR, ""))
    refused(codec, lambda: codec.feed(b"short"))
    refused(codec, lambda: codec.payload_received(1))
    refused(codec, lambda: codec.data_written(1))
    assert codec.openable == 0


@pytest.mark.parametrize(
    "args",
    [
        {"x": [1]},
        {"x": {}},
        {"x": b"bytes"},
        {"x": float("nan")},
        {"x": float("inf")},
        {"x": 2**64},
        {"x": -(2**63) - 1},
        {1: "x"},
        {"x": "\udc80"},
        {"x": "y" * 20000},
        pytest.param([], marks=pytest.mark.interpreted),
    ],
)
def test_arguments_that_cannot_travel(args: Any) -> None:
    client, server = joined()
    refused(client.codec, lambda: client.codec.open("GET", "/", args, 0))
    _, theirs = client.codec.open("GET", "/", {}, 0), settle(client, server)
    theirs = server.codec.streams[1]
    refused(server.codec, lambda: server.codec.reply(theirs, args, 0))


def test_arguments_that_travel_come_back_as_they_were() -> None:
    client, server = joined()
    args = {"s": "ä\n\x00", "i": 2**64 - 1, "n": -(2**63), "f": 0.1, "t": True, "z": None, "": ""}
    client.codec.open("PUT", "/ä b", args, 5)
    settle(client, server)
    [opened] = server.of(events.Opened)
    assert isinstance(opened, events.Opened)
    assert (opened.stream.method, opened.stream.path, opened.stream.args) == ("PUT", "/ä b", args)
    assert opened.stream.args["t"] is True
    assert opened.stream.send_credit == 5


@pytest.mark.parametrize(
    ("method", "path"), [("", "/"), ("A B", "/"), ("GÄT", "/"), ("GET\n", "/"), ("X" * 65, "/")]
)
def test_methods_are_short_printable_words(method: str, path: str) -> None:
    client, _ = joined()
    refused(client.codec, lambda: client.codec.open(method, path, {}, 0))
    refused(client.codec, lambda: client.codec.open("GET", "\ud800", {}, 0))


def test_streams_beyond_the_peers_limit_wait() -> None:
    client, server = joined(server=Limits(max_streams=1))
    ours, _ = stream_between(client, server)
    assert client.codec.openable == 0
    refused(client.codec, lambda: client.codec.open("GET", "/", {}, 0), TooManyStreams)
    client.codec.reset(ours, ErrorCode.CANCELLED, "")
    assert client.codec.openable == 1
    client.codec.open("GET", "/", {}, 0)


def test_data_that_may_not_be_sent() -> None:
    client, server = joined()
    ours, theirs = stream_between(client, server, credit=32 + 100)
    codec = client.codec
    header = bytearray(32)
    assert codec.sendable(ours) == 100

    def data(
        length: int, remaining: int, flags: int, crc: int = 0, stream: Any = ours
    ) -> Callable[[], object]:
        return lambda: codec.data_header_into(header, 0, stream, length, remaining, flags, crc)

    assert "100 may be sent" in refused(codec, data(101, 0, END_MESSAGE))
    assert "may be sent" in refused(codec, data(-1, 0, END_MESSAGE))
    assert "does not continue" in refused(codec, data(10, 0, 0))
    assert "not agreed on" in refused(codec, data(10, 0, END_MESSAGE | CRC, 1))
    assert "not agreed on" in refused(codec, data(10, 0, END_MESSAGE, 1))
    assert "not agreed on" in refused(codec, data(10, 0, END_MESSAGE | 8))
    assert "does not fit" in refused(
        codec, lambda: codec.data_header_into(header, 1, ours, 1, 0, END_MESSAGE, 0)
    )
    assert header == bytes(32)
    client.send(ours, b"x" * 60, 0, 40)
    assert codec.sendable(ours) == 8
    assert "does not continue" in refused(codec, data(0, 0, END_STREAM))
    assert "not replied" not in refused(codec, data(41, 0, END_MESSAGE))
    codec.reset(ours, ErrorCode.CANCELLED, "")
    assert "reset" in refused(codec, data(8, 32, 0))
    assert codec.sendable(ours) == -1
    client.codec.open("GET", "/2", {}, 0)
    settle(client, server)
    unanswered = server.codec.streams[3]
    assert server.codec.sendable(unanswered) == -1
    with pytest.raises(LocalProtocolError, match="not replied to yet"):
        server.codec.data_header_into(header, 0, unanswered, 0, 0, END_MESSAGE, 0)
    assert theirs.reset_code == ErrorCode.CANCELLED


def test_headers_of_messages_that_lie_side_by_side_are_those_of_single_ones() -> None:
    one, other = joined(), joined()
    lengths = [0, 1, 5000, 32, 0, 700]
    for client, server in (one, other):
        ours, _ = stream_between(client, server)
        if client is one[0]:
            for length in lengths:
                client.send(ours, b"x" * length, END_MESSAGE)
        else:
            places = [7 + sum(lengths[:index]) + 32 * index for index in range(len(lengths))]
            memory = bytearray(b"-" * 7 + b"x" * (sum(lengths) + 32 * len(lengths)))
            client.codec.data_headers_into(memory, ours, places, lengths)
            client.write_control()
            client.wire += memory[7:]
            client.codec.data_written(len(memory) - 7)
    assert one[0].wire == other[0].wire
    for client, server in (one, other):
        settle(client, server)
        assert [len(piece.payload) for piece in server.pieces] == lengths
        [state] = client.codec.streams.values()
        assert (state.send_messages, state.send_offset) == (len(lengths), sum(lengths))
        assert client.codec.framed == client.codec.peer_acknowledged == state.send_wire


def test_headers_of_messages_that_lie_side_by_side_are_judged_like_single_ones() -> None:
    client, server = joined(server=Limits(max_frame=16384))
    ours, _ = stream_between(client, server, credit=40_000)
    codec, memory = client.codec, bytearray(60_000)
    assert "may be sent" in refused(
        codec, lambda: codec.data_headers_into(memory, ours, [0, 132], [100, 16385])
    )
    assert "may be sent" in refused(
        codec, lambda: codec.data_headers_into(memory, ours, [0, 132], [100, -14])
    )
    places, too_much = [0, 16000, 32000], [15968, 15968, 7969]  # 40,001 bytes with their headers
    assert "may be sent" in refused(codec, lambda: codec.data_headers_into(memory, ours, places, too_much))
    assert "do not fit" in refused(
        codec, lambda: codec.data_headers_into(memory[:90], ours, [0, 60], [28, 28])
    )
    client.send(ours, b"x", 0, 5)
    assert "does not continue" in refused(codec, lambda: codec.data_headers_into(memory, ours, [0], [100]))
    codec.reset(ours, ErrorCode.CANCELLED, "")
    assert "reset" in refused(codec, lambda: codec.data_headers_into(memory, ours, [0], [100]))


def test_messages_taken_together_count_like_those_that_are_fed() -> None:
    lengths = [0, 1, 5000, 32, 0, 700]
    counts = []
    for together in (False, True):
        client, server = joined()
        ours, theirs = stream_between(client, server)
        for length in lengths:
            client.send(ours, b"x" * length, END_MESSAGE)
        if together:
            wire, start = b"-" * 7 + client.wire + client.wire[:40], 7
            client.wire.clear()
            ends = server.codec.whole_messages(theirs, wire, start, len(wire), 0, 1 << 20)
            assert ends == [7 + sum(lengths[:n]) + 32 * n for n in range(1, len(lengths) + 1)]
        settle(client, server)
        state = theirs.recv_wire, theirs.recv_offset, theirs.recv_messages, theirs.recv_remaining
        counts.append((*state, server.codec.acknowledgeable, client.codec.peer_acknowledged))
    assert counts[0] == counts[1]


# Headers (see HEADER) of frames that are not one more message of stream 1 behind two of 100 bytes.
FOREIGN_FRAMES = {
    "of another kind": (frames.PING, END_MESSAGE, 0, 1, 100, 0, 200, 0),
    "the last message": (frames.DATA, END_MESSAGE | END_STREAM, 0, 1, 100, 0, 200, 0),
    "a part of a message": (frames.DATA, 0, 0, 1, 100, 0, 200, 50),
    "with a checksum": (frames.DATA, END_MESSAGE | CRC, 0, 1, 100, 1, 200, 0),
    "with a checksum that is not announced": (frames.DATA, END_MESSAGE, 0, 1, 100, 1, 200, 0),
    "with a reserved field": (frames.DATA, END_MESSAGE, 1, 1, 100, 0, 200, 0),
    "of another stream": (frames.DATA, END_MESSAGE, 0, 3, 100, 0, 200, 0),
    "too short": (frames.DATA, END_MESSAGE, 0, 1, 9, 0, 200, 0),
    "too long": (frames.DATA, END_MESSAGE, 0, 1, 201, 0, 200, 0),
    "longer than is there": (frames.DATA, END_MESSAGE, 0, 1, 150, 0, 200, 0),
    "at another offset": (frames.DATA, END_MESSAGE, 0, 1, 100, 0, 201, 0),
    "with more to come": (frames.DATA, END_MESSAGE, 0, 1, 100, 0, 200, 1),
}


def two_messages() -> tuple[End, End, StreamState, bytes]:
    client, server = joined()
    ours, theirs = stream_between(client, server)
    for _ in range(2):
        client.send(ours, b"x" * 100, END_MESSAGE)
    wire = bytes(client.wire)
    client.wire.clear()
    return client, server, theirs, wire


@pytest.mark.parametrize("fields", FOREIGN_FRAMES.values(), ids=FOREIGN_FRAMES)
def test_messages_taken_together_end_before_any_other_frame(fields: tuple[int, ...]) -> None:
    _, server, theirs, wire = two_messages()
    wire += frames.HEADER.pack(*fields) + b"x" * (201 if fields[4] == 201 else 100)
    assert server.codec.whole_messages(theirs, wire, 0, len(wire), 10, 200) == [132, 264]


def test_messages_taken_together_are_no_longer_than_a_frame_may_be() -> None:
    client, server = joined(server=Limits(max_frame=16384))
    _, theirs = stream_between(client, server)
    wire = b""
    for offset, length in ((0, 16384), (16384, 16385)):
        wire += frames.HEADER.pack(frames.DATA, END_MESSAGE, 0, theirs.id, length, 0, offset, 0)
        wire += b"x" * length
    assert server.codec.whole_messages(theirs, wire, 0, len(wire), 0, 1 << 20) == [16416]


def test_messages_taken_together_end_with_the_credit() -> None:
    _, server, theirs, wire = two_messages()
    theirs.recv_credit = theirs.recv_wire + 263
    assert server.codec.whole_messages(theirs, wire, 0, len(wire), 0, 200) == [132]


def test_no_messages_are_taken_together_where_no_message_begins() -> None:
    client, server, theirs, wire = two_messages()
    server.codec.reset(theirs, ErrorCode.CANCELLED, "")
    assert server.codec.whole_messages(theirs, wire, 0, len(wire), 0, 200) == []
    client, server = joined()
    ours, theirs = stream_between(client, server)
    client.send(ours, b"x" * 100, END_MESSAGE)
    deliver(client, server, HEADER_SIZE + 10)
    assert server.codec.whole_messages(theirs, wire[132:], 0, 132, 0, 200) == []
    deliver(client, server)
    client.send(ours, b"x" * 100, 0, 50)
    deliver(client, server)
    client.send(ours, b"x" * 50, END_MESSAGE)
    assert server.codec.whole_messages(theirs, client.wire, 0, len(client.wire), 0, 200) == []


def test_credit_for_a_header_alone_is_enough_for_an_empty_message() -> None:
    client, server = joined()
    ours, theirs = stream_between(client, server, credit=HEADER_SIZE)
    assert client.codec.sendable(ours) == 0
    client.send(ours, b"", END_MESSAGE)
    assert client.codec.sendable(ours) == -1
    settle(client, server)
    assert theirs.recv_messages == 1


def test_frames_are_no_larger_than_the_peer_takes() -> None:
    client, server = joined(server=Limits(max_frame=16384))
    ours, _ = stream_between(client, server)
    assert client.codec.sendable(ours) == 16384
    refused(
        client.codec, lambda: client.codec.data_header_into(bytearray(32), 0, ours, 16385, 0, END_MESSAGE, 0)
    )


def test_promises_never_shrink() -> None:
    client, server = joined()
    ours, theirs = stream_between(client, server, credit=1000)
    refused(server.codec, lambda: server.codec.credit(theirs, 999))
    refused(server.codec, lambda: server.codec.credit(theirs, 2**64))
    server.codec.credit(theirs, 1000)
    assert not server.codec.control_pending
    client.send(ours, b"", END_MESSAGE)
    client.send(ours, b"", END_MESSAGE)
    settle(client, server)
    refused(server.codec, lambda: server.codec.commit(theirs, 3))
    server.codec.commit(theirs, 2)
    refused(server.codec, lambda: server.codec.commit(theirs, 1))
    settle(client, server)
    assert ours.send_committed == 2
    client.send(ours, b"", END_STREAM)
    settle(client, server)
    refused(server.codec, lambda: server.codec.credit(theirs, 2000))


def test_a_stream_is_answered_once_and_only_by_its_acceptor() -> None:
    client, server = joined()
    ours, theirs = stream_between(client, server)
    refused(server.codec, lambda: server.codec.reply(theirs, {}, 0))
    refused(client.codec, lambda: client.codec.reply(ours, {}, 0))


def test_a_finished_stream_takes_nothing_more() -> None:
    client, server = joined()
    ours, theirs = stream_between(client, server)
    client.codec.reset(ours, 4711, "why")
    settle(client, server)
    assert (theirs.reset_code, theirs.reset_reason) == (4711, "why")
    for codec, stream in ((client.codec, ours), (server.codec, theirs)):
        assert not codec.streams
        for call in (
            lambda c=codec, s=stream: c.reset(s, 0, ""),
            lambda c=codec, s=stream: c.credit(s, 2**40),
            lambda c=codec, s=stream: c.commit(s, 0),
            lambda c=codec, s=stream: c.reply(s, {}, 0),
        ):
            refused(codec, call)


def test_error_codes_and_tokens_fit_their_fields() -> None:
    client, server = joined()
    ours, _ = stream_between(client, server)
    refused(client.codec, lambda: client.codec.reset(ours, 2**32, ""))
    refused(client.codec, lambda: client.codec.goaway(-1, ""))
    refused(client.codec, lambda: client.codec.ping(2**64))


def test_a_reason_too_long_for_the_peer_is_cut_short() -> None:
    client, server = joined(server=Limits(max_control=1024))
    ours, theirs = stream_between(client, server)
    client.codec.reset(ours, ErrorCode.INTERNAL, "\x01ä\udc80" * 5000)
    settle(client, server)
    assert theirs.reset_reason.startswith("\x01ä?")
    room = 1024 - len('{"code":6,"reason":""}')
    for length in range(room - 1, room + 10):
        ours, theirs = stream_between(client, server)
        client.codec.reset(ours, 6, "x" * length)
        settle(client, server)
        assert theirs.reset_reason == "x" * (length if length <= room else length // 2)


def test_payload_cannot_be_reported_twice_nor_fed() -> None:
    client, server = joined()
    ours, _ = stream_between(client, server)
    client.send(ours, b"abc", END_MESSAGE)
    codec = server.codec
    event = codec.feed(bytes(client.wire[:32]))
    assert isinstance(event, events.Data)
    assert codec.payload_left == 3
    assert codec.acknowledgeable == 32
    refused(codec, lambda: codec.payload_received(4))
    refused(codec, lambda: codec.feed(bytes(32)))
    assert codec.payload_received(2) is False
    assert codec.payload_received(1) is True
    assert codec.acknowledgeable == 35


def test_written_never_exceeds_framed() -> None:
    client, server = joined()
    ours, _ = stream_between(client, server)
    client.frame(ours, 10, END_MESSAGE)
    client.codec.data_written(41)
    refused(client.codec, lambda: client.codec.data_written(2))
    refused(client.codec, lambda: client.codec.data_written(-1))


def test_what_is_framed_and_not_written_cannot_have_been_acknowledged() -> None:
    client, server = joined()
    ours, _ = stream_between(client, server)
    client.frame(ours, 10, END_MESSAGE)
    client.codec.data_written(41)
    client.read(frames.pack(frames.ACK, offset=41))
    with pytest.raises(RemoteProtocolError, match="42 bytes acknowledged; 41 were sent") as caught:
        client.read(frames.pack(frames.ACK, offset=42))
    assert caught.value.code is ErrorCode.ACKNOWLEDGEMENT


# -- what is queued --------------------------------------------------------------------------------------


def types(control: bytes) -> list[int]:
    found = []
    while control:
        header = frames.unpack(control[:32])
        found.append(header.type)
        control = control[32 + header.length :]
    return found


def test_acknowledgement_and_credit_go_first_and_only_their_latest_values() -> None:
    client, server = joined()
    ours, theirs = stream_between(client, server)
    for _ in range(3):
        client.send(ours, b"x", END_MESSAGE)
    server.codec.ping(7)
    for limit in (2 << 20, 3 << 20):
        deliver(client, server)
        server.codec.acknowledge()
        server.codec.credit(theirs, limit)
        server.codec.commit(theirs, theirs.recv_messages)
        client.send(ours, b"x", END_MESSAGE)
    assert types(server.write_control()) == [frames.ACK, frames.CREDIT, frames.COMMIT, frames.PING]
    deliver(server, client)
    assert ours.send_credit == 3 << 20
    assert client.codec.peer_acknowledged == 4 * 33
    assert server.codec.take_control() == b""
    assert not server.codec.control_pending


def test_credit_never_overtakes_the_open_or_reply_that_announces_the_stream() -> None:
    client, server = joined()
    ours = client.codec.open("GET", "/", {}, 10)
    client.codec.credit(ours, 1000)
    assert types(client.write_control()) == [frames.OPEN, frames.CREDIT]
    settle(client, server)
    theirs = server.codec.streams[1]
    assert theirs.send_credit == 1000
    server.codec.credit(theirs, 5)
    server.codec.reply(theirs, {}, 50)
    server.codec.credit(theirs, 500)
    assert types(server.write_control()) == [frames.REPLY, frames.CREDIT]
    settle(client, server)
    assert ours.send_credit == 500


def test_a_stream_that_is_given_up_gets_its_commits_but_no_more_credit() -> None:
    client, server = joined()
    ours, theirs = stream_between(client, server)
    client.send(ours, b"x", END_MESSAGE)
    deliver(client, server)
    server.codec.credit(theirs, 2 << 20)
    server.codec.commit(theirs, 1)
    server.codec.reset(theirs, ErrorCode.CANCELLED, "")
    assert types(server.write_control()) == [frames.COMMIT, frames.RESET]
    deliver(server, client)
    assert client.of(events.Committed)


def test_a_reply_may_leave_credit_as_it_is() -> None:
    client, server = joined()
    ours = client.codec.open("GET", "/", {}, 0)
    settle(client, server)
    theirs = server.codec.streams[1]
    server.codec.credit(theirs, 100)
    refused(server.codec, lambda: server.codec.reply(theirs, {}, 50))
    server.codec.reply(theirs, {"size": 1}, 0)
    settle(client, server)
    assert ours.send_credit == 100
    [replied] = client.of(events.Replied)
    assert isinstance(replied, events.Replied)
    assert replied.args == {"size": 1}


def test_acknowledging_nothing_new_says_nothing() -> None:
    client, server = joined()
    server.codec.acknowledge()
    assert not server.codec.control_pending
    ours, _ = stream_between(client, server)
    client.send(ours, b"x", END_MESSAGE)
    settle(client, server)
    assert client.of(events.Acked)
    client.read(frames.pack(frames.ACK, offset=33))  # the same value again is legal, and no news
    assert len(client.of(events.Acked)) == 1


# -- what a peer can make us queue is bounded ------------------------------------------------------------


def test_pings_without_reading_the_pongs_end_the_connection() -> None:
    client, _ = joined()
    for token in range(MAX_PENDING_PONGS):
        client.read(frames.pack(frames.PING, offset=token))
    with pytest.raises(RemoteProtocolError) as caught:
        client.read(frames.pack(frames.PING))
    assert caught.value.code is ErrorCode.LIMIT
    assert types(client.codec.take_control()) == [frames.GOAWAY]


def test_opening_without_reading_the_refusals_ends_the_connection() -> None:
    _, server = joined(server=Limits(max_streams=0))
    body = b'{"method":"GET","path":"/"}'
    for number in range(MAX_PENDING_ANSWERS):
        server.read(frames.pack(frames.OPEN, stream=2 * number + 1, length=len(body)) + body)
    with pytest.raises(RemoteProtocolError) as caught:
        server.read(frames.pack(frames.OPEN, stream=2**31 + 1, length=len(body)) + body)
    assert caught.value.code is ErrorCode.LIMIT


def test_at_most_sixteen_pings_of_ours_are_unanswered() -> None:
    client, server = joined()
    for token in range(MAX_PENDING_PONGS):
        client.codec.ping(token)
    refused(client.codec, lambda: client.codec.ping(99))
    settle(client, server)
    assert [pong.token for pong in client.of(events.Pong) if isinstance(pong, events.Pong)] == list(range(16))


# -- integrity -------------------------------------------------------------------------------------------


def test_checksums_travel_when_both_ends_can_verify_them() -> None:
    able = Limits(features=(FEATURE_CRC32C,))
    client, server = joined(able, able)
    ours, _ = stream_between(client, server)
    client.send(ours, b"x", END_MESSAGE | CRC, crc=0xFFFFFFFF)
    client.write_control()
    event = server.codec.feed(bytes(client.wire[:32]))
    assert isinstance(event, events.Data)
    assert (event.crc, event.flags) == (0xFFFFFFFF, END_MESSAGE | CRC)


# -- time ------------------------------------------------------------------------------------------------


def test_a_handshake_that_does_not_come_ends_the_connection() -> None:
    codec = Codec("server", Limits(handshake_seconds=3), 100.0)
    assert codec.deadline() == 103.0
    codec.tick(102.9, True)  # a byte now and then is no handshake
    with pytest.raises(RemoteProtocolError, match="handshake") as caught:
        codec.tick(103.0, False)
    assert caught.value.code is ErrorCode.TIMEOUT
    assert codec.take_control().startswith(frames.PREFACE)
    codec.tick(200.0, False)  # dead already: nothing more to say


def test_an_idle_connection_is_kept_alive() -> None:
    client, server = joined()
    client.codec.tick(1.0, True)
    assert client.codec.deadline() == 16.0
    client.codec.tick(15.9, False)
    assert not client.codec.control_pending
    client.codec.tick(16.0, False)
    assert types(client.write_control()) == [frames.PING]
    client.codec.tick(20.0, False)
    assert not client.codec.control_pending  # one is enough
    assert client.codec.deadline() == 46.0
    deliver(client, server)
    deliver(server, client)
    client.codec.tick(21.0, True)
    assert client.codec.deadline() == 36.0
    assert client.of(events.Pong)


def test_a_ping_of_the_application_keeps_an_idle_connection_alive_too() -> None:
    client, _ = joined()
    client.codec.ping(7)
    client.write_control()
    client.codec.tick(15.0, False)
    assert not client.codec.control_pending


def test_silence_ends_the_connection() -> None:
    client, _ = joined()
    client.codec.tick(44.9, False)
    with pytest.raises(RemoteProtocolError, match="not a byte"):
        client.codec.tick(45.0, False)


def test_the_acknowledgement_deadline_measures_lack_of_progress_not_age() -> None:
    client, server = joined(Limits(ack_seconds=10))
    ours, _ = stream_between(client, server)
    for _ in range(3):
        client.send(ours, b"x" * 100, END_MESSAGE)
    client.codec.tick(0.0, False)
    assert client.codec.deadline() == 10.0
    for second, upto in ((9.0, 1), (18.0, 2), (27.0, 396)):
        client.read(frames.pack(frames.ACK, offset=upto))
        client.codec.tick(second, True)
    client.codec.tick(41.0, True)  # everything is acknowledged: no deadline
    client.send(ours, b"x", END_MESSAGE)
    client.codec.tick(42.0, True)
    with pytest.raises(RemoteProtocolError, match="acknowledged nothing") as caught:
        client.codec.tick(52.0, True)  # it talks, but does not acknowledge
    assert caught.value.code is ErrorCode.TIMEOUT


# -- the end ---------------------------------------------------------------------------------------------


def test_ending_with_an_error_drops_what_was_queued_and_says_why() -> None:
    client, server = joined()
    ours, _ = stream_between(client, server)
    client.codec.open("GET", "/never", {}, 0)
    client.codec.goaway(ErrorCode.INTEGRITY, "checksum")
    assert types(client.write_control()) == [frames.GOAWAY]
    [goaway] = deliver(client, server)
    assert isinstance(goaway, events.Goaway)
    assert (goaway.code, goaway.reason) == (ErrorCode.INTEGRITY, "checksum")
    assert not server.codec.control_pending  # nobody reads it
    with pytest.raises(RemoteProtocolError, match="after a GOAWAY"):
        server.codec.feed(bytes(32))
    for codec in (client.codec, server.codec):
        refused(codec, lambda c=codec: c.open("GET", "/", {}, 0))
        refused(codec, lambda c=codec: c.goaway(ErrorCode.NO_ERROR, ""))
        refused(codec, lambda c=codec: c.ping(0))
        assert not codec.finished
        assert codec.deadline() is None
        codec.acknowledge()
        assert not codec.control_pending
    refused(client.codec, lambda: client.codec.reset(ours, 0, ""))
    refused(client.codec, lambda: client.codec.data_header_into(bytearray(32), 0, ours, 1, 0, END_MESSAGE, 0))
    with pytest.raises(LocalProtocolError, match="this end has ended"):
        client.codec.feed(bytes(32))


def test_unknown_message_lengths_travel() -> None:
    client, server = joined()
    ours, theirs = stream_between(client, server)
    client.send(ours, b"ab", 0, UNKNOWN)
    client.send(ours, b"cd", 0, 2)
    client.send(ours, b"ef", END_MESSAGE | END_STREAM)
    settle(client, server)
    assert [piece.remaining for piece in server.pieces] == [UNKNOWN, 2, 0]
    assert theirs.recv_messages == 1
    assert theirs.recv_ended
    assert not theirs.send_ended
