"""Deadlines of one connection. Time is what the caller says it is, in seconds of any steady clock."""

from .errors import ErrorCode, RemoteProtocolError
from .limits import Limits


class Timers:
    """Handshake, silence, keep-alive, and lack of progress of acknowledgements."""

    __slots__ = (
        "_acknowledged",
        "_heard_at",
        "_limits",
        "_pinged",
        "_stalled_since",
        "_started_at",
        "established",
    )

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._started_at = now
        self._heard_at = now
        self._pinged = False
        self._acknowledged = 0
        self._stalled_since: float | None = None
        self.established = False

    def tick(self, now: float, heard: bool, acknowledged: int, outstanding: bool) -> bool:
        """True when a keep-alive is due; RemoteProtocolError(TIMEOUT) when the peer is to be given up.

        ``outstanding``: bytes of ours are unacknowledged. Their clock starts at the first tick to see them.
        """
        limits = self._limits
        if heard:
            self._heard_at = now
            self._pinged = False
        if not outstanding:
            self._stalled_since = None
        elif self._stalled_since is None or acknowledged != self._acknowledged:
            self._stalled_since = now
        self._acknowledged = acknowledged
        if not self.established:
            if now - self._started_at >= limits.handshake_seconds:
                raise _timeout("no handshake", limits.handshake_seconds)
            return False
        if now - self._heard_at >= limits.silence_seconds:
            raise _timeout("not a byte from the peer", limits.silence_seconds)
        if self._stalled_since is not None and now - self._stalled_since >= limits.ack_seconds:
            raise _timeout("the peer acknowledged nothing more", limits.ack_seconds)
        if not self._pinged and now - self._heard_at >= limits.ping_seconds:
            self._pinged = True
            return True
        return False

    def deadline(self) -> float:
        """When `tick` has something to do at the latest."""
        limits = self._limits
        if not self.established:
            return self._started_at + limits.handshake_seconds
        deadline = self._heard_at + (limits.silence_seconds if self._pinged else limits.ping_seconds)
        if self._stalled_since is not None:
            deadline = min(deadline, self._stalled_since + limits.ack_seconds)
        return min(deadline, self._heard_at + limits.silence_seconds)


def _timeout(what: str, seconds: float) -> RemoteProtocolError:
    return RemoteProtocolError(ErrorCode.TIMEOUT, f"{what} for {seconds:g} seconds")
