"""The transport's tests run on asyncio and uvloop, under pytest-asyncio, and on three kinds of kernel."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
import uvloop

from tests.transport.recorders import Pair, paired


def pytest_asyncio_loop_factories(config: Any, item: Any) -> dict[str, Any]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest_asyncio.fixture
async def pair(make_context: Any) -> AsyncIterator[Pair]:
    """A client's and a server's transport, on a context each, with recording protocols."""
    async with paired(make_context(), make_context()) as both:
        yield both


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """What a test leaks is found in that test, not in a later one."""
    yield
    gc.collect()
