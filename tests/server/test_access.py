"""The access log: what a line says, as text and JSON, and that it survives rotation and full disks."""

import json
import os
import re

import anyio
import pytest

from tests.server.requests import MIB, ask, connected, get, put, refused
from zcserver import ErrorCode, StreamResetError
from zcserver.errors import ConnectionLostError
from zcserver.file_protocol import GET, NO_SPACE, STAT, UNKNOWN_METHOD
from zcserver.server import AccessLog, FileServer, Request, Root

PEER = r"127\.0\.0\.1:\d+"
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def request(**changes):
    values = {"peer": "192.0.2.1:7", "method": GET, "path": "/file", "time": 1_700_000_000.25, "nbytes": 12}
    return Request(**(values | changes))


def test_a_text_line_has_the_same_columns_whatever_the_path():
    assert request(seconds=0.5, lane="file").as_text() == (
        "2023-11-14T22:13:20.250Z 192.0.2.1:7 GET /file OK 12 0.500 file"
    )
    line = request(peer="name of\na socket").as_text()
    assert line.split()[1] == "name%20of%0Aa%20socket"
    line = request(path="/a b\n2023 forged\x1b[31m ü/\u2028").as_text()
    assert line.split()[3] == "/a%20b%0A2023%20forged%1B[31m%20ü/%E2%80%A8"
    assert len(line.split()) == 8
    assert line.isprintable()


def test_a_json_line_is_one_object_with_the_path_as_it_came():
    line = request(path="/a b\n\x1b ü", seconds=0.5).as_json()
    assert "\n" not in line
    assert json.loads(line) == {
        "time": 1_700_000_000.25, "peer": "192.0.2.1:7", "method": "GET", "path": "/a b\n\x1b ü",
        "status": "OK", "bytes": 12, "seconds": 0.5, "lane": None,
    }  # fmt: skip


@pytest.mark.parametrize("as_line", [Request.as_text, Request.as_json])
@pytest.mark.parametrize("unusual", ["\u00ad", "x", "\x01"])
def test_long_paths_are_cut(as_line, unusual):
    one = request(path="/" + unusual * 16_000, to="/" + unusual * 16_000)
    one.end(None, 0)
    assert len(as_line(one)) < 2 * 6 * 1024 + 200
    assert "…" in as_line(one)
    if as_line is Request.as_text:
        assert len(as_line(one)) < 2 * 1024 + 200


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "OK"),
        (StreamResetError(ErrorCode.NOT_FOUND, ""), "NOT_FOUND"),
        (StreamResetError(NO_SPACE, ""), "NO_SPACE"),
        (StreamResetError(4711, ""), "4711"),
        (ConnectionLostError(""), "LOST"),
        (ZeroDivisionError(), "INTERNAL"),
        (KeyboardInterrupt(), "CANCELLED"),
    ],
)
def test_the_status_is_the_name_of_what_ended_the_request(error, status):
    one = request()
    one.end(error, 1.5)
    assert (one.status, one.seconds) == (status, 1.5)


@pytest.mark.anyio
async def test_each_request_is_logged_when_it_ends(tmp_path, make_context):
    (tmp_path / "served").mkdir()
    logged = []
    with Root(tmp_path / "served") as root:
        files = FileServer(root, writable=True, on_request=logged.append)
        context = make_context
        async with connected(files, context) as connection:
            await put(connection, "/file", bytes(3 * MIB))
            await get(connection, "/file", offset=MIB)
            await get(connection, "/file", stable=True)
            await ask(connection, STAT, "/file")
            with refused(ErrorCode.NOT_FOUND):
                await get(connection, "/none")
            with refused(UNKNOWN_METHOD):
                await ask(connection, "BREW", "/coffee")
            stream = await connection.open(GET, "/file")
            await stream.response()
            stream.reset()
            while files.active:
                await anyio.lowlevel.checkpoint()
            splices = "file" if connection.context.splices_files else "copy"
    lines = [(one.method, one.path, one.status, one.nbytes, one.lane) for one in logged]
    assert lines[:6] == [
        ("PUT", "/file", "OK", 3 * MIB, ""),
        ("GET", "/file", "OK", 2 * MIB, splices),
        ("GET", "/file", "OK", 3 * MIB, "copy"),
        ("STAT", "/file", "OK", 0, ""),
        ("GET", "/none", "NOT_FOUND", 0, ""),
        ("BREW", "/coffee", "UNKNOWN_METHOD", 0, ""),
    ]
    assert lines[6][:3] == ("GET", "/file", "CANCELLED")
    assert all(re.fullmatch(PEER, one.peer) for one in logged)
    assert all(one.seconds >= 0 for one in logged)


def test_lines_are_written_to_the_file_in_order_and_all_at_the_end(tmp_path):
    log = AccessLog(str(tmp_path / "log"))
    for number in range(500):
        log.add(request(nbytes=number))
    log.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert [int(line.split()[5]) for line in lines] == list(range(500))
    assert all(re.match(TIME, line) for line in lines)


def test_a_log_is_appended_to_and_begun_anew_when_it_was_rotated(tmp_path):
    path = tmp_path / "log"
    path.write_text("before\n")
    log = AccessLog(str(path), "json")
    log.add(request(path="/1"))
    while "/1" not in path.read_text():
        os.sched_yield()
    path.rename(tmp_path / "log.1")
    log.add(request(path="/2"))
    log.close()
    old, new = (tmp_path / "log.1").read_text().splitlines(), path.read_text().splitlines()
    assert old[0] == "before"
    assert [json.loads(line)["path"] for line in (old[1], new[0])] == ["/1", "/2"]
    assert (len(old), len(new)) == (2, 1)


def test_the_log_may_go_to_stderr(capsys):
    log = AccessLog("-", "json")
    log.add(request())
    log.close()
    assert json.loads(capsys.readouterr().err)["path"] == "/file"


def test_a_log_that_cannot_be_opened_is_an_error_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="log"):
        AccessLog(str(tmp_path / "none" / "log"))


def test_lines_that_could_not_be_written_are_counted_and_told_of(tmp_path, monkeypatch, capsys):
    path = tmp_path / "log"
    log = AccessLog(str(path), "json")
    failing = [OSError(28, "No space left on device")] * 2

    def follow():
        if failing:
            raise failing.pop()

    monkeypatch.setattr(log, "_follow_rotation", follow)
    for number in range(3):
        log.add(request(path=f"/{number}"))
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"note": "2 requests could not be logged"}
    assert [line["path"] for line in lines[1:]] == ["/2"]
    capsys.readouterr()
