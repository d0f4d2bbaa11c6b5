"""The bytes of ZCP/1: the preface, the 32-byte header, and which of its fields each frame type uses."""

import struct
from typing import Final, NamedTuple

PREFACE: Final = b"\x89ZCP\r\n\x1a\n"
PREFACE_SIZE: Final = 8

# type, flags, reserved, stream, length, crc, offset, remaining
HEADER: Final = struct.Struct("!BBHIIIQQ")
HEADER_SIZE: Final = 32

HELLO: Final = 1
DATA: Final = 2
ACK: Final = 3
CREDIT: Final = 4
COMMIT: Final = 5
OPEN: Final = 6
REPLY: Final = 7
RESET: Final = 8
GOAWAY: Final = 9
PING: Final = 10
PONG: Final = 11
# Unknown types from here on are skipped; unknown types below it end the connection.
FIRST_IGNORABLE: Final = 0x80

# Flags of DATA.
END_MESSAGE: Final = 1
END_STREAM: Final = 2
CRC: Final = 4
# Flag of GOAWAY: no DATA will follow, and all that was sent has been acknowledged.
FINAL: Final = 1

# `remaining` of a DATA frame whose message has no known end yet.
UNKNOWN: Final = 2**64 - 1

# The feature that both ends must list before a DATA frame may carry a checksum.
FEATURE_CRC32C: Final = "crc32c"

MAX_HELLO: Final = 4096
MIN_BODY: Final = 2  # the shortest document is {}


class Rule(NamedTuple):
    """What a well-formed header of one type looks like; every field it does not use is zero."""

    name: str
    flags: int
    on_stream: bool
    has_body: bool
    has_offset: bool


# DATA is not here: it is judged on the hot path, against its stream.
RULES: Final = {
    HELLO: Rule("HELLO", 0, False, True, False),
    ACK: Rule("ACK", 0, False, False, True),
    CREDIT: Rule("CREDIT", 0, True, False, True),
    COMMIT: Rule("COMMIT", 0, True, False, True),
    OPEN: Rule("OPEN", 0, True, True, True),
    REPLY: Rule("REPLY", 0, True, True, True),
    RESET: Rule("RESET", 0, True, True, False),
    GOAWAY: Rule("GOAWAY", FINAL, False, True, True),
    PING: Rule("PING", 0, False, False, True),
    PONG: Rule("PONG", 0, False, False, True),
}


class Header(NamedTuple):
    """A header's fields, in wire order."""

    type: int
    flags: int
    reserved: int
    stream: int
    length: int
    crc: int
    offset: int
    remaining: int


def pack(
    type: int,
    flags: int = 0,
    stream: int = 0,
    length: int = 0,
    crc: int = 0,
    offset: int = 0,
    remaining: int = 0,
) -> bytes:
    """The 32 bytes of a header. Fields out of range raise ``struct.error``."""
    return HEADER.pack(type, flags, 0, stream, length, crc, offset, remaining)


def unpack(data: bytes | bytearray | memoryview) -> Header:
    """The fields of 32 header bytes, judged by nobody yet."""
    return Header._make(HEADER.unpack(data))


def fault(
    rule: Rule, flags: int, reserved: int, stream: int, crc: int, offset: int, remaining: int
) -> str | None:
    """What is wrong with a control frame's header apart from its length, or None."""
    if reserved:
        return f"{rule.name} has non-zero reserved bits"
    if flags & ~rule.flags:
        return f"{rule.name} has unknown flags {flags:#04x}"
    if (stream != 0) is not rule.on_stream:
        return f"{rule.name} on stream {stream}"
    if crc or remaining or (offset and not rule.has_offset):
        return f"{rule.name} uses header fields it does not have"
    return None
