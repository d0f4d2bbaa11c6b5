"""Nothing of a file is held in memory for peers that do not take it."""

import os

import pytest

import zcserver
from tests.raw_peer import MIB, RawPeer, deadline
from zcserver.file_protocol import GET, LIST
from zcserver.pace import Pace
from zcserver.server import FileServer, Root
from zcserver.server.paths import OpenFile
from zcserver.stream import Stream
from zcserver_protocol.frames import HEADER_SIZE

pytestmark = pytest.mark.anyio
CONTENT = os.urandom(3 * MIB)


async def test_a_small_file_is_read_when_there_is_credit_for_all_of_it(
    served, files, make_context, monkeypatch
):
    read, reads = OpenFile.read, []
    monkeypatch.setattr(OpenFile, "read", lambda *arguments: (reads.append(1), read(*arguments))[1])
    (served / "file").write_bytes(CONTENT[:1000])
    with deadline():
        async with zcserver.serve(files.handle, port=0, context=make_context()) as server:
            with await RawPeer.connect(server.port) as peer:
                for credit in (0, HEADER_SIZE + 999, HEADER_SIZE + 1000):
                    del reads[:], peer.log[:]
                    stream = await peer.open(credit, "/file")
                    await peer.read_until(lambda: "Replied" in peer.log)
                    assert len(reads) == (credit == HEADER_SIZE + 1000)
                    if not stream.recv_ended:
                        peer.codec.credit(stream, 1 << 40)
                    await peer.flush()
                    await peer.read_until(lambda stream=stream: stream.recv_ended)
                    assert peer.messages.pop(stream.id) == [CONTENT[:1000]]


async def test_a_stable_get_reads_on_when_all_before_is_on_its_way_and_more_may_be(
    served, files, make_context, monkeypatch
):
    streams, unwanted = [], []
    pread = os.pread

    def watched(*arguments):
        (stream,) = streams
        if stream._channel.outgoing or not stream.credit:
            unwanted.append(arguments)
        return pread(*arguments)

    async def handle(stream):
        streams.append(stream)
        await files.handle(stream)

    monkeypatch.setattr("zcserver.server.reading.os.pread", watched)
    (served / "file").write_bytes(CONTENT)
    with deadline():
        async with zcserver.serve(handle, port=0, context=make_context()) as server:
            with await RawPeer.connect(server.port) as peer:
                stream = peer.codec.open(GET, "/file", {"stable": True}, 0)
                await peer.flush()
                await peer.read_until(lambda: "Replied" in peer.log)
                while not stream.recv_ended:
                    peer.codec.credit(stream, stream.recv_credit + 300_000)
                    await peer.flush()
                    await peer.read_until(
                        lambda: stream.recv_wire + HEADER_SIZE >= stream.recv_credit or stream.recv_ended
                    )
    assert b"".join(peer.messages[stream.id][:-1]) == CONTENT
    assert not unwanted


async def test_a_get_with_a_rate_queues_one_piece_at_a_time(served, make_context, monkeypatch):
    queued = []
    send_file = Stream.send_file

    async def watched(stream, *arguments):
        queued.append(len(stream._channel.outgoing))
        return await send_file(stream, *arguments)

    async def no_time(pace, nbytes):
        pass

    monkeypatch.setattr(Stream, "send_file", watched)
    monkeypatch.setattr(Pace, "spend", no_time)
    (served / "file").write_bytes(CONTENT)
    with deadline(), Root(served) as root:
        files = FileServer(root, rate=10 * MIB)  # pieces of a mebibyte
        async with zcserver.serve(files.handle, port=0, context=make_context()) as server:
            with await RawPeer.connect(server.port) as peer:
                stream = await peer.open(0, "/file")
                while not stream.recv_ended:
                    peer.codec.credit(stream, stream.recv_credit + 300_000)
                    await peer.answer()
                    await peer.read_until(
                        lambda: stream.recv_wire + HEADER_SIZE >= stream.recv_credit or stream.recv_ended
                    )
    assert queued == [0, 0, 0]


async def test_a_listing_is_answered_although_its_client_takes_nothing_yet(served, files, make_context):
    with deadline():
        async with zcserver.serve(files.handle, port=0, context=make_context()) as server:
            with await RawPeer.connect(server.port) as peer:
                peer.codec.open(LIST, "/", {}, 0)
                await peer.flush()
                await peer.read_until(lambda: "Replied" in peer.log)
