"""Trees of which some part may not be read: here or at the server, the rest goes on and the code tells."""

import ctypes
import json
import os

import pytest

from tests.cli.commands import serving, zcserver

PR_CAPBSET_DROP = 24
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2


def powerless():
    """In a new process, before it becomes the command: permissions shall count for root, too."""
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@pytest.fixture
def tree(tmp_path):
    """Served, or to be sent: a folder of it cannot be read."""
    directory = tmp_path / "tree"
    for name in ("closed/file", "open/file"):
        (directory / name).parent.mkdir(parents=True)
        (directory / name).write_text(name)
    (directory / "closed").chmod(0)
    yield directory
    (directory / "closed").chmod(0o700)


@pytest.fixture
def closed_url(tree):
    with serving(tree, "--writable", preexec_fn=powerless) as server:
        yield server.url


def failures_of(*arguments, code, **options):
    done = json.loads(zcserver(*arguments, "--json", code=code, **options).stdout)
    return [(failure["path"], failure["code"]) for failure in done["failures"]]


@pytest.mark.parametrize("command", ["get -r URL -o copy", "sync URL copy", "sync URL copy --delete"])
def test_a_folder_that_the_server_may_not_read_is_a_denied_permission(closed_url, local, command):
    (local / "copy").mkdir()
    (local / "copy" / "stays").touch()
    words = command.replace("URL", closed_url).split()
    assert failures_of(*words, code=5) == [("/closed", 5)]
    assert sorted(os.listdir(local / "copy")) == ["closed", "open", "stays"]
    assert (local / "copy" / "open" / "file").exists()
    assert (local / "copy" / "closed").stat().st_mtime_ns > 0  # its time is not known
    assert failures_of(*words, "--exclude", "closed", code=0) == []


def test_a_sync_to_a_server_that_may_not_read_a_folder_sends_the_rest(closed_url, tree, local):
    (local / "copy").mkdir()
    (local / "copy" / "new").write_text("new")
    assert failures_of("sync", "copy", closed_url, "--delete", code=5) == [("/closed", 5)]
    assert (tree / "new").read_text() == "new"
    assert (tree / "open" / "file").exists()
    assert failures_of("sync", "copy", closed_url, "--delete", "--exclude", "closed", code=0) == []
    assert sorted(os.listdir(tree)) == [".zcserver", "closed", "new"]


@pytest.mark.parametrize("command", ["put -r", "sync"])
def test_a_folder_that_may_not_be_read_here_is_a_denied_permission(
    writable_url, served, tree, local, command
):
    words = [*command.split(), tree, f"{writable_url}/there"]
    assert [code for _, code in failures_of(*words, code=5, preexec_fn=powerless)] == [5]
    assert (served / "there" / "open" / "file").exists()


def test_a_beginning_that_may_not_be_written_to_is_named(url, served, local):
    (served / "file").write_text("content")
    (local / ".file.zcpart").touch(mode=0o444)
    (local / ".file.zcpart").chmod(0o444)
    line = zcserver("get", f"{url}/file", code=5, preexec_fn=powerless).stderr
    assert "cannot open .file.zcpart: Permission denied" in line
