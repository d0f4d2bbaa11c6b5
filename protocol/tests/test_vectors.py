"""The published vectors, replayed against the codec. SPEC.md ("Test vectors") says how to read them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from codec_pair import End

from zcserver_protocol import frames
from zcserver_protocol.codec import Limits
from zcserver_protocol.errors import ErrorCode, RemoteProtocolError
from zcserver_protocol.events import Hello

VECTORS = Path(__file__).parent.parent / "vectors"


def load(name: str) -> list[Any]:
    vectors = json.loads((VECTORS / name).read_text())["vectors"]
    return [pytest.param(vector, id=vector["name"]) for vector in vectors]


class Replay:
    """An end that follows a vector's steps."""

    def __init__(self, role: str) -> None:
        self.end = End(role, Limits(features=("crc32c",)))
        self.end.codec.take_control()

    def step(self, step: dict[str, Any]) -> None:
        codec = self.end.codec
        if "do" in step:
            self.act(**{name: value for name, value in step.items() if name != "do"}, act=step["do"])
        elif "receive" in step:
            self.receive(bytes.fromhex(step["receive"]), step.get("events"), step.get("error"))
        else:
            for name, value in step.items():
                assert getattr(codec, name) == value

    def receive(self, data: bytes, expected: list[Any] | None, error: str | None) -> None:
        found: list[Any] = []
        if error is not None:
            with pytest.raises(RemoteProtocolError) as caught:
                self.read(data, found)
            assert caught.value.code.name == error
            self.check_goodbye(error)
            return
        self.read(data, found)
        assert found == expected
        if not self.end.codec.finished:
            self.end.codec.take_control()

    def check_goodbye(self, error: str) -> None:
        control = self.end.codec.take_control().removeprefix(frames.PREFACE)
        if control:  # nothing is said to a peer that has ended the connection itself
            header = frames.unpack(control[:32])
            assert header.type == frames.GOAWAY
            assert json.loads(control[32:])["code"] == ErrorCode[error]

    def read(self, data: bytes, found: list[Any]) -> None:
        codec = self.end.codec
        while data:
            if codec.payload_left:
                step = min(codec.payload_left, len(data))
                codec.payload_received(step)
            else:
                step = min(codec.needs, len(data))
                event = codec.feed(data[:step])
                if event is not None:
                    found.append(described(event))
            data = data[step:]

    def act(self, act: str, **what: Any) -> None:
        codec = self.end.codec
        if act == "open":
            stream = codec.open(what["method"], what["path"], what["args"], what["credit"])
            assert stream.id == what["stream"]
        elif act == "ping":
            codec.ping(what["token"])
        else:
            stream = codec.streams[what.pop("stream")]
            if act == "data":
                self.end.frame(stream, what["length"], what["flags"], what["remaining"], what["crc"])
                assert self.end.header.hex() == what["header"]
                codec.data_written(codec.framed - codec.written)
            else:
                getattr(codec, act)(stream, **what)
        codec.take_control()


def described(event: Any) -> dict[str, Any]:
    """An event in the words of the vectors."""
    found: dict[str, Any] = {"type": type(event).__name__}
    if type(event) is Hello:
        for name in ("max_frame", "max_control", "window", "max_streams"):
            found[name] = getattr(event.limits, name)
        return found | {
            "version": event.version,
            "features": sorted(event.features),
            "software": event.software,
        }
    for name in type(event).__slots__:
        found[name] = getattr(event, name)
    stream = found.get("stream")
    if stream is not None:
        found["stream"] = stream.id
        if found["type"] == "Opened":
            found |= {"method": stream.method, "path": stream.path, "args": stream.args}
        if found["type"] in ("Opened", "Replied", "Credited"):
            found["credit"] = stream.send_credit
    return found


@pytest.mark.parametrize("vector", load("headers.json"))
def test_header_vectors(vector: dict[str, Any]) -> None:
    packed = bytes.fromhex(vector["hex"])
    assert frames.unpack(packed)._asdict() == vector["fields"]
    fields = dict(vector["fields"])
    assert fields.pop("reserved") == 0
    assert frames.pack(**fields) == packed


@pytest.mark.parametrize("vector", load("valid.json"))
def test_valid_vectors(vector: dict[str, Any]) -> None:
    replay = Replay(vector["role"])
    for step in vector["steps"]:
        replay.step(step)


@pytest.mark.parametrize("vector", load("invalid.json"))
def test_invalid_vectors(vector: dict[str, Any]) -> None:
    assert "error" in vector["steps"][-1]
    replay = Replay(vector["role"])
    for step in vector["steps"]:
        replay.step(step)


def test_every_error_code_a_frame_can_cause_has_a_vector() -> None:
    named = {
        step["error"]
        for param in load("invalid.json")
        for step in param.values[0]["steps"]
        if "error" in step
    }
    assert named == {
        "PROTOCOL",
        "VERSION",
        "FRAME_SIZE",
        "FLOW_CONTROL",
        "ACKNOWLEDGEMENT",
        "STREAM_STATE",
        "LIMIT",
    }


def test_the_examples_of_the_specification_are_a_conversation() -> None:
    text = (VECTORS.parent / "SPEC.md").read_text().split("## 17. Examples")[1].split("## 18")[0]
    blocks = re.findall(r"(?:^    (?:[0-9a-f]{2} )+.*\n?)+", text, re.MULTILINE)
    dumps = [bytes.fromhex("".join(line[4:52] for line in block.splitlines())) for block in blocks]
    hello, open_, reply, first, second, ack, commit, end, goaway, final = dumps
    [body] = re.findall(r"`(.*\"versions\".*)`", text)
    server = Replay("server").end
    server.read(hello + body.encode())
    server.read(open_)
    stream = server.codec.streams[1]
    server.codec.take_control()
    server.codec.reply(stream, {"size": 5}, 32)
    assert server.codec.take_control() == reply
    for payload, flags, remaining, frame in ((b"he", 0, 3, first), (b"llo", 3, 0, second)):
        server.frame(stream, len(payload), flags, remaining)
        server.codec.data_written(len(frame))
        assert server.header + payload == frame
    server.read(ack + commit + end)
    assert server.codec.peer_acknowledged == server.codec.written
    assert stream.send_committed == 1
    assert not server.codec.streams
    server.read(goaway)
    server.codec.acknowledge()
    farewell = server.codec.take_control()
    assert farewell.count(b'{"code":0,"reason":""}') == 2
    server.read(final)
    assert server.codec.finished
