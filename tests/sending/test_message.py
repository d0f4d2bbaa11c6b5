"""Every cut of a run, by both lanes: what is still to be sent is what the wire lacks."""

from itertools import accumulate

import pytest

from zcserver.kernel.calls import address_of, memory_at, pointer_to
from zcserver.sending.message import COPY, REFERENCE, Frame, Outgoing
from zcserver_protocol.frames import HEADER_SIZE

FIRST_HEADER = 64


class Page:
    """A page of headers, in which some places are taken."""

    def __init__(self):
        self.view = memoryview(bytearray(4096))
        self.address = address_of(self.view)

    def take(self, count):
        return FIRST_HEADER


def run_of(sizes, lane):
    """A run of messages of these sizes, and its bytes on the wire."""
    contents = [memoryview(bytes([65 + number]) * size) for number, size in enumerate(sizes)]
    messages = [
        Outgoing(len(content), None, content, address_of(content) if lane == REFERENCE else 0)
        for content in contents
    ]
    ends = list(accumulate(HEADER_SIZE + size for size in sizes))
    frame = Frame(messages, ends, lane, Page() if lane == REFERENCE else None)
    wire = b""
    for number, content in enumerate(contents):
        header = bytes(range(7 * number, 7 * number + HEADER_SIZE))
        start = frame.header_start + number * HEADER_SIZE
        frame.header[start : start + HEADER_SIZE] = header
        wire += header + content
    return frame, wire


def gathered(frame, one_frame):
    parts = b""
    for header_at, header, at, left in frame.pieces(one_frame):
        for address, nbytes in ((header_at, header), (at, left)):
            parts += bytes(memory_at(pointer_to(address), nbytes)) if nbytes else b""
    return parts


@pytest.mark.interpreted
@pytest.mark.parametrize("lane", [COPY, REFERENCE])
@pytest.mark.parametrize("sizes", [[0], [5], [3, 0, 7, 1], [0, 0, 40], [1] * 5], ids=str)
def test_what_is_still_to_be_sent_is_what_the_wire_lacks(sizes, lane):
    frame, wire = run_of(sizes, lane)
    for sent in range(len(wire)):
        frame.sent = sent
        for one_frame in (False, True):
            if one_frame and sent in (0, *frame.ends):
                continue  # between two frames nothing has to end early
            stop = next(end for end in frame.ends if end > sent) if one_frame else len(wire)
            assert b"".join(bytes(part) for part in frame.copyable(one_frame)) == wire[sent:stop]
            if lane == REFERENCE:
                assert gathered(frame, one_frame) == wire[sent:stop]


@pytest.mark.parametrize("sizes", [[5], [3, 0, 7, 1], [0, 0, 40]], ids=str)
def test_bytes_are_told_by_messages_and_headers(sizes):
    frame, wire = run_of(sizes, COPY)
    begins = [0, *frame.ends[:-1]]
    for start in range(len(wire)):
        for stop in range(start + 1, len(wire) + 1):
            places = range(start, stop)
            headers = [place for place in places if any(0 <= place - begin < HEADER_SIZE for begin in begins)]
            assert frame.headers_in(start, stop) == len(headers)
            touched = [
                message
                for message, begin, end in zip(frame.messages, begins, frame.ends, strict=True)
                if begin < stop and start < end
            ]
            assert frame.touched(start, stop) == touched
            ended = [
                each for each, end in zip(frame.messages, frame.ends, strict=True) if start < end <= stop
            ]
            assert frame.ended(start, stop) == ended
