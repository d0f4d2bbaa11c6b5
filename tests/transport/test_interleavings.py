"""Random interleavings of all that two ends can do, against a model: which bytes were accepted, in order."""

import asyncio
import contextlib
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zcserver
from tests.transport.recorders import KIB, MIB, Recorder, paired, until

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
# Bytes by their place in a stream: what is lost, doubled or moved shows. 251 is prime to every block size.
PATTERN = bytes(range(251)) * (16 * MIB // 251)

sizes = st.one_of(st.integers(0, 300), st.integers(20 * KIB, 80 * KIB), st.sampled_from([MIB, 3 * MIB - 1]))
operations = st.one_of(
    st.tuples(st.just("write"), sizes, st.sampled_from([bytes, bytearray, memoryview])),
    st.tuples(st.just("writelines"), st.lists(sizes, max_size=4)),
    st.tuples(st.just("send"), sizes),
    st.tuples(st.just("buffer"), st.sampled_from([1, 5000, 100 * KIB, MIB])),
    st.tuples(st.just("cancelled acquire"), st.sampled_from([1, 4 * MIB])),
    st.tuples(st.just("cancelled waiter")),
    st.tuples(st.just("pause")),
    st.tuples(st.just("sip")),
    st.tuples(st.just("resume")),
    st.tuples(st.just("turns"), st.integers(1, 20)),
    st.tuples(st.just("eof")),
)
endings = st.one_of(st.just(("nothing",)), st.just(("close",)), st.just(("abort",)))
ends = st.sampled_from(["left", "right"])
scripts = st.tuples(
    st.lists(st.tuples(ends, operations), max_size=25),
    st.tuples(ends, endings),
    st.lists(st.tuples(ends, operations), max_size=5),
)


class Sipping(Recorder):
    """Half open; once ``sips`` is set it pauses within every delivery, for a turn of the loop."""

    sips = False

    def __init__(self) -> None:
        super().__init__(keep_open=True)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.sips:
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self.transport.resume_reading)


class End:
    """One end of the model: ``accepted`` counts the bytes that the other end has to get, in order."""

    def __init__(self, protocol: Sipping) -> None:
        self.protocol = protocol
        self.transport = protocol.transport
        self.accepted = 0
        self.closed = False  # for writing
        self.left_early = False
        self.completions: list[zcserver.Completion] = []
        self.resolutions: dict[int, int] = {}

    def take(self, nbytes: int) -> bytes:
        """The next bytes of this end's stream, which count if they are accepted."""
        data = PATTERN[self.accepted % 251 :][:nbytes]
        if not self.closed:
            self.accepted += nbytes
        return data

    def watch(self, completion: zcserver.Completion) -> None:
        index = len(self.completions)
        self.completions.append(completion)

        def resolved(_: zcserver.Completion) -> None:
            self.resolutions[index] = self.resolutions.get(index, 0) + 1

        completion.add_done_callback(resolved)

    async def perform(self, name: str, *arguments: Any) -> None:
        transport = self.transport
        if self.closed and name in ("write", "writelines", "send", "buffer"):
            return
        match name, *arguments:
            case "write", nbytes, kind:
                data = self.take(nbytes)
                memory = kind(bytearray(data) if kind is memoryview else data)
                transport.write(memory)
                if kind is not bytes and nbytes:
                    memory[:] = bytes(nbytes)
            case "writelines", several:
                transport.writelines([self.take(nbytes) for nbytes in several])
            case "send", nbytes:
                before = self.accepted
                try:
                    self.watch(transport.send(self.take(nbytes)))
                except zcserver.ConnectionLostError:
                    self.accepted = before
            case "buffer", nbytes:
                await self.buffer(nbytes)
            case "cancelled acquire", nbytes:
                asking = asyncio.ensure_future(transport.acquire(nbytes))
                await asyncio.sleep(0)
                asking.cancel()
                with contextlib.suppress(asyncio.CancelledError, zcserver.ZCServerError):
                    (await asking).release()
            case ("cancelled waiter",):
                waiting = [asyncio.ensure_future(completion.wait()) for completion in self.completions]
                await asyncio.sleep(0)
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
            case "turns", count:
                for _ in range(count):
                    await asyncio.sleep(0)
            case ("sip",):
                self.protocol.sips = True
            case ("pause",):
                transport.pause_reading()
            case ("resume",):
                transport.resume_reading()
            case ("eof",):
                transport.write_eof()
                self.closed = True
            case ("close",) | ("abort",):
                getattr(transport, name)()
                self.closed = self.left_early = True

    async def buffer(self, nbytes: int) -> None:
        pool = self.transport.get_extra_info("pool")
        link = self.transport._link
        buffer = pool.try_acquire(nbytes, link.principal, link.name)
        if buffer is None:
            return
        before = self.accepted
        buffer.view[:] = self.take(nbytes)
        try:
            self.watch(self.transport.send(buffer))
        except zcserver.ConnectionLostError:
            buffer.release()
            self.accepted = before


async def play(script: Any, make_context: Any, trust_peer: bool) -> None:
    before, (leaver, ending), after = script
    contexts = [
        make_context(pool_size=8 * MIB, receive_memory=16 * MIB, window=2 * MIB, stream_window=512 * KIB)
        for _ in range(2)
    ]

    async with paired(*contexts, Sipping, Sipping, trust_peer=trust_peer) as pair:
        both = {"left": End(pair.client), "right": End(pair.server)}
        for name, operation in before:
            await both[name].perform(*operation)
        await both[leaver].perform(*ending)
        for name, operation in after:
            await both[name].perform(*operation)
        for end in both.values():
            await end.perform("resume")
            await end.perform("eof")
        for end in both.values():
            protocol = end.protocol
            await until(lambda: end.left_early or {"eof_received", "connection_lost"} & {*protocol.calls})  # noqa: B023
        for end in both.values():
            end.transport.close()
        await pair.over()
        left, right = both["left"], both["right"]
        judge(left, right, ending)
        judge(right, left, ending)
        await until(lambda: left.transport._link.over and right.transport._link.over)
    for context in contexts:
        stats = context.pool.stats()
        assert (stats.filling, stats.in_flight, stats.viewed) == (0, 0, 0), "a buffer did not come home"
        assert stats.free + stats.quarantined == stats.size
        if ending != ("abort",):
            assert stats.quarantined == 0
            assert context.foreign.quarantined == 0
        assert context.foreign.in_flight == 0
        assert context.receive_memory.used == context.receive_memory.promised == 0
        context.close()


def judge(sender: End, receiver: End, ending: Any) -> None:
    received = receiver.protocol.data
    expected = (PATTERN * 2)[: len(received)]
    assert received == expected, "bytes were doubled, moved or lost in the middle"
    assert len(received) <= sender.accepted
    assert sender.protocol.calls.count("connection_lost") == 1
    assert all(completion.done for completion in sender.completions)
    assert sender.resolutions == dict.fromkeys(range(len(sender.completions)), 1)
    if ending == ("nothing",):
        assert sender.protocol.error is None
        assert all(completion.error is None for completion in sender.completions)
    if ending != ("abort",) and not receiver.left_early and receiver.protocol.error is None:
        assert len(received) == sender.accepted, "bytes were lost at the end"


@pytest.mark.parametrize("loop", LOOPS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(script=scripts, trust_peer=st.booleans())
def test_no_byte_is_lost_doubled_or_moved_and_every_completion_and_buffer_has_one_end(
    loop: str, make_context: Any, script: Any, trust_peer: bool
) -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(play(script, make_context, trust_peer))
