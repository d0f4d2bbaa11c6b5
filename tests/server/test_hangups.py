"""SIGHUP, by which a terminal that goes away ends what runs in it."""

import os
import signal

import anyio
import pytest

from tests.cli.commands import PATIENCE, running
from tests.cli.test_get_command import SLOWLY, reaches
from tests.server.requests import MIB
from tests.server.test_serve_command import ended, run, serving
from zcserver.file_protocol import GET


def hung_up():
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the suite itself may run under nohup


def under_nohup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_a_running_transfer_is_finished_however_often_the_terminal_goes(served):
    content = os.urandom(16 * MIB)
    (served / "file").write_bytes(content)
    with serving(served, "--port", 0, preexec_fn=hung_up) as server:

        async def fetch(connection):
            stream = await connection.open(GET, "/file")
            received = bytearray()
            async for piece in stream.chunks():
                if not received:
                    server.send_signal(signal.SIGHUP)
                    await anyio.to_thread.run_sync(server.stderr.readline)  # it says that it finishes
                    server.send_signal(signal.SIGHUP)
                received += piece
            return bytes(received)

        assert run(fetch, port=server.port) == content
        assert server.wait(PATIENCE) == 129


def test_under_nohup_it_means_nothing(served):
    with serving(served, "--port", 0, preexec_fn=under_nohup) as server:
        server.send_signal(signal.SIGHUP)
        assert ended(server, signal.SIGTERM)[0] == 0


@pytest.mark.parametrize(("disposition", "code"), [(hung_up, 129), (under_nohup, 143)])
def test_it_ends_a_download_in_order(served, tmp_path, monkeypatch, disposition, code):
    monkeypatch.chdir(tmp_path)
    (served / "big").write_bytes(bytes(32 * MIB))
    with (
        serving(served, "--port", 0) as server,
        running("get", f"{server.urls[0]}big", *SLOWLY, preexec_fn=disposition) as process,
    ):
        assert reaches(tmp_path / ".big.zcpart", 1, process)
        process.send_signal(signal.SIGHUP)
        if disposition is under_nohup:
            process.terminate()
        assert process.wait(PATIENCE) == code
        assert process.stderr.read() == f"zcserver: {'hung up' if code == 129 else 'terminated'}\n"
