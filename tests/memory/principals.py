"""For whom the tests of the pool ask for memory."""

from zcserver.memory import Buffer, Pool, Principal, PrincipalKind


def identity(name: str = "friend", quota: int | None = None) -> Principal:
    return Principal(name, PrincipalKind.IDENTITY, quota)


def stranger(name: str = "stranger", quota: int | None = None) -> Principal:
    return Principal(name, PrincipalKind.CONNECTION, quota)


def acquire(pool: Pool, nbytes: int, principal: Principal, by_reference_ok: bool = True) -> Buffer:
    buffer = pool.try_acquire(nbytes, principal, principal.name, by_reference_ok)
    assert buffer is not None
    return buffer


def send(buffer: Buffer) -> None:
    buffer.seal()
    buffer.home()
