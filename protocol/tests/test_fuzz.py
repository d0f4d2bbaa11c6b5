"""Whatever a peer sends and a caller asks has one of the two outcomes that are documented."""

import contextlib

import pytest
from codec_pair import End, joined, settle, snapshot, stream_between, unhurried
from hypothesis import given
from hypothesis import strategies as st

from zcserver_protocol import frames
from zcserver_protocol.codec import Limits
from zcserver_protocol.errors import LocalProtocolError, RemoteProtocolError
from zcserver_protocol.frames import END_MESSAGE, FEATURE_CRC32C, UNKNOWN

LIMITS = Limits(max_frame=16384, max_control=1024, max_streams=2, features=(FEATURE_CRC32C,))


def fresh_client() -> End:
    return End("client", LIMITS)


def fresh_server() -> End:
    return End("server", LIMITS)


def busy_server() -> End:
    """In the middle of everything: streams both ways, credit, unacknowledged data, a ping on its way."""
    client, server = joined(LIMITS, LIMITS)
    ours, theirs = stream_between(client, server)
    server.codec.open("PUSH", "/", {}, 100)
    client.send(ours, b"x" * 10, 0, 90)
    server.send(theirs, b"y" * 10, END_MESSAGE)
    server.codec.ping(1)
    settle(client, server)
    server.send(theirs, b"y" * 10, END_MESSAGE)
    server.codec.ping(2)
    server.codec.take_control()
    return server


def closing_client() -> End:
    client, server = joined(LIMITS, LIMITS)
    stream_between(client, server)
    client.codec.goaway(0, "")
    settle(client, server)
    return client


any_end = st.sampled_from([fresh_client, fresh_server, busy_server, closing_client])

number = st.one_of(
    st.sampled_from([0, 1, 2, 3, 4, 5, 10, 32, 42, 100, 1024, 16384, 16385, 2**31, 2**32 - 1]),
    st.integers(0, 2**32 - 1),
)
large = st.one_of(number, st.sampled_from([UNKNOWN, UNKNOWN - 1, 2**63, 90]))
body = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b"{}",
            b"[]",
            b"null",
            b'{"code":0}',
            b'{"code":5,"reason":"r"}',
            b'{"code":-1}',
            b'{"method":"GET","path":"/"}',
            b'{"method":"GET","path":"/","args":{"a":' + b"9" * 500 + b"}}",
            b'{"method":"GET","path":"/","args":{"a":' + b"1" * 30 + b"}}",
            b'{"method":"GET","path":"/","args":{"a":1e999}}',
            b'{"method":"GET","path":"/","args":{"\xff":1}}',
            b'{"method":"GET","path":"\\ud800"}',
            b'{"x":' + b"[" * 900,
            b'{"args":{"a":[1]}}',
            b'{"versions":[1,1],"max_frame":16384,"max_control":1024,"window":16384,"max_streams":1}',
            b'{"versions":[2,1],"max_frame":16384,"max_control":1024,"window":16384,"max_streams":1}',
            b'{"versions":[1],"max_frame":1,"max_control":1024,"window":16384,"max_streams":1}',
        ]
    ),
)


@st.composite
def frame(draw: st.DrawFn) -> bytes:
    """Something between a correct frame and noise."""
    kind = draw(st.one_of(st.integers(1, 11), st.sampled_from([0, 12, 0x7F, 0x80, 0xFF])))
    content = draw(body)
    rule = frames.RULES.get(kind)
    length = len(content)
    if rule is not None and not rule.has_body:
        content, length = b"", draw(st.sampled_from([0, 0, 0, 1]))
    if draw(st.integers(0, 9)) == 0:
        length = draw(number)
    small = rule is not None and draw(st.integers(0, 4)) > 0  # mostly correct in the fields it does not use
    return (
        frames.pack(
            kind,
            0 if small else draw(st.sampled_from([0, 1, 2, 3, 4, 5, 0x80])),
            draw(st.sampled_from([1, 2, 3]))
            if small and rule and rule.on_stream
            else 0
            if small
            else draw(number),
            length,
            0 if small else draw(st.sampled_from([0, 1])),
            draw(large) if not small or (rule and rule.has_offset) else 0,
            0 if small else draw(large),
        )
        + content
    )


