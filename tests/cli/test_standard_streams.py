"""Standard input, output and error as others leave them to the commands: full, shared or closed."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess

import pytest

from tests.cli.commands import PATIENCE, failing, running, serving, zcserver
from tests.cli.test_get_command import SLOWLY, reaches

MIB = 1 << 20
SIGNALS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]


@pytest.fixture(scope="module")
def hub():
    with serving("--topics") as server:
        yield server


@contextlib.contextmanager
def nobody_reads(kind):
    """A descriptor to write to, and a function that returns as soon as something was written to it."""
    if kind == "socket":
        ours, theirs = (sock.detach() for sock in socket.socketpair())
    else:
        ours, theirs = os.openpty() if kind == "terminal" else os.pipe()
    try:
        yield theirs, lambda: select.select([ours], [], [])
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_signal_ends_get_while_nobody_reads_its_output(url, big, kind, number, code, word):
    with (
        nobody_reads(kind) as (output, written),
        running("get", f"{url}/big", "-o", "-", stdout=output) as process,
    ):
        written()
        process.send_signal(number)
        assert process.wait(PATIENCE) == code
        assert process.stderr.read() == f"zcserver: {word}\n"


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_signal_ends_sub_while_nobody_reads_its_output(hub, tmp_path, kind, number, code, word):
    topic = f"{hub.url}/{kind}{code}"
    (tmp_path / "big").write_bytes(b"x" * MIB)
    zcserver("pub", topic, tmp_path / "big", "--frame")
    with (
        nobody_reads(kind) as (output, written),
        running("sub", topic, "--from", "earliest", stdout=output) as process,
    ):
        written()
        process.send_signal(number)
        assert process.wait(PATIENCE) == code
        assert process.stderr.read().splitlines()[-1] == f"zcserver: {word}"


def test_a_signal_ends_ls_while_nobody_reads_its_output(url, served):
    for number in range(2000):
        (served / f"{number:0100}").touch()
    with nobody_reads("pipe") as (output, written), running("ls", f"{url}/", stdout=output) as process:
        written()
        process.terminate()
        assert process.wait(PATIENCE) == 143
        assert process.stderr.read() == "zcserver: terminated\n"


def test_the_open_files_of_a_pipeline_keep_their_flags(hub, url, writable_url, big):
    for command in (["pub", f"{hub.url}/shared", "--frame"], ["put", "-", f"{writable_url}/shared"]):
        ours, theirs = os.pipe()
        with running(*command, stdin=ours) as process:
            os.write(theirs, b"content")
            os.close(theirs)
            assert process.wait(PATIENCE) == 0
        assert os.get_blocking(ours)
        os.close(ours)
    with (
        nobody_reads("pipe") as (output, written),
        running("get", f"{url}/big", "-o", "-", stdout=output),
    ):
        written()
        assert os.get_blocking(output)


def closed(fd):
    """For ``preexec_fn``: as the shell's ``N>&-`` does it."""
    return {"preexec_fn": lambda: os.close(fd)}


@pytest.mark.parametrize("fd", [0, 1, 2])
def test_commands_work_without_one_of_their_standard_streams(writable_url, served, local, fd):
    (served / "a").write_bytes(b"content")
    zcserver("get", f"{writable_url}/a", "-o", "b", **closed(fd))
    zcserver("put", "b", f"{writable_url}/c", **closed(fd))
    if fd != 1:
        zcserver("stat", "--json", f"{writable_url}/a", **closed(fd))
    assert (served / "c").read_bytes() == b"content"
    assert (fd == 2) == (zcserver("get", f"{writable_url}/none", code=3, **closed(fd)).stderr == "")


def test_a_server_without_standard_streams_serves(served, local):
    (served / "a").write_bytes(b"content")
    with serving(served, "--verbose", preexec_fn=lambda: (os.close(0), os.close(2))) as server:
        assert zcserver("get", f"{server.url}/a", "-o", "-").stdout == "content"


def test_data_from_or_to_a_closed_stream_is_refused(hub, writable_url, served):
    (served / "a").write_bytes(b"content")
    for command in (["put", "-", f"{writable_url}/b"], ["pub", f"{hub.url}/t"], ["serve", "--stdin", "t"]):
        assert "standard input is closed" in failing(2, *command, **closed(0))
    for command in (["get", f"{writable_url}/a", "-o", "-"], ["sub", f"{hub.url}/t"]):
        assert "standard output is closed" in failing(2, *command, **closed(1))
    assert not (served / "b").exists()


def test_names_that_the_encoding_of_the_output_lacks_are_escaped(url, served):
    (served / "caf\N{LATIN SMALL LETTER E WITH ACUTE}").touch()
    ascii_only = {"env": {**os.environ, "PYTHONIOENCODING": "ascii"}, "stdin": subprocess.DEVNULL}
    assert zcserver("ls", f"{url}/", **ascii_only).stdout == "caf\\xe9\n"
    line = zcserver("ls", "--json", f"{url}/", **ascii_only).stdout
    assert json.loads(line)["path"] == "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    assert zcserver("sync", "--dry-run", f"{url}/", ".", **ascii_only).stdout.endswith("/caf\\xe9\n")


def test_a_summary_that_nobody_reads_is_no_failure(url, served, local):
    (served / "file").write_bytes(b"content")
    ours, theirs = os.pipe()
    os.close(ours)
    with running("get", f"{url}/file", stderr=theirs) as process:
        os.close(theirs)
        assert process.wait(PATIENCE) == 0
    assert (local / "file").read_bytes() == b"content"


def full(fd):
    """For ``preexec_fn``: nothing can be written to it; buffered, as Python does it by default."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {"preexec_fn": lambda: os.dup2(os.open("/dev/full", os.O_WRONLY), fd), "env": environment}


def test_messages_that_cannot_be_written_change_nothing(url, served, local):
    (served / "file").write_bytes(b"content")
    zcserver("get", f"{url}/file", **full(2))
    assert (local / "file").read_bytes() == b"content"
    zcserver("get", f"{url}/none", code=3, **full(2))
    zcserver("get", code=2, **full(2))
    (served / "other").touch()
    zcserver("get", f"{url}/none", f"{url}/nor", f"{url}/other", "-o", ".", code=3, **full(2))
    assert (local / "other").exists()


def test_results_that_cannot_be_written_are_a_failure(url, served):
    (served / "file").touch()
    for command in (["doctor", "--json"], ["get", "--json", f"{url}/none"], ["ls", f"{url}/"]):
        assert "No space left" in failing(12, *command, **full(1))


def test_a_server_whose_messages_cannot_be_written_finishes_what_runs(served, random_bytes, local):
    (served / "big").write_bytes(random_bytes)
    with (
        serving(served, "--verbose", "--bind", "127.0.0.1", **full(2)) as server,
        running("get", f"{server.url}/big", *SLOWLY) as process,
    ):
        assert reaches(local / ".big.zcpart", 1, process)
        server.process.terminate()
        assert process.wait(PATIENCE) == 0
        assert server.process.wait(PATIENCE) == 0
    assert (local / "big").read_bytes() == random_bytes


def test_a_terminal_that_goes_away_does_not_end_a_transfer(url, big, local, random_bytes):
    ours, theirs = os.openpty()
    with running("get", f"{url}/big", *SLOWLY, stderr=theirs) as process:
        os.close(theirs)
        assert reaches(local / ".big.zcpart", 1, process)
        os.close(ours)
        assert process.wait(PATIENCE) == 0
    assert (local / "big").read_bytes() == random_bytes
