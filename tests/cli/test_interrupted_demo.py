"""Ctrl-C while the demo fetches: one line, and nothing is left."""

from tests.cli.commands import COMMAND
from tests.cli.test_demo import serving_half
from tests.cli.test_interruptions import ended

COMPARING = """
from zcserver.client import Client
digest = Client.digest

async def digest_of(client, path):
    interrupted()
    return await digest(client, path)

Client.digest = digest_of
"""


def test_an_interrupted_demo_says_so_and_removes_its_files(tmp_path):
    served, fetched = tmp_path / "served", tmp_path / "fetched"
    served.mkdir()
    with serving_half(COMMAND, "127.0.0.1:0", served) as url:
        code, _, words = ended(COMPARING, "demo", url, "--dir", fetched)
    assert (code, words) == (130, "zcserver: interrupted\n")
    assert not fetched.exists()
