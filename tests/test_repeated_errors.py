"""An error ends many waits: each raises one of its own, which keeps nobody's frames alive for the others."""

import contextlib
import gc
import inspect
import weakref

import pytest

import zcserver
from tests.raw_peer import deadline, joined, until
from zcserver import errors
from zcserver.again import again
from zcserver_protocol.errors import ErrorCode

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.ZCServerError) and kind is not errors.StreamResetError
]


class DifficultError(OSError):
    """An application's own, which cannot be made from its arguments alone."""

    def __init__(self, what, where):
        super().__init__(f"{what} at {where}")


@pytest.mark.parametrize(
    "error",
    [kind("some words") for kind in KINDS]
    + [
        errors.StreamResetError(ErrorCode.CANCELLED, "why"),
        errors.StreamResetError(12345, ""),
        FileNotFoundError(2, "No such file", "name"),
        ExceptionGroup("two", [ValueError(1), KeyError("x")]),
        DifficultError("this", "there"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "reason"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_raised_again_as_it_was(error):
    error.__cause__ = ZeroDivisionError()
    with pytest.raises(type(error)):
        raise error
    fresh = again(error)
    assert type(fresh) is type(error)
    assert fresh.__traceback__ is None
    assert (str(fresh), repr(fresh), fresh.args) == (str(error), repr(error), error.args)
    assert vars(fresh) == vars(error)
    assert fresh.__cause__ is error.__cause__
    assert fresh is not error or isinstance(error, DifficultError | UnicodeDecodeError)


class Precious:
    """What a task holds while it learns of an error."""


LOST = {
    "receive": lambda stream, sent: stream.receive(),
    "receive_into": lambda stream, sent: stream.receive_into(bytearray(1)),
    "send": lambda stream, sent: stream.send(b"x"),
    "end": lambda stream, sent: stream.end(),
    "response": lambda stream, sent: stream.response(),
    "commit": lambda stream, sent: stream.commit(1),
    "wait_committed": lambda stream, sent: stream.wait_committed(1),
    "completion": lambda stream, sent: sent.wait(),
    "open": lambda stream, sent: stream.connection.open("GET", "/"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("wait", LOST)
async def test_who_learns_of_an_error_is_not_kept_by_it(make_context, wait):
    async def learn(stream, sent):
        precious = Precious()
        held.append(weakref.ref(precious))
        for _ in range(2):
            with contextlib.suppress(zcserver.TransferError):
                await LOST[wait](stream, sent)

    held = []
    with deadline():
        try:
            async with joined(make_context()) as ends:
                ours, theirs = await ends.stream()
                sent = await ours.send(bytes(8 << 20))
                if wait == "open":
                    ends.client.abort()
                else:
                    theirs.reset(ErrorCode.CANCELLED, "enough")
                await until(lambda: ours.failed)
                gc.collect()
                gc.disable()
                try:
                    await learn(ours, sent)
                    assert held[0]() is None
                finally:
                    gc.enable()
        except zcserver.ConnectionLostError:
            assert wait == "open"