def feed_all(end: End, data: bytes, cuts: list[int]) -> bool:
    """Feed ``data`` in portions; True when the peer was found at fault. Nothing else may be raised."""
    codec = end.codec
    position = 0
    fault: RemoteProtocolError | None = None
    try:
        for cut in [*cuts, len(data)]:
            if cut > position:
                end.read(data[position:cut])
                position = cut
            assert codec.payload_left <= LIMITS.max_frame
            assert codec.needs <= max(LIMITS.max_control, frames.MAX_HELLO)
    except RemoteProtocolError as error:
        fault = error
    if fault is None:
        return False
    control = codec.take_control().removeprefix(frames.PREFACE)
    if control:
        goaway = frames.unpack(control[:32])
        assert goaway.type == frames.GOAWAY
        assert goaway.length == len(control) - 32
    else:  # it had said goodbye itself, and still went on
        assert fault.message.startswith("bytes after")
    assert codec.deadline() is None
    return True


cuts = st.lists(st.integers(0, 400), max_size=8).map(sorted)


@unhurried
@given(any_end, st.binary(max_size=300), cuts)
def test_any_bytes_give_events_or_a_violation(make: object, data: bytes, cuts: list[int]) -> None:
    feed_all(make(), data, cuts)  # type: ignore[operator]


@unhurried
@given(any_end, st.lists(frame(), max_size=12), cuts)
def test_any_frames_give_events_or_a_violation(make: object, parts: list[bytes], cuts: list[int]) -> None:
    feed_all(make(), b"".join(parts), cuts)  # type: ignore[operator]


@unhurried
@given(st.lists(frame(), max_size=8), cuts)
def test_any_frames_after_the_preface(parts: list[bytes], cuts: list[int]) -> None:
    feed_all(fresh_server(), frames.PREFACE + b"".join(parts), cuts)


@unhurried
@given(st.lists(frame(), max_size=12), cuts)
def test_segmentation_changes_nothing(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(parts)
    whole, portioned = busy_server(), busy_server()
    assert feed_all(whole, data, []) == feed_all(portioned, data, cuts)
    assert [type(event) for event in whole.events] == [type(event) for event in portioned.events]
    assert whole.codec.acknowledgeable == portioned.codec.acknowledgeable
    assert whole.codec.streams.keys() == portioned.codec.streams.keys()


integer = st.one_of(st.integers(-2, 200), st.sampled_from([2**31, 2**32, 2**63, 2**64 - 1, 2**64, -(2**63)]))
text = st.one_of(st.text(max_size=8), st.sampled_from(["GET", "", "\ud800", "x" * 2000]))
args = st.dictionaries(
    text,
    st.one_of(integer, text, st.floats(), st.booleans(), st.none(), st.lists(integer, max_size=1)),
    max_size=3,
)
calls = st.one_of(
    st.tuples(st.just("open"), text, text, args, integer),
    st.tuples(st.just("ping"), integer),
    st.tuples(st.just("goaway"), st.sampled_from([0, 1, -1, 99, 2**32]), text),
    st.tuples(st.just("feed"), st.binary(max_size=40)),
    st.tuples(st.just("payload_received"), integer),
    st.tuples(st.just("data_written"), integer),
)
stream_calls = st.one_of(
    st.tuples(st.just("reply"), args, integer),
    st.tuples(st.just("credit"), integer),
    st.tuples(st.just("commit"), integer),
    st.tuples(st.just("reset"), integer, text),
)
data_calls = st.tuples(integer, integer, st.integers(-1, 9), integer)


@pytest.mark.interpreted
@unhurried
@given(st.sampled_from([fresh_client, busy_server, closing_client]), st.data())
def test_a_call_succeeds_or_changes_nothing(make: object, data: st.DataObject) -> None:
    end: End = make()  # type: ignore[operator]
    codec = end.codec
    streams = list(codec.streams.values())
    for _ in range(data.draw(st.integers(1, 12))):
        before = snapshot(codec)
        before_streams = repr([[getattr(s, name) for name in s.__slots__] for s in streams])
        kinds = ["connection", "stream", "data"] if streams else ["connection"]
        kind = data.draw(st.sampled_from(kinds))
        try:
            if kind == "connection":
                name, *arguments = data.draw(calls)
                with contextlib.suppress(RemoteProtocolError):  # `feed` is allowed to find the peer at fault
                    result = getattr(codec, name)(*arguments)
                    if name == "open":
                        streams.append(result)
            elif kind == "stream":
                name, *arguments = data.draw(stream_calls)
                getattr(codec, name)(data.draw(st.sampled_from(streams)), *arguments)
            else:
                length, remaining, flags, crc = data.draw(data_calls)
                stream = data.draw(st.sampled_from(streams))
                codec.data_header_into(bytearray(32), 0, stream, length, remaining, flags, crc)
        except LocalProtocolError:
            assert snapshot(codec) == before
            assert (
                repr([[getattr(s, name) for name in s.__slots__] for s in streams[: len(streams)]])
                == before_streams
            )
        codec_bytes = codec.take_control()
        assert isinstance(codec_bytes, bytes)  # whatever was accepted can be encoded
