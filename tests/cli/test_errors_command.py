"""Every error that a user can meet, produced for real: one line, its advice, its exit code."""

import contextlib
import errno
import os
import resource
import signal
import socket
import struct
import subprocess
import threading

import pytest

from tests.cli.commands import COMMAND, failing, serving, start, zcserver

MIB = 1 << 20


@pytest.fixture
def free_port():
    """A port on which nobody listens, and which nobody else gets meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@contextlib.contextmanager
def answering(answer):
    """A server that sends ``answer`` to whoever connects, and reads until that one has gone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            sock, _ = listener.accept()
            with sock, contextlib.suppress(OSError):
                sock.sendall(answer)
                while sock.recv(65536):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_connection_refused(free_port):
    line = failing(6, "get", f"zc://127.0.0.1:{free_port}/file")
    assert "is `zcserver serve` running there?" in line
    line = failing(6, "ls", "zc+unix://%2Fnowhere%2Fzc.sock/")
    assert "/nowhere/zc.sock" in line


def test_one_server_that_is_gone_does_not_hide_what_the_others_say(url, served, free_port):
    (served / "file").touch()
    gone = f"zc://127.0.0.1:{free_port}/file"
    done = zcserver("stat", "--json", f"{url}/none", gone, f"{url}/file", code=3)
    assert len(done.stdout.splitlines()) == 1
    assert ["no such file" in line for line in done.stderr.splitlines()] == [True, False]
    done = zcserver("stat", gone, f"{url}/file", code=6)
    assert "type       file" in done.stdout


def test_a_name_that_cannot_be_resolved():
    assert "check the spelling" in failing(14, "get", "zc://no-such-host.invalid/file")


def test_something_that_is_no_zcp_peer():
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        assert "is this the right port?" in failing(7, "get", f"zc://127.0.0.1:{port}/file")


def test_another_version_of_zcp():
    from zcserver_protocol.frames import HELLO, PREFACE, pack

    body = (
        b'{"versions":[7,9],"max_frame":65536,"max_control":65536,"window":65536,"max_streams":1,'
        b'"features":[],"software":"future"}'
    )
    with answering(PREFACE + pack(HELLO, length=len(body)) + body) as port:
        line = failing(13, "get", f"zc://127.0.0.1:{port}/file")
    assert "7 to 9" in line
    assert "same version" in line


def test_a_port_that_is_taken(served):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        line = failing(8, "serve", served, "--port", str(taken.getsockname()[1]))
    assert "--port" in line


def test_no_such_file_here_or_there(url, served, local):
    assert "zcserver ls" in failing(3, "get", f"{url}/none")
    (served / "file").touch()
    assert "none/file" in failing(3, "get", f"{url}/file", "-o", "none/file")
    assert "none" in failing(3, "serve", "none")


def test_a_directory_where_a_file_is_due(url, served, local):
    (served / "folder").mkdir()
    (served / "file").touch()
    assert "folder" in failing(4, "get", f"{url}/folder")
    (local / "file").mkdir()
    assert "-r" in failing(4, "get", f"{url}/file")


def test_what_is_no_file_can_be_sent_as_standard_input(writable_url, local):
    os.mkfifo("fifo")
    for source in ("/dev/null", "fifo"):
        line = failing(4, "put", source, f"{writable_url}/file")
        assert line == f"{source}: is no regular file: send it as standard input (put - URL < FILE)"


def test_a_missing_directory_is_named_with_the_way_to_make_it(writable_url, served, local):
    (served / "a").touch()
    (local / "file").touch()
    missing = f"no such directory: /{served.name}/x: make it with `zcserver mkdir -p`"
    for command in (
        ["put", "file", f"{writable_url}/x/"],
        ["mkdir", f"{writable_url}/x/y"],
        ["mv", f"{writable_url}/a", f"/{served.name}/x/y"],
    ):
        assert failing(3, *command) == f"{missing} (zcserver ls shows what there is)"
    for command in (["mv", f"{writable_url}/b", f"/{served.name}/c"], ["rm", f"{writable_url}/x/y"]):
        assert "no such file" in failing(3, *command)
    done = zcserver("put", "-", f"{writable_url}/x/y", input="content", code=3)
    assert missing in done.stderr
    for command in (["put", "-r"], ["sync"], ["sync", "--dry-run"]):
        line = failing(3, *command, ".", f"{writable_url}/x/y")
        assert f"no such directory: /{served.name}/x: make it first" in line


def test_an_access_log_that_cannot_be_written(local):
    for path, code, words in ((".", 4, "Is a directory"), ("no/log", 3, "No such file or directory")):
        line = failing(code, "serve", ".", "--port", "0", "--access-log", path)
        assert line == f"cannot write to {path}: {words} (name another file with --access-log)"


def test_a_read_only_server(url, local):
    (local / "file").write_bytes(b"content")
    for command in (
        ["put", "file", f"{url}/file"],
        ["rm", f"{url}/file"],
        ["mkdir", f"{url}/folder"],
        ["mv", f"{url}/file", "/other"],
        ["sync", str(local), f"{url}/all"],
    ):
        assert "--writable" in failing(15, *command)


