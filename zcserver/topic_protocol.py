"""What the server of topics and its clients agree on, above ZCP/1: methods, codes, and how a record looks.

``docs/topics.md`` says what each method does, with its arguments and replies.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final

from zcserver.errors import RESET_NAMES

PUBLISH: Final = "PUBLISH"
SUBSCRIBE: Final = "SUBSCRIBE"
POSITION: Final = "POSITION"
METHODS: Final = frozenset({PUBLISH, SUBSCRIBE, POSITION})

# Reset codes beside those of ZCP/1 and of the file protocol.
TOO_SLOW: Final = 0x120
"""The subscriber asked to be disconnected rather than miss something, and would have missed something."""
SUPERSEDED: Final = 0x121
"""The same publisher has connected again: this is its stream of before."""

RESET_NAMES.update({TOO_SLOW: "TOO_SLOW", SUPERSEDED: "SUPERSEDED"})

LATEST: Final = "latest"
EARLIEST: Final = "earliest"
COMMITTED: Final = "committed"
"""Where a subscriber may begin, besides a sequence number."""

INLINE: Final = 8 * 1024
"""Payloads up to so many bytes travel in the head's own message; larger ones in a message of their own."""
MAX_KEY: Final = 1024
MAX_TYPE: Final = 255
MAX_NAME: Final = 255
MAX_SEQUENCE: Final = 2**63 - 1
_HEAD: Final = struct.Struct(">BBHBxxxQqQQ")
HEAD_SIZE: Final = _HEAD.size


class Policy(StrEnum):
    """What happens when a subscriber is slower than the publisher."""

    BLOCK = "block"
    """The publisher waits; the topic has to allow it."""
    DROP_OLDEST = "drop-oldest"
    """It misses what leaves the retention window before it gets there."""
    LATEST = "latest"
    """It gets the newest whenever it is ready for one, and misses what lies between."""
    DISCONNECT = "disconnect"
    """Its subscription ends with TOO_SLOW."""


class Kind(IntEnum):
    """What a head announces."""

    INLINE = 1
    """A message whose payload is in the rest of this very ZCP/1 message."""
    BODY = 2
    """A message whose payload is the next ZCP/1 message."""
    MISSING = 3
    """A range of sequence numbers that this subscriber does not get."""


class Reason(IntEnum):
    """Why sequence numbers are missing."""

    NOT_RETAINED = 1
    """They had left the retention window before the subscription began."""
    DROPPED = 2
    """They left it while this subscriber was too slow."""
    CONFLATED = 3
    """Newer ones took their place, as this subscriber asked."""
    RESTARTED = 4
    """The topic began anew (its server was restarted), and counts from 1 again."""


class MalformedError(ValueError):
    """These bytes are no head."""


@dataclass(frozen=True, slots=True)
class Head:
    """What is told of a message, or of a missing range (``sequence`` to ``last``, both included).

    ``timestamp_ns``: nanoseconds since 1970. ``length``: bytes of the payload. To the server ``sequence`` is
    the publisher's count of its own messages, from it the topic's; both begin with 1.
    """

    kind: Kind
    sequence: int
    timestamp_ns: int = 0
    length: int = 0
    last: int = 0
    reason: int = 0
    key: str = ""
    content_type: str = ""

    def encode(self, payload: bytes | memoryview = b"") -> bytes:
        """The ZCP/1 message: 40 bytes, key, content type, and ``payload`` if the kind is INLINE."""
        key, content_type = self.key.encode(), self.content_type.encode()
        sizes = (len(content_type), len(key), self.reason)
        fixed = _HEAD.pack(self.kind, *sizes, self.sequence, self.timestamp_ns, self.length, self.last)
        return b"".join((fixed, key, content_type, payload))


def decode(data: memoryview) -> tuple[Head, memoryview]:
    """The head at the beginning of a ZCP/1 message, and the rest. MalformedError if there is none."""
    try:
        kind, type_size, key_size, reason, sequence, timestamp, length, last = _HEAD.unpack_from(data)
        end = HEAD_SIZE + key_size
        key = str(data[HEAD_SIZE:end], "utf-8")
        content_type = str(data[end : end + type_size], "utf-8")
        head = Head(Kind(kind), sequence, timestamp, length, last, reason, key, content_type)
    except (struct.error, ValueError) as error:
        raise MalformedError(f"no head of a message: {error}") from None
    rest = data[end + type_size :]
    due = length if kind == Kind.INLINE else 0
    if len(data) < end + type_size or key_size > MAX_KEY or len(rest) != due:
        raise MalformedError("no head of a message: its lengths are not those of its content")
    return head, rest


def restamped(data: memoryview | bytes, sequence: int, timestamp_ns: int) -> bytes:
    """The same ZCP/1 message with another sequence number and time: content that may be shared by all."""
    copy = bytearray(data)
    struct.pack_into(">Qq", copy, 8, sequence, timestamp_ns)
    return bytes(copy)
