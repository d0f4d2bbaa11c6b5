"""What all connections of a server have carried together, closed ones included."""

import weakref
from dataclasses import fields
from typing import Final

from zcserver.connection import Connection
from zcserver.sending.statistics import TransferStatistics

_COUNTERS: Final = [field.name for field in fields(TransferStatistics) if field.type is int]


class Totals:
    """Sums of :class:`TransferStatistics`. Call ``add`` with a connection once or often: it costs nothing."""

    def __init__(self) -> None:
        self._gone = dict.fromkeys(_COUNTERS, 0)
        self._living: weakref.WeakKeyDictionary[Connection, TransferStatistics] = weakref.WeakKeyDictionary()
        self.connections = 0

    def add(self, connection: Connection) -> None:
        """Count this connection, with all that it will have carried."""
        if connection not in self._living:
            self.connections += 1
            self._living[connection] = connection.statistics
            weakref.finalize(connection, self._add_up, self._gone, connection.statistics).atexit = False

    def as_dict(self) -> dict[str, int]:
        sums = dict(self._gone)
        for statistics in self._living.values():
            self._add_up(sums, statistics)
        return {"connections": self.connections, **sums}

    @staticmethod
    def _add_up(sums: dict[str, int], statistics: TransferStatistics) -> None:
        for name in _COUNTERS:
            sums[name] += getattr(statistics, name)
