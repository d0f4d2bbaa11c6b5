"""CPython's own tests of asyncio's transports and streams, unchanged, with our transport at both ends.

They come with the interpreter (Debian: libpython3-testsuite). What does not apply is named here with its
reason, and listed in docs/embedding.md.
"""

import asyncio
import contextlib
import gc
import importlib
import unittest
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import uvloop

from tests.transport.gateway import PORTS, OverZCP, PlainSocket, gateway
from zcserver.transport.shared import context_of

pytest.importorskip("test.test_asyncio", reason="the interpreter has no test suite of its own")
DOCS = Path(__file__).parents[2] / "docs" / "embedding.md"


class AsyncioLoop(OverZCP, asyncio.SelectorEventLoop):
    pass


class UvloopLoop(OverZCP, uvloop.Loop):
    pass


LOOPS = {"asyncio": AsyncioLoop, "uvloop": UvloopLoop}

LOOP = "the event loop itself (callbacks, signals, pipes, datagrams, subprocesses): no transport of ours"
TLS = "TLS, which ZCP/1 byte streams do not have"
MOCKS = "mocks or private parts of asyncio's own transports, servers or loops"
READER = "StreamReader and StreamReaderProtocol alone, without a transport"
NOT_APPLICABLE: dict[str, dict[str, str]] = {
    "test_events": {
        "test_create_server_multiple_hosts_ipv4": MOCKS,
        "test_create_server_multiple_hosts_ipv6": MOCKS,
    },
    "test_sendfile": {
        "test_sendfile_not_supported": LOOP,
        "test_sendfile_force_fallback": MOCKS,
        "test_sendfile_force_unsupported_native": MOCKS,
        "test_sendfile_fallback_close_peer_in_the_middle_of_receiving": MOCKS,
        "test_sendfile_no_fallback_for_fallback_transport": MOCKS,
        "test_sendfile_prevents_bare_write": "asyncio refuses to write while a file is sent; here it queues",
    },
    "test_streams": {
        "test_read_all_from_pipe_reader": LOOP,
        "test_unclosed_server_resource_warnings": MOCKS,
    },
    "test_server": {
        "test_wait_closed_basic": MOCKS,
        "test_wait_closed_race": MOCKS,
    },
    "test_buffered_proto": {},
}
NO_ANSWER = "asyncio drops a connection within a turn of the loop; here the peer is asked to take leave"
NOT_APPLICABLE["test_server"]["test_close_clients"] = NO_ANSWER
NOT_APPLICABLE["test_streams"]["test_async_writer_api_exception_after_close"] = NO_ANSWER
ON_UVLOOP = {"test_create_connection_local_addr_in_use": "the words of the error are uvloop's own"}
CONNECTING = ("create_connection", "create_unix_connection", "connect_accepted", "create_server", "server_")
STREAMING = ("open_", "start_", "wait_closed", "async_writer", "closing_writer", "unhandled", "resource")


def reason_for(module: str, name: str) -> str | None:
    """Why a test of CPython's does not apply, or None when it does."""
    if name in NOT_APPLICABLE[module]:
        return NOT_APPLICABLE[module][name]
    if "ssl" in name or "tls" in name:
        return TLS if "ssl_timeout_for_plain" not in name else None
    if module == "test_events" and not any(word in name for word in (*CONNECTING, "create_unix_server")):
        return LOOP
    if module == "test_streams" and not any(word in name for word in STREAMING):
        return READER
    return None


def classes() -> dict[str, list[Any]]:
    """The test classes by module, joined with what CPython's own runners join them with."""

    def module(name: str) -> Any:
        return importlib.import_module(f"test.test_asyncio.{name}")

    base = module("utils").TestCase
    events, sendfile = module("test_events"), module("test_sendfile")
    server = module("test_server")
    optional = [getattr(server, name, None) for name in ("TestServer2", "UnixServerCleanupTests")]

    def create_event_loop(self: Any) -> Any:
        return asyncio.SelectorEventLoop()

    own = {"create_event_loop": create_event_loop}
    return {
        "test_events": [type("Events", (events.EventLoopTestsMixin, base), own)],
        "test_sendfile": [type("Sendfile", (sendfile.SendfileMixin, base), own | SMALL_BUFFERS)],
        "test_streams": [module("test_streams").StreamTests],
        "test_server": [server.SelectorStartServerTests, *filter(None, optional)],
        "test_buffered_proto": [module("test_buffered_proto").BufferedProtocolSelectorTests],
    }


def reduce_receive_buffer_size(self: Any, sock: Any) -> None:
    """For asyncio's transports this is SO_RCVBUF; for ours it is the credit of a stream."""
    context = context_of(self.loop)
    context.stream_window = context.initial_credit = 16 * 1024


SMALL_BUFFERS = {
    "reduce_receive_buffer_size": reduce_receive_buffer_size,
    "reduce_send_buffer_size": lambda self, sock, transport=None: None,
}
CASES = [
    pytest.param(module, case, name, id=f"{module}-{name}")
    for module, several in classes().items()
    for case in several
    for name in unittest.TestLoader().getTestCaseNames(case)
    if reason_for(module, name) is None
]


@contextlib.contextmanager
def over_zcp(loop: Any, plain_sockets: bool) -> Any:
    """Every loop that CPython's tests make is ours."""
    gateway()
    PORTS.clear()
    with contextlib.ExitStack() as stack:
        for place in ("asyncio.SelectorEventLoop", "asyncio.new_event_loop", "asyncio.events.new_event_loop"):
            stack.enter_context(mock.patch(place, loop))
        if plain_sockets:
            stack.enter_context(mock.patch("socket.socket", PlainSocket))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # CPython's tests that are about warnings look themselves
        yield


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize(("module", "case", "name"), CASES)
def test_cpythons_own_test_passes(kind: str, module: str, case: Any, name: str, tmp_path: Path) -> None:
    if kind == "uvloop" and name in ON_UVLOOP:
        pytest.skip(ON_UVLOOP[name])
    result = unittest.TestResult()
    with over_zcp(LOOPS[kind], module != "test_sendfile"), contextlib.chdir(tmp_path):
        unittest.TestSuite([case(name)]).run(result)
        with warnings.catch_warnings(action="ignore"):
            gc.collect()  # loops that CPython's tests close in the middle of things, and their sockets
    for _, reason in result.skipped:
        pytest.skip(reason)
    trouble = result.errors + result.failures
    assert not trouble, trouble[0][1]
    assert result.testsRun == 1


def test_what_does_not_apply_is_in_the_docs() -> None:
    text = DOCS.read_text()
    for names in (*NOT_APPLICABLE.values(), ON_UVLOOP):
        for name in names:
            assert f"`{name}`" in text, f"{name} is left out without a word in docs/embedding.md"
