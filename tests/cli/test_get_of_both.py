"""``get -r`` of files among directories, as ``put -r`` and ``cp -r`` take them."""

import json

from tests.cli.commands import failing, zcserver
from tests.server.requests import content_of


def test_files_among_directories_are_fetched(url, served, local):
    (served / "tree").mkdir()
    (served / "tree" / "inner").write_text("inner")
    (served / "file").write_text("file")
    (local / "both").mkdir()
    done = zcserver("get", "-r", f"{url}/file", f"{url}/tree", "-o", "both", "--json")
    assert json.loads(done.stdout)["files"] == 2
    zcserver("get", "-r", f"{url}/file", "-o", "both/tree")
    zcserver("get", "-r", f"{url}/file")
    zcserver("get", "-r", f"{url}/file", "-o", "new", "--verify")
    assert content_of(local) == {
        "both": None, "both/file": b"file", "both/tree": None, "both/tree/file": b"file",
        "both/tree/inner": b"inner", "file": b"file", "new": b"file",
    }  # fmt: skip
    assert "no such file" in failing(3, "get", "-r", f"{url}/none")
