"""The transport's tests run on asyncio and uvloop, under pytest-asyncio, and on three kinds of kernel."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

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
