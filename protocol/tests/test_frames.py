"""The header's layout, and the rules that connect the frames of a message."""

import struct

import pytest

from zcserver_protocol import frames
from zcserver_protocol.frames import CRC, END_MESSAGE, END_STREAM, UNKNOWN
from zcserver_protocol.streams import BOUNDARY, ILLEGAL, after_frame


def test_a_header_has_32_bytes_in_network_order() -> None:
    packed = frames.pack(
        frames.DATA,
        END_MESSAGE | CRC,
        0x01020304,
        0x05060708,
        0x090A0B0C,
        0x0D0E0F1011121314,
        0x15161718191A1B1C,
    )
    assert packed == bytes([2, 5, 0, 0, *range(1, 0x1D)])
    assert len(packed) == frames.HEADER_SIZE == 32


def test_every_field_comes_back_from_its_bytes() -> None:
    header = frames.Header(0xFF, 0xFE, 0, 2**32 - 1, 2**32 - 2, 2**32 - 3, 2**64 - 1, 2**64 - 2)
    packed = frames.pack(*header[:2], *header[3:])
    assert frames.unpack(packed) == header
    assert frames.unpack(memoryview(bytearray(packed))) == header


@pytest.mark.parametrize(
    ("field", "value"), [("stream", 2**32), ("length", -1), ("offset", 2**64), ("type", 256)]
)
def test_a_field_out_of_range_does_not_travel(field: str, value: int) -> None:
    with pytest.raises(struct.error):
        frames.pack(**{"type": 1, field: value})


def test_the_preface_betrays_seven_bit_and_newline_damage() -> None:
    assert frames.PREFACE[0] & 0x80
    assert b"\r\n" in frames.PREFACE
    assert frames.PREFACE.endswith(b"\n")
    assert len(frames.PREFACE) == frames.PREFACE_SIZE == 8


@pytest.mark.parametrize(
    ("expected", "length", "remaining", "flags", "then"),
    [
        (BOUNDARY, 10, 0, END_MESSAGE, BOUNDARY),  # a message in one frame
        (BOUNDARY, 0, 0, END_MESSAGE, BOUNDARY),  # an empty message
        (BOUNDARY, 0, 0, END_MESSAGE | END_STREAM, BOUNDARY),  # an empty message, the last one
        (BOUNDARY, 0, 0, END_STREAM, BOUNDARY),  # a pure end marker
        (BOUNDARY, 10, 90, 0, 90),
        (90, 40, 50, 0, 50),
        (50, 50, 0, END_MESSAGE, BOUNDARY),
        (BOUNDARY, 10, UNKNOWN, 0, UNKNOWN),
        (UNKNOWN, 10, UNKNOWN, 0, UNKNOWN),
        (UNKNOWN, 10, 5, 0, 5),  # the end became known
        (UNKNOWN, 0, 0, END_MESSAGE, BOUNDARY),  # the end turned out to be here
    ],
)
def test_frames_that_continue_a_message(
    expected: int, length: int, remaining: int, flags: int, then: int
) -> None:
    assert after_frame(expected, length, remaining, flags) == then
    assert after_frame(expected, length, remaining, flags | CRC) == then


@pytest.mark.parametrize(
    ("expected", "length", "remaining", "flags"),
    [
        (BOUNDARY, 10, 5, END_MESSAGE),  # ends and does not end
        (BOUNDARY, 10, 0, 0),  # nothing follows, yet it does not end
        (BOUNDARY, 0, 10, 0),  # carries nothing and ends nothing
        (BOUNDARY, 10, 0, END_STREAM),  # payload that belongs to no message
        (BOUNDARY, 10, 5, END_STREAM),
        (90, 0, 0, END_STREAM),  # the stream ends within a message
        (UNKNOWN, 0, 0, END_STREAM),
        (90, 40, 51, 0),  # the message grew
        (90, 40, UNKNOWN, 0),  # the promise was taken back
        (90, 89, 0, END_MESSAGE),  # the message shrank
        (90, 0, 90, 0),
    ],
)
def test_frames_that_break_a_message(expected: int, length: int, remaining: int, flags: int) -> None:
    assert after_frame(expected, length, remaining, flags) == ILLEGAL


def test_rules_name_every_control_frame_once() -> None:
    names = [rule.name for rule in frames.RULES.values()]
    assert len(set(names)) == len(names) == 10
    for rule in frames.RULES.values():
        assert getattr(frames, rule.name) in frames.RULES
