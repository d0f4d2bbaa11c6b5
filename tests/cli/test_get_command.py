"""``zcserver get`` as a process: where things go, what is printed, and what a kill leaves."""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys

import pytest

from tests.cli.commands import failing, running, serving, start, zcserver

MIB = 1 << 20
SLOWLY = ("--limit-rate", "8M")


def reaches(path, nbytes, process):
    """Wait until the file has so many bytes; False when the process has ended before it was seen."""
    while not (path.exists() and path.stat().st_size >= nbytes):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.005)
            return False
    return True


def kill(process, number=signal.SIGKILL):
    process.send_signal(number)
    return process.communicate(timeout=60)[1]


def test_a_file_comes_under_its_own_name_with_one_line_of_summary(url, served, local):
    (served / "a b").write_bytes(b"content")
    os.utime(served / "a b", ns=(1, 1_600_000_000_123_456_789))
    done = zcserver("get", f"{url}/a b")
    assert (local / "a b").read_bytes() == b"content"
    assert (local / "a b").stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert os.listdir(local) == ["a b"]
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "1 file fetched" in done.stderr


def test_several_files_go_into_a_directory(url, served, local):
    for name in "abc":
        (served / name).write_text(name)
    (local / "into").mkdir()
    zcserver("get", *(f"{url}/{name}" for name in "abc"), "-o", "into", "-j", "2")
    assert sorted(os.listdir(local / "into")) == ["a", "b", "c"]
    line = failing(2, "get", f"{url}/a", f"{url}/b", "-o", "none")
    assert "make it first" in line


def test_quiet_says_nothing_and_json_says_it_to_scripts(url, served, local):
    (served / "file").write_bytes(b"12345")
    assert zcserver("get", "-q", f"{url}/file").stderr == ""
    done = zcserver("get", "--json", "--verify", f"{url}/file", f"{url}/none", code=3)
    told = json.loads(done.stdout)
    assert (told["files"], told["bytes"]) == (1, 5)
    assert told["transferred"][0]["path"].endswith("/file")
    assert len(told["transferred"][0]["sha256"]) == 64
    assert [(failure["path"][-5:], failure["code"]) for failure in told["failures"]] == [("/none", 3)]


def test_standard_output_gets_the_data_and_nothing_else(url, big):
    done = zcserver("get", f"{url}/big", "-o", "-", text=False)
    assert done.stdout == big.read_bytes()


def test_a_part_goes_to_standard_output(url, big, local):
    done = zcserver("get", f"{url}/big", "-o", "-", "--offset", "1M", "--length", "2K", text=False)
    assert done.stdout == big.read_bytes()[MIB : MIB + 2048]
    assert "need -o -" in failing(2, "get", f"{url}/big", "--offset", "1M")


def test_a_stable_get_tells_its_digest(url, served, local):
    (served / "file").write_bytes(b"12345")
    told = json.loads(zcserver("get", "--json", "--stable", f"{url}/file").stdout)
    assert (told["changed"], told["transferred"][0]["sha256"]) == (0, hashlib.sha256(b"12345").hexdigest())
    assert (local / "file").read_bytes() == b"12345"


def test_a_reader_that_leaves_ends_it_without_a_word(url, big):
    process = start("get", f"{url}/big", "-o", "-", text=False)
    beginning = process.stdout.read(10)
    assert beginning == big.read_bytes()[:10], process.stderr.read()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 1


def test_killed_at_any_point_it_goes_on_from_there(url, big, local):
    chance = random.Random(7420)
    part = local / ".big.zcpart"
    content = big.read_bytes()
    have = 0
    for _ in range(20):
        wanted = have + chance.randrange(8) * MIB // 8
        with running("get", f"{url}/big", *SLOWLY) as process:
            if not reaches(part, wanted, process):  # it was faster than we looked
                break
            kill(process)
        left = part.read_bytes() if part.exists() else b""
        assert len(left) >= wanted
        assert content.startswith(left)
        have = len(left)
    assert have
    zcserver("get", f"{url}/big")
    assert (local / "big").read_bytes() == content
    assert os.listdir(local) == ["big"]