def test_what_is_there_already(writable_url, served):
    (served / "a").mkdir()
    (served / "a" / "b").touch()
    (served / "c").touch()
    assert "not empty" in failing(16, "rm", f"{writable_url}/a")
    assert "c" in failing(16, "mv", f"{writable_url}/a/b", f"{writable_url}/c")
    assert "-p" in failing(16, "mkdir", f"{writable_url}/a")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk(url, big, local):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", local], check=True)
    try:
        line = failing(12, "get", f"{url}/big", "-o", f"{local}/big")
    finally:
        subprocess.run(["umount", "-l", local], check=True)
    assert os.strerror(errno.ENOSPC) in line
    assert "free some space" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_at_the_server(tmp_path, local):
    place = tmp_path / "full"
    place.mkdir()
    (local / "big").write_bytes(bytes(8 * MIB))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=True)
    try:
        with serving(place, "--writable") as server:
            line = failing(12, "put", "big", f"{server.url}/big")
            assert list(place.glob("big")) == []
    finally:
        subprocess.run(["umount", "-l", place], check=True)
    assert "free some space there" in line


def test_the_limit_on_file_sizes(url, big, local):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))

    assert "ulimit -f" in failing(12, "get", f"{url}/big", preexec_fn=limit)


def test_the_limit_on_open_files(url, served, local):
    for number in range(60):
        (served / f"{number:02}").write_bytes(bytes(8 * MIB if number < 40 else 1))

    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))

    done = zcserver("get", "-r", f"{url}/", "-o", "all", "-j", "32", code=17, preexec_fn=limit)
    assert "ulimit -n" in done.stderr.splitlines()[-1]


def test_permission_denied_here(url, served, local):
    (served / "file").touch()
    local.chmod(0o555)
    powerless = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*powerless, *COMMAND, "get", f"{url}/file"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert "check the permissions" in done.stderr


def test_permission_denied_there(writable_url, served):
    (served / "out").symlink_to("/etc/hostname")
    assert "symbolic link" in failing(5, "get", f"{writable_url}/out")


def test_a_server_that_goes_away_before_it_answers():
    from zcserver_protocol.handshake import greeting
    from zcserver_protocol.limits import Limits

    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = start("get", f"zc://127.0.0.1:{listener.getsockname()[1]}/file")
        sock, _ = listener.accept()
        sock.sendall(greeting(Limits()))
        sock.recv(65536)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()  # with a reset
        words = process.communicate(timeout=60)[1]
    assert process.returncode == 9
    assert len(words.splitlines()) == 1
    assert "try again" in words


def test_an_interrupted_server_ends_with_its_code(served):
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 0)):
        with serving(served) as server:
            assert server.stop(number) == code
            assert "Traceback" not in server.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["get"], "URL"),
        (["get", "http://host/file"], "zc://127.0.0.1/data.bin"),
        (["get", "zc+unix:///run/zc.sock/x"], "zc+unix://%2Frun%2Fzc.sock/path"),
        (["fetch"], "fetch"),
        (["get", "zc://127.0.0.1/file", "--limit-rate", "fast"], "no size"),
        (["get", "zc://127.0.0.1/file", "--limit-rate", "0.5"], "less than a byte"),
        (["get", "zc://127.0.0.1/file", "-o", "-", "--offset", "9" * 400], "sizes end at"),
        (["serve", ".", "--limit-rate", "9223372036854775808"], "sizes end at"),
        (["serve", ".", "--pool-size", "65T"], "64T at most"),
        (["serve", "--topics", "--retain", "9" * 18], "64T at most"),
        (["demo", "--ring", "65T"], "64T at most"),
        (["sub", "zc://127.0.0.1/t", "--from", "9" * 5000], "nor a number"),
        (["sync", "a", "b"], "one is a URL"),
        (["mv", "zc://127.0.0.1/a", "zc://127.0.0.2/b"], "one server"),
        (["mv", "zc://127.0.0.1:1/a", "/%61/b"], "into itself"),
        (["serve", ".", "--links", "perhaps"], "perhaps"),
    ],
)
def test_a_wrong_command_line(arguments, words):
    assert words in failing(2, *arguments)


def test_arguments_that_are_no_text(writable_url, served, local):
    (served / "a").touch()
    for command in (["get", "zc://\udcff/file"], ["serve", ".", "--bind", "\udcff"]):
        assert "no text that could be sent" in failing(2, *command)
    zcserver("mv", f"{writable_url}/a", f"/{served.name}/\udcff")
    assert os.listdir(served) == ["\udcff"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('writable = "no"', "writable: 'no' is neither true nor false (without quotes)"),
        ("bind = []", "bind: [] names no address"),
        ('roots = ["a\\u0000b"]', "roots: 'a\\x00b' has a null byte"),
        ('roots = {"a\\u0000b" = "."}', "roots: 'a\\x00b' has a null byte"),
        ('access_log = "a\\u0000b"', "access_log: 'a\\x00b' has a null byte"),
        ('bind = "unix:a\\u0000b"', "bind: 'unix:a\\x00b' has a null byte"),
        (f"pool_size = {2**100}", "pool_size: '1267650600228229401496703205376' is too large"),
        (f"grace = {10**400}", "is no number of seconds"),
        (f"port = {'9' * 5000}", "is no TOML"),
    ],
    ids=range(9),
)
def test_a_settings_file_with_a_value_that_is_wrong(line, words, local):
    (local / "serve.toml").write_text(line)
    told = failing(2, "serve", *([] if "roots" in line else ["."]), "--config", "serve.toml")
    assert told.startswith("serve.toml")
    assert words in told


def test_a_variable_that_names_no_address():
    assert "ZCSERVER_BIND: ',' names no address" in failing(
        2, "serve", ".", env={**os.environ, "ZCSERVER_BIND": ","}
    )
