"""Gaps as a server announces them, sensibly or not: what a subscriber makes of them, and keeps."""

import contextlib

import anyio
import pytest

import zcserver
from zcserver.client import Missing
from zcserver.topic_protocol import MAX_SEQUENCE, Head, Kind, Reason

pytestmark = pytest.mark.anyio

NOT_RETAINED, DROPPED = Reason.NOT_RETAINED, Reason.DROPPED


def gap(first, last, reason=DROPPED):
    return Head(Kind.MISSING, first, last=last, reason=reason).encode()


def message(sequence):
    return Head(Kind.INLINE, sequence, length=1).encode(b"x")


@contextlib.asynccontextmanager
async def subscribed(make_context, start, *said):
    """A subscription to a server that says this, and then nothing more."""

    async def handle(stream):
        await stream.reply(epoch="e", first=start, next=start, start=start)
        for each in said:
            await stream.send(each)
        await stream.response()

    with anyio.fail_after(30):
        async with (
            zcserver.serve(handle, port=0, context=make_context()) as server,
            zcserver.Client(f"zc://127.0.0.1:{server.port}/", context=make_context()) as client,
            client.subscribe("/t") as subscription,
        ):
            yield subscription


async def test_gaps_that_follow_each_other_are_one_for_each_reason(make_context):
    said = (gap(1, 3, NOT_RETAINED), gap(4, 4), *(gap(n, n) for n in range(5, 1000)), message(1000))
    async with subscribed(make_context, 1, *said) as subscription:
        received = await anext(subscription)
    assert received.missed == (Missing(1, 3, NOT_RETAINED), Missing(4, 999, DROPPED))
    assert subscription.missed == 999


async def test_gaps_of_ever_changing_reasons_are_bounded(make_context):
    reasons = [NOT_RETAINED, DROPPED]
    said = (*(gap(n, n, reasons[n % 2]) for n in range(1, 1000)), message(1000))
    async with subscribed(make_context, 1, *said) as subscription:
        received = await anext(subscription)
    assert len(received.missed) == 64
    assert (received.missed[0].first, received.missed[-1].last) == (1, 999)
    for before, after in zip(received.missed, received.missed[1:], strict=False):
        assert after.first == before.last + 1


@pytest.mark.parametrize("last", [MAX_SEQUENCE, 2**64 - 1, None], ids=["least", "most", "message"])
async def test_numbers_behind_which_none_can_be_asked_for_are_refused(make_context, last):
    said = message(MAX_SEQUENCE) if last is None else gap(MAX_SEQUENCE, last)
    async with subscribed(make_context, MAX_SEQUENCE, said) as subscription:
        with pytest.raises(zcserver.TransferError, match="numbers of messages are below"):
            await anext(subscription)
