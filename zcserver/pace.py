"""A limit on bytes per second, shared by whatever transfers should stay below it together."""

from typing import Final

import anyio

_BURST: Final = 0.1  # seconds' worth that may go at once after a pause


class Pace:
    """``await spend(n)`` returns when ``n`` bytes more are within ``rate`` bytes per second (0: no limit)."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._due = 0.0

    @property
    def limits(self) -> bool:
        return self._rate > 0

    @property
    def piece(self) -> int:
        """How many bytes to move between two calls, so that a slow pace is an even one."""
        return max(16 << 10, int(self._rate * _BURST)) if self._rate else 1 << 62

    async def spend(self, nbytes: int) -> None:
        """Cancelled, it has spent nothing."""
        if not self._rate:
            return
        now = anyio.current_time()
        seconds = nbytes / self._rate
        self._due = max(self._due, now - _BURST) + seconds
        if self._due > now:
            try:
                await anyio.sleep(self._due - now)
            except BaseException:
                self._due -= seconds
                raise