def partial_of(url, local, number=signal.SIGKILL):
    """Some MiB of ``big``, left by a process that was killed; its exit code and last words."""
    with running("get", f"{url}/big", *SLOWLY) as process:
        assert reaches(local / ".big.zcpart", 2 * MIB, process)
        words = kill(process, number)
    return process.returncode, words


def test_a_server_killed_in_the_middle_is_reported_and_resumed_from(served, big, local):
    with (
        serving(served) as server,  # one of its own, to be killed
        running("get", f"{server.url}/big", *SLOWLY) as process,
    ):
        assert reaches(local / ".big.zcpart", 2 * MIB, process)
        server.stop(signal.SIGKILL)
        words = process.communicate(timeout=60)[1]
        assert process.returncode == 9
        assert len(words.splitlines()) == 1
        assert "try again" in words
    with serving(served) as server:
        assert "were there already" in zcserver("get", f"{server.url}/big").stderr
    assert (local / "big").read_bytes() == big.read_bytes()


def test_a_file_that_changed_since_is_refused_until_one_says_restart(url, big, local):
    partial_of(url, local)
    big.write_bytes(b"another")
    line = failing(10, "get", f"{url}/big")
    assert "has changed" in line
    assert "--restart" in line
    assert (local / ".big.zcpart").exists()
    zcserver("get", f"{url}/big", "--restart")
    assert (local / "big").read_bytes() == b"another"
    assert os.listdir(local) == ["big"]


def test_a_partial_file_of_another_one_is_not_continued(url, big, served, local):
    partial_of(url, local)
    (served / "other").write_bytes(bytes(64 * MIB))
    assert f"{served.name}/big" in failing(10, "get", f"{url}/other", "-o", "big")


def test_bytes_without_a_record_are_overwritten(url, big, local):
    (local / ".big.zcpart").write_bytes(b"nobody knows what")
    zcserver("get", f"{url}/big", "--verify")
    assert (local / "big").read_bytes() == big.read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_says_so_in_a_line_and_can_go_on(url, big, local, number, code):
    returned, words = partial_of(url, local, number)
    assert returned == code
    assert words.splitlines() == [{130: "zcserver: interrupted", 143: "zcserver: terminated"}[code]]
    assert "were there already" in zcserver("get", f"{url}/big").stderr


def test_two_downloads_to_one_name_do_not_mix(url, big, local):
    with running("get", f"{url}/big", *SLOWLY) as process:
        assert reaches(local / ".big.zcpart", MIB, process)
        process.send_signal(signal.SIGSTOP)  # it keeps the file as long as we look
        assert "another download" in failing(1, "get", f"{url}/big")


def test_bars_are_drawn_on_a_terminal_only(url, big, local):
    assert len(zcserver("get", f"{url}/big").stderr.splitlines()) == 1
    ours, theirs = os.openpty()
    process = start("get", f"{url}/big", stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "80"})
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # the terminal's other end is closed: EIO
        pass
    os.close(ours)
    assert (process.wait(60), process.stdout.read()) == (0, "")
    process.stdout.close()
    assert b"big" in shown
    assert b"1 file fetched" in shown


def test_an_output_that_makes_no_sense_is_refused(url, local, read_only_server):
    assert "do not go together" in failing(2, "get", "-r", f"{url}/", "-o", "-")
    assert "no name" in failing(2, "get", "-r", f"{read_only_server.url}/")
    assert "Try `zcserver get --help`" in failing(2, "get")


def test_the_library_imports_nothing_that_only_the_command_line_needs():
    code = (
        "import sys, zcserver, zcserver.client, zcserver.server; "
        "print([name for name in ('uvloop', 'typer', 'rich', 'click') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
