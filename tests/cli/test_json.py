"""``--json`` of ``get``, ``put`` and ``sync``: one document on stdout, whatever becomes of it."""

import contextlib
import json
import signal

import pytest

from tests.cli.commands import PATIENCE, failing, running, serving, zcserver
from tests.cli.test_get_command import SLOWLY, reaches


def told(code, *arguments, **options):
    """The document's failures, with what was said on stderr."""
    done = zcserver(*arguments, "--json", code=code, **options)
    return json.loads(done.stdout)["failures"], done.stderr.splitlines()


@pytest.fixture
def gone(served):
    """The URL of a server that has ended."""
    with serving(served) as server:
        server.stop()
        return server.url


def test_a_server_that_cannot_be_reached(gone, local):
    (local / "file").touch()
    for command, path in (
        (["get", f"{gone}/a"], "/a"),
        (["get", "-r", f"{gone}/a"], "/a"),
        (["put", "file", f"{gone}/to/"], "/to/file"),
        (["put", "-r", ".", f"{gone}/to"], "/to"),
        (["sync", ".", f"{gone}/to"], "/to"),
        (["sync", f"{gone}/from", "."], "/from"),
    ):
        line = failing(6, *command)
        assert told(6, *command) == ([{"path": path, "error": line, "code": 6}], [f"zcserver: {line}"])
    failures, lines = told(6, "put", "-", f"{gone}/to", input="content")
    assert [failure["path"] for failure in failures] == ["/to"]
    assert len(lines) == 1


def test_a_host_without_an_address():
    failures, lines = told(14, "get", "zc://no-such-host.invalid/a")
    assert [(failure["path"], failure["code"]) for failure in failures] == [("/a", 14)]
    assert lines == [f"zcserver: {failures[0]['error']}"]


def test_what_can_be_done_is_done_and_told(url, served, local, gone):
    (served / "file").write_bytes(b"12345")
    (served / "tree").mkdir()
    (served / "tree" / "inner").write_bytes(b"123")
    (local / "into").mkdir()
    done = zcserver("get", "--json", f"{gone}/a", f"{gone}/b", f"{url}/file", "-o", "into", code=6)
    document = json.loads(done.stdout)
    assert [(failure["path"], failure["code"]) for failure in document["failures"]] == [("/a", 6), ("/b", 6)]
    assert [done["path"][-5:] for done in document["transferred"]] == ["/file"]
    assert len(done.stderr.splitlines()) == 1
    done = zcserver("get", "-r", "--json", f"{url}/none", f"{url}/tree", "-o", "into", code=3)
    document = json.loads(done.stdout)
    assert [(failure["path"][-5:], failure["code"]) for failure in document["failures"]] == [("/none", 3)]
    assert (local / "into" / "tree" / "inner").read_bytes() == b"123"


def terminated(process):
    """The names that were done, and failures, of a command that a signal has ended."""
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    document = json.loads(output)
    assert document["files"] == len(document["transferred"])
    return [done["path"].rpartition("/")[2] for done in document["transferred"]], document["failures"]


@pytest.mark.parametrize("command", ["get -r URL -o copy", "sync URL copy"])
def test_a_signal_does_not_make_a_tree_forget_what_it_did(url, served, big, local, command):
    (served / "a").write_bytes(b"12345")
    command = command.replace("URL", url).split()
    with running(*command, "--json", "-j", "1", *SLOWLY) as process:
        assert reaches(local / "copy" / ".big.zcpart", 1, process)
        assert terminated(process) == (["a"], [{"path": "", "error": "terminated", "code": 143}])


@pytest.mark.parametrize("command", ["put -r . URL/", "sync . URL/"])
def test_a_signal_does_not_make_a_tree_that_is_sent_forget_either(tmp_path, local, random_bytes, command):
    (local / "a").write_bytes(b"12345")
    (local / "big").write_bytes(random_bytes)
    root = tmp_path / "root"
    root.mkdir()
    with serving(root, "--writable") as server:
        command = command.replace("URL", server.url).split()
        with running(*command, "--json", "-j", "1", *SLOWLY) as process:
            assert any_reaches(root / ".zcserver", 6, process)
            assert terminated(process) == (["a"], [{"path": "", "error": "terminated", "code": 143}])


def any_reaches(folder, nbytes, process):
    """Wait until a file in ``folder`` has so many bytes; False when the process has ended before."""
    while process.poll() is None:
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size >= nbytes and path.is_file():
                    return True
    return False


def test_a_signal(url, big, local):
    with running("get", f"{url}/big", "--json", *SLOWLY) as process:
        assert reaches(local / ".big.zcpart", 1, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 143
        document = json.loads(process.stdout.read())
        assert process.stderr.read() == "zcserver: terminated\n"
    assert document["failures"] == [{"path": "", "error": "terminated", "code": 143}]
    assert document["files"] == 0


def test_what_cannot_be_asked_for_is_a_failure_like_others(writable_url, served, local):
    (local / "file").write_bytes(b"content")
    far_too_long = "/" + "a" * 100_000
    done = zcserver("put", "--json", "file", f"{writable_url}{far_too_long}", code=2)
    (failure,) = json.loads(done.stdout)["failures"]
    assert failure["code"] == 2
    assert len(done.stderr.splitlines()) == 1
