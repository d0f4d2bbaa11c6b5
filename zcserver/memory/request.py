"""What a request takes from the pool, and what can never be had, however long one waits."""

from collections.abc import Sequence

from zcserver.errors import MisuseError, RequestTooLargeError
from zcserver.memory.account import REGION_PAGES, Account
from zcserver.memory.region import PAGE, pages_of
from zcserver.memory.report import amount


def check(sizes: Sequence[int], account: Account, pool_pages: int) -> None:
    """Raise if these can never be had together: ``MisuseError`` or ``RequestTooLargeError``."""
    if min(sizes) < 1:
        raise MisuseError(f"a buffer has at least 1 byte; {list(sizes)} bytes were asked for")
    pages = [pages_of(size) for size in sizes]
    asked = f"{sum(sizes)} bytes ({amount(sum(pages) * PAGE)} in whole pages or regions)"
    if sum(pages) > account.ceiling < pool_pages:
        raise RequestTooLargeError(
            f"{asked} were asked for {account.principal.name}, whose quota is {account.ceiling * PAGE} "
            "bytes: ask for less at a time, or raise its quota"
        )
    if _regions_for(pages) * REGION_PAGES > pool_pages:
        raise RequestTooLargeError(
            f"{asked} were asked for, and this pool of {pool_pages * PAGE} bytes can never have that free "
            "at once: ask for less at a time, or make the pool larger"
        )


def _regions_for(pages: list[int]) -> int:
    """How many empty regions these need, packed as the pool packs them: the largest first."""
    rooms: list[int] = []
    whole = 0
    for count in sorted(pages, reverse=True):
        if count > REGION_PAGES:
            whole += count // REGION_PAGES
            continue
        fitting = [index for index, room in enumerate(rooms) if room >= count]
        if fitting:
            rooms[fitting[-1]] -= count
        else:
            rooms.append(REGION_PAGES - count)
    return whole + len(rooms)
