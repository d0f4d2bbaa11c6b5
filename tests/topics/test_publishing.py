"""What comes from publishers, clients or the server itself, and what becomes of the odd."""

import pytest

import zcserver
from tests.topics.wire import MIB, publisher, serving
from zcserver_protocol.errors import ErrorCode

pytestmark = pytest.mark.anyio


async def test_large_messages_that_are_sent_again_hold_no_memory_and_delay_no_others(make_context):
    async with serving(make_context) as served:
        writer = await publisher(await served.connect(), name="p")
        for sequence in (1, 2, 2, 2, 2, 1, 3, 4):
            await writer.send(bytes(MIB), sequence=sequence)
        await writer.accepted()
        stats = served.context.pool.stats()
        assert stats.filling == 0
        assert 4 * MIB <= stats.in_flight < 5 * MIB  # each is where it landed, once


async def test_a_large_message_without_a_message_of_its_own_is_refused(make_context):
    async with serving(make_context) as served:
        writer = await publisher(await served.connect())
        await writer.send(bytes(9000), body=False)
        with pytest.raises(zcserver.StreamResetError, match="message of its own") as caught:
            await writer.accepted()
        assert caught.value.code == ErrorCode.REFUSED
