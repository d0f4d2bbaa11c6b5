"""``zcserver serve`` as a process: what it prints, where it listens, how it ends."""

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys

import anyio
import pytest

import zcserver
from tests.cli.test_unreadable_trees import powerless
from tests.server.requests import MIB, get, names, put, refused
from zcserver import ErrorCode
from zcserver.cli.exits import ExitCode
from zcserver.errors import ConnectionLostError
from zcserver.file_protocol import GET, PUT

PATIENCE = 60
LISTENING = re.compile(r"(?:serving .* |and )at (zc\S+)")


@contextlib.contextmanager
def serving(*arguments, lines=1, environment=None, preexec_fn=None):
    """The command, when it has said where it listens (``urls``); killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "zcserver", "serve", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | (environment or {}),
        preexec_fn=preexec_fn,
    )  # fmt: skip
    try:
        process.announced = [process.stdout.readline() for _ in range(lines)]
        matches = [LISTENING.match(line) for line in process.announced]
        assert all(matches), (process.announced, process.stderr.read())
        process.urls = [match[1] for match in matches]
        process.port = (
            int(process.urls[0].rstrip("/").rpartition(":")[2]) if "unix" not in process.urls[0] else 0
        )
        yield process
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)


def ended(process, number):
    """(exit code, stdout, stderr) after a signal."""
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def failing(*arguments, environment=None):
    """(exit code, the one line on stderr) of a command that cannot start."""
    done = subprocess.run(
        [sys.executable, "-m", "zcserver", "serve", *map(str, arguments)],
        capture_output=True, text=True, timeout=PATIENCE, check=False, env=os.environ | (environment or {}),
    )  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert not done.stdout
    return done.returncode, line.removeprefix("zcserver: ")


def test_as_many_descriptors_as_the_hard_limit_allows(served):
    def limited():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512))

    with serving(served, "--port", 0, preexec_fn=limited) as process:
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (512, 512)


def run(work, **where):
    """``await work(connection)`` on a connection to the server."""

    async def connected():
        with anyio.fail_after(PATIENCE):
            async with zcserver.connect(**where) as connection:
                return await work(connection)

    return anyio.run(connected)


def test_everything_that_can_be_set_works_together(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / ".hidden").touch()
    log, path = tmp_path / "log", tmp_path / "so cket"
    config = tmp_path / "config.toml"
    config.write_text(f'log_format = "json"\naccess_log = "{log}"\nhidden = true')
    with serving(
        tmp_path / "a", f"other={tmp_path / 'b'}", "--config", config, "--writable", "--summary",
        "--bind", "127.0.0.1:0", "--bind", "127.0.0.2:0", "--bind", f"unix:{path}",
        lines=3, environment={"ZCSERVER_HIDDEN": "no"},
    ) as server:  # fmt: skip
        assert "writable" in server.announced[0]
        assert server.urls[1].startswith("zc://127.0.0.2:")
        assert server.urls[2] == f"zc+unix://{str(path).replace('/', '%2F').replace(' ', '%20')}/"

        async def use(connection):
            assert await names(connection, "/", recursive=True) == ["a", "other"]
            assert await put(connection, "/other/new", b"content") == 1

        run(use, path=str(path))
        assert run(lambda connection: get(connection, "/other/new"), port=server.port)[1] == b"content"
        code, out, err = ended(server, signal.SIGTERM)
    assert (code, err) == (ExitCode.OK, "")
    assert json.loads(out)["connections"] == 2
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    logged = [(line["method"], line["path"], line["status"], line["bytes"]) for line in lines]
    assert logged[1:] == [("PUT", "/other/new", "OK", 7), ("GET", "/other/new", "OK", 7)]
    assert not path.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_running_transfer_is_finished_after_a_signal(served, number, code):
    content = os.urandom(16 * MIB)
    (served / "file").write_bytes(content)
    with serving(served, "--port", 0, "-v") as server:

        async def fetch(connection):
            stream = await connection.open(GET, "/file")
            received = bytearray()
            async for piece in stream.chunks():
                if not received:
                    server.send_signal(number)
                    # It says so before it goes on: from here on, the transfer is one that is finished.
                    await anyio.to_thread.run_sync(server.stderr.readline)
                received += piece
            return bytes(received)

        assert run(fetch, port=server.port) == content
        _, err = server.communicate(timeout=PATIENCE)
    assert server.returncode == code
    assert err.split()[2:6] == ["GET", "/file", "OK", str(16 * MIB)]


def test_a_transfer_that_does_not_end_in_time_loses_its_connection(served):
    with serving(served, "--port", 0, "--writable", "--grace", 0.2) as server:

        async def stall(connection):
            stream = await connection.open(PUT, "/file", size=2 * MIB)
            await stream.response()
            await (await stream.send(bytes(MIB)))
            server.terminate()
            await connection.wait_closed()

        with pytest.raises(ConnectionLostError):
            run(stall, port=server.port)
        assert server.wait(PATIENCE) == 0
    assert not list((served / ".zcserver").iterdir())
    assert not (served / "file").exists()


def test_what_cannot_be_served_is_one_line_that_says_what_to_do(served, tmp_path):
    (tmp_path / "file").touch()
    for arguments, code, words in (
        ([], ExitCode.USAGE, "say which directory"),
        ([tmp_path / "none"], ExitCode.NOT_FOUND, "No such file or directory (check the path)"),
        ([tmp_path / "file"], ExitCode.NOT_A_FILE, "Not a directory"),
        ([served, "--access-log", tmp_path / "none" / "log"], ExitCode.NOT_FOUND, "none/log: No such file"),
        ([served, "--bind", f"unix:{tmp_path / 'none' / 's'}"], ExitCode.CANNOT_LISTEN, "No such file"),
        ([served, "--bind", "no.such.host.invalid"], ExitCode.CANNOT_LISTEN, "cannot be resolved"),
    ):
        found, line = failing(*arguments)
        assert (found, words in line) == (code, True), line
    found, line = failing(served, environment={"ZCSERVER_GRACE": "long"})
    assert (found, line) == (ExitCode.USAGE, "ZCSERVER_GRACE: 'long' is no number of seconds")


def test_a_port_or_directory_that_another_server_has_is_told(served):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = failing(served, "--port", port)
        assert code == ExitCode.CANNOT_LISTEN
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use (choose another" in line
    with serving(served, "--port", 0, "--writable"):
        code, line = failing(served, "--port", 0, "--writable")
        assert code == ExitCode.FAILED
        assert f"another server writes to {served}/.zcserver" in line
        with serving(served, "--port", 0):
            pass  # reading beside it is fine


def test_addresses_beyond_this_machine_come_with_a_warning(served):
    with serving(served, "--bind", "*:0", "--writable") as server:
        assert server.urls[0].startswith(f"zc://{socket.gethostname()}:")
        code, _, err = ended(server, signal.SIGTERM)
    assert code == 0
    assert "can read and change" in err
    assert "no authentication" in err


@pytest.mark.anyio
async def test_a_folder_that_the_server_may_read_but_not_search_is_refused(tmp_path, make_context):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder").chmod(0o600)
    with serving(tmp_path, "--port", 0, preexec_fn=powerless) as process:
        async with zcserver.connect(port=process.port, context=make_context()) as connection:
            with anyio.fail_after(PATIENCE), refused(ErrorCode.FORBIDDEN, "may not read /folder"):
                await names(connection, "/folder")
        _, _, err = ended(process, signal.SIGTERM)
    (tmp_path / "folder").chmod(0o700)
    assert "Traceback" not in err
