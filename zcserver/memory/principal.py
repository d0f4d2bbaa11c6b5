"""For whom memory is kept: pages that were sent by reference never serve two principals (rule 3).

A peer that acknowledges before it reads sees whatever is written into those pages next. So they go
back only to the peer, or the group of peers, that could see them anyway.
"""

from enum import Enum
from typing import Final


class PrincipalKind(Enum):
    """How well the peers behind a principal are known; only strangers are held to shares and thresholds."""

    CONNECTION = "connection"
    """A stranger: this one connection and nobody else."""
    TRUSTED = "trusted"
    """The group of peers that the application declared trusted."""
    IDENTITY = "identity"
    """One authenticated identity, over all its connections."""


class Principal:
    """Somebody memory is kept for. Two principals are the same only if they are the same object.

    ``quota`` is the most pool memory in bytes that it may hold at once (``None``: as much as there is).
    """

    __slots__ = ("kind", "name", "quota")

    def __init__(self, name: str, kind: PrincipalKind, quota: int | None = None) -> None:
        self.name = name
        self.kind = kind
        self.quota = quota

    def __repr__(self) -> str:
        return f"<Principal {self.name} ({self.kind.value})>"


COMMON: Final = Principal("common", PrincipalKind.TRUSTED)
"""Everybody's: its regions go by the copy lane only, so any principal may use them and none is ever cut."""
