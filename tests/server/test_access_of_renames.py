"""The access log tells both names of what is renamed."""

import json

import pytest

from tests.server.requests import ask, connected
from zcserver import StreamResetError
from zcserver.file_protocol import RENAME
from zcserver.server import FileServer, Root


@pytest.mark.anyio
async def test_a_rename_is_logged_with_its_target(served, make_context):
    (served / "old").touch()
    requests = []
    with Root(served) as root:
        async with connected(
            FileServer(root, writable=True, on_request=requests.append), make_context
        ) as connection:
            await ask(connection, RENAME, "/old", to="/new name")
            with pytest.raises(StreamResetError):
                await ask(connection, RENAME, "/old", to="/a\nb")
    texts = [request.as_text().split()[2:] for request in requests]
    assert [words[:3] + words[6:] for words in texts] == [
        ["RENAME", "/old", "OK", "/new%20name"],
        ["RENAME", "/old", "NOT_FOUND", "/a%0Ab"],
    ]
    assert [json.loads(request.as_json())["to"] for request in requests] == ["/new name", "/a\nb"]
