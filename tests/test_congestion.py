"""Both ends of a connection on one host leave pacing out from the first segment (kernel/sockets.py)."""

import anyio
import pytest

import zcserver
from tests.kernel.test_sockets import ChoiceOfTwo
from tests.raw_peer import deadline

pytestmark = pytest.mark.anyio


@pytest.fixture
def kernel():
    return ChoiceOfTwo()


async def nothing(stream):
    await anyio.sleep_forever()


async def test_connect_and_serve_choose_before_there_is_a_connection(kernel, make_context):
    ours, theirs = make_context(), make_context()
    kernel.chosen.clear()  # what the probe tried
    with deadline():
        async with (
            zcserver.serve(nothing, port=0, context=theirs) as server,
            zcserver.connect(port=server.port, context=ours),
        ):
            assert kernel.chosen[:2] == [("cubic", "before"), ("cubic", "before")]


async def test_a_server_of_transports_chooses_before_it_listens(kernel, make_context, anyio_backend):
    if anyio_backend[0] == "trio":
        pytest.skip("transports are asyncio's")
    context = make_context()
    kernel.chosen.clear()
    async with await zcserver.create_server(lambda: None, "127.0.0.1", 0, context=context):
        assert kernel.chosen == [("cubic", "before")]
