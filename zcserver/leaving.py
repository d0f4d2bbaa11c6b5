"""How a stream is given up that somebody has left before its end."""

from typing import Final

from zcserver_protocol.errors import ErrorCode

from .channel import Channel
from .engine import Engine
from .sending.completion import Completion

LEFT: Final = "the stream was left before its end"


def dropped(engine: Engine, channel: Channel) -> None:
    """Nobody holds the stream that was opened here any more: what was sent is still delivered."""
    channel.inbox.drop()
    last = channel.outgoing[-1] if channel.outgoing else channel.last_completion
    if last is None:
        engine.reset(channel, ErrorCode.CANCELLED, LEFT)
    else:
        stop_behind(last, engine, channel, ErrorCode.CANCELLED, LEFT)


def stop_behind(last: Completion, engine: Engine, channel: Channel, code: int, reason: str) -> None:
    """Once the peer has all up to ``last``, stop what it sends, if it has not ended that itself."""

    def stop(completion: Completion) -> None:
        if completion.error is None:
            engine.reset(channel, code, reason)

    last.add_done_callback(stop)
