"""Places and machines that will not do: one line that says what to do instead."""

import os
import resource
import stat
import subprocess

import pytest

from tests.cli.commands import failing, serving, zcserver
from tests.cli.test_unreadable_trees import powerless


@pytest.mark.parametrize("limit", [7, 9, 11, 13])
def test_too_few_descriptors_for_a_loop_are_a_limit(url, served, limit):
    def limited():
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    for command in (["ls", url], ["serve", served, "--port", "0"]):
        line = failing(17, *command, preexec_fn=limited)
        assert line.startswith("Too many open files (raise the limit on open files")


def test_what_leads_to_a_pipe_or_device_is_no_name_for_a_download(url, served, local):
    (served / "file").write_text("content")
    os.mkfifo("fifo")
    (local / "link").symlink_to("fifo")
    for name in ("/dev/stdout", "/dev/null", "link"):
        line = failing(16, "get", f"{url}/file", "-o", name, stdin=subprocess.DEVNULL)
        assert f"{name}: exists and is no regular file" in line
        assert "or - for standard output" in line
    (local / "dangling").symlink_to("new")
    zcserver("get", f"{url}/file", "-o", "dangling")
    assert (local / "dangling").is_symlink()
    assert (local / "new").read_text() == "content"


def test_a_path_that_no_socket_can_have_is_told_without_ports(served, tmp_path):
    taken, closed = tmp_path / "taken", tmp_path / "closed"
    taken.touch()
    closed.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    line = failing(8, "serve", served, "--port", "0", "--bind", "127.0.0.1", "--bind", f"unix:{taken}")
    assert line == (
        f"cannot listen on {taken}: Address already in use "
        "(something is there: choose another path with --bind)"
    )
    line = failing(8, "serve", served, "--bind", f"unix:{closed}/s", preexec_fn=powerless)
    assert line == (
        f"cannot listen on {closed}/s: Permission denied "
        "(check the permissions, or choose another path with --bind)"
    )


def test_no_directory_is_served_by_the_servers_own_name(served):
    for name in (".zcserver", ".."):
        assert f"{name!r} cannot be the name of a root" in failing(2, "serve", f"{name}={served}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--retain", "1M"], "--retain is for topics: add --topics"),
        (["--retain-count", "5"], "--retain-count is for topics: add --topics"),
        (["--retain-seconds", "5"], "--retain-seconds is for topics: add --topics"),
        (["--allow-block"], "--allow-block is for topics: add --topics"),
        (["--stdin-as", "lines"], "--stdin-as is for standard input: add --stdin TOPIC"),
        (["--topics", "--stdin-as", "lines"], "--stdin-as is for standard input: add --stdin TOPIC"),
    ],
)
def test_options_of_serve_that_would_change_nothing_are_refused(served, options, words):
    assert failing(2, "serve", served, *options) == words


def test_a_message_for_which_there_is_no_room_leaves_nothing_behind(tmp_path):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    (tmp_path / "message").write_bytes(bytes(2 << 20))
    with serving("--topics") as hub:
        topic = f"{hub.url}/large"
        zcserver("pub", topic, tmp_path / "message", "--frame", "-q")
        done = zcserver(
            "sub", topic, "-o", tmp_path / "saved", "--from", "earliest", code=12, preexec_fn=limited
        )
    assert "ulimit -f" in done.stderr
    assert os.listdir(tmp_path / "saved") == []


def test_a_directory_that_cannot_be_listed_is_told_once(served):
    (served / "file").touch()
    served.chmod(stat.S_IXUSR)
    try:
        with serving(served, preexec_fn=powerless) as server:
            assert zcserver("stat", f"{server.url}/file").stdout
            failing(5, "ls", f"{server.url}/")
            assert server.stop() == 0
            assert server.stderr.startswith(f"{served} cannot be listed: check its permissions")
    finally:
        served.chmod(0o700)
