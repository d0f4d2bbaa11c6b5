"""Memory whose pages go to the network by reference, and come back only when nobody reads them any more.

The way of a buffer: :mod:`.pool` takes a run of pages from a region (:mod:`.region`) that is leased to the
principal (:mod:`.principal`, :mod:`.leasing`), counts it (:mod:`.account`, :mod:`.report`), hands it out as
a :class:`Buffer` (:mod:`.buffer`), and takes it back. Requests that have to wait stand in :mod:`.waiting`;
regions that dead peers may still read rest in :mod:`.quarantine`; what is dropped instead of given back turns
up in :mod:`.strays`.
"""

from zcserver.memory.buffer import Buffer, BufferState
from zcserver.memory.pool import Pool
from zcserver.memory.principal import COMMON, Principal, PrincipalKind
from zcserver.memory.region import PAGE, REGION
from zcserver.memory.report import PoolStats

__all__ = [
    "COMMON",
    "PAGE",
    "REGION",
    "Buffer",
    "BufferState",
    "Pool",
    "PoolStats",
    "Principal",
    "PrincipalKind",
]
