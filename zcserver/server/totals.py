"""What all connections of a server have carried together, closed ones included."""

import weakref
from dataclasses import asdict, replace

from zcserver.connection import Connection
from zcserver.sending.statistics import TransferStatistics


class Totals:
    """Sums of :class:`TransferStatistics`. Call ``add`` after each stream: it takes what is new."""

    def __init__(self) -> None:
        self._sums: dict[str, int] = {}
        self._taken: weakref.WeakKeyDictionary[Connection, TransferStatistics] = weakref.WeakKeyDictionary()
        self.connections = 0

    def add(self, connection: Connection) -> None:
        """Take over what this connection has carried since the last call."""
        before = self._taken.get(connection)
        if before is None:
            before = TransferStatistics()
            self.connections += 1
        now = replace(connection.statistics)
        self._taken[connection] = now
        old = asdict(before)
        for name, value in asdict(now).items():
            if isinstance(value, int):
                self._sums[name] = self._sums.get(name, 0) + value - old[name]

    def as_dict(self) -> dict[str, int]:
        return {"connections": self.connections, **self._sums}
