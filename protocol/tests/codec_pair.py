"""Two codecs joined in memory. Payload crosses as plain bytes beside them: the codecs see lengths only."""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings

from zcserver_protocol.codec import Codec, Limits
from zcserver_protocol.events import Data, Event
from zcserver_protocol.frames import HEADER_SIZE, PREFACE
from zcserver_protocol.streams import StreamState

# Examples are not judged by how long they take: the machine may be busy.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass
class Piece:
    """A DATA frame as it arrived (the codec's own event is reused by the next frame)."""

    stream: StreamState | None
    length: int
    remaining: int
    flags: int
    payload: bytearray = field(default_factory=bytearray)


class End:
    """A codec, what it has written and the other end has not read, and what happened to it."""

    def __init__(self, role: str, limits: Limits | None = None, now: float = 0.0) -> None:
        self.codec = Codec(role, limits or Limits(), now)
        self.wire = bytearray()  # on its way to the other end
        self.inbox = bytearray()  # arrived, not looked at
        self.events: list[Event] = []
        self.pieces: list[Piece] = []

    def write_control(self) -> bytes:
        control = self.codec.take_control()
        self.wire += control
        return control

    def send(
        self, stream: StreamState, payload: bytes, flags: int = 0, remaining: int = 0, crc: int = 0
    ) -> None:
        """Control first, then one DATA frame, all of it taken by the socket."""
        self.frame(stream, len(payload), flags, remaining, crc)
        self.write(payload)

    def frame(
        self, stream: StreamState, length: int, flags: int = 0, remaining: int = 0, crc: int = 0
    ) -> None:
        self.header = bytearray(HEADER_SIZE)
        self.codec.data_header_into(self.header, 0, stream, length, remaining, flags, crc)

    def write(self, payload: bytes) -> None:
        self.write_control()
        self.wire += self.header + payload
        self.codec.data_written(HEADER_SIZE + len(payload))

    def read(self, data: bytes) -> list[Event]:
        """Feed bytes in whatever portions the codec asks for; return the events other than Data."""
        codec = self.codec
        self.inbox += data
        before = len(self.events)
        while self.inbox:
            if codec.payload_left:
                step = min(codec.payload_left, len(self.inbox))
                self.pieces[-1].payload += self.inbox[:step]
                del self.inbox[:step]
                codec.payload_received(step)
                continue
            if len(self.inbox) < codec.needs:
                break
            portion = bytes(self.inbox[: codec.needs])
            del self.inbox[: codec.needs]
            event = codec.feed(portion)
            if type(event) is Data:
                self.pieces.append(Piece(event.stream, event.length, event.remaining, event.flags))
            elif event is not None:
                self.events.append(event)
        return self.events[before:]

    def of(self, kind: type) -> list[Event]:
        return [event for event in self.events if type(event) is kind]


def deliver(source: End, target: End, nbytes: int | None = None) -> list[Event]:
    """Carry what ``source`` has written, or its first ``nbytes``."""
    source.write_control()
    portion = bytes(source.wire if nbytes is None else source.wire[:nbytes])
    del source.wire[: len(portion)]
    return target.read(portion)


def settle(*ends: End, acknowledge: bool = True) -> None:
    """Carry bytes both ways until nothing moves any more."""
    first, second = ends
    while True:
        for end in ends:
            if acknowledge:
                end.codec.acknowledge()
        if not (first.codec.control_pending or second.codec.control_pending or first.wire or second.wire):
            return
        deliver(first, second)
        deliver(second, first)


def joined(client: Limits | None = None, server: Limits | None = None) -> tuple[End, End]:
    """A client and a server that have shaken hands."""
    ends = End("client", client), End("server", server)
    settle(*ends)
    assert all(end.codec.peer is not None for end in ends)
    return ends


def stream_between(client: End, server: End, credit: int = 1 << 20) -> tuple[StreamState, StreamState]:
    """A stream that the client opened and the server accepted, with credit both ways."""
    ours = client.codec.open("GET", "/file", {}, credit)
    settle(client, server)
    theirs = server.codec.streams[ours.id]
    server.codec.reply(theirs, {}, credit)
    settle(client, server)
    return ours, theirs


def handshake(role: str = "client", limits: Limits | None = None) -> bytes:
    """What an end of ``role`` says first."""
    end = End(role, limits)
    if role == "server":
        end.codec.feed(PREFACE)
    return end.codec.take_control()


def snapshot(codec: Codec) -> dict[str, Any]:
    """All state of a codec and its streams, as far as attributes show it."""

    def slots(thing: object) -> dict[str, Any]:
        names = {name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())}
        return {name: getattr(thing, name) for name in names}

    state = {name: repr(value) for name, value in slots(codec).items()}
    state["streams"] = repr({key: slots(stream) for key, stream in codec.streams.items()})
    return state
