"""The demo: in one go, in two halves on two machines, and what it says when a byte is wrong."""

import contextlib
import io
import signal
import socket
import subprocess

import pytest
from rich.console import Console

import zcserver
from tests.cli.commands import COMMAND, PATIENCE, failing
from tests.cli.commands import zcserver as run
from tests.demo_output import cells
from tests.namespaces import veth
from tests.raw_peer import deadline
from zcserver.cli import ring
from zcserver.cli.demo_client import fetch_demo
from zcserver.cli.demo_server import DemoServer, make_files
from zcserver.cli.exits import ExitCode
from zcserver.server import FileServer, Root

MIB = 1 << 20


def test_the_demo_verifies_what_it_moves(tmp_path):
    done = run("demo", "--size", "8M", "--stream", "32M", "--dir", tmp_path / "demo")
    assert "OK: 201 files identical, 128 messages verified" in done.stdout
    assert not (tmp_path / "demo").exists()


# -- two halves -------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving_half(command, where, directory, *options):
    """``demo --serve``, run by ``command``, and its URL. It must end well and leave no file."""
    arguments = ["demo", "--serve", where, "--dir", directory, "--size", "8M", "--ring", "4M", *options]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        said = [process.stdout.readline() for _ in range(2)]
        assert " at zc://" in said[1], said
        yield said[1].split(" at ")[1].split()[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert not list(directory.iterdir())


@pytest.mark.root
@pytest.mark.parametrize("lanes", ["", "copy"], ids=["any lane", "copied"])
def test_two_machines_run_one_half_each(tmp_path, lanes):
    served, fetched = tmp_path / "served", tmp_path / "fetched"
    served.mkdir()
    with veth() as link:
        server, client = (["ip", "netns", "exec", name, *COMMAND] for name in link.names)
        with serving_half(server, f"{link.host}:0", served, "--lanes", lanes) as url:
            done = subprocess.run(
                [*client, "demo", url, "--stream", "32M", "--dir", fetched],
                check=False,
                text=True,
                capture_output=True,
                timeout=PATIENCE,
            )
    printed = done.stdout
    assert done.returncode == 0, printed + done.stderr
    assert "OK: 201 files identical, 128 messages verified" in printed
    assert int(cells(printed, "buffers recycled")[1]) >= 128
    assert not fetched.exists()
    if lanes == "copy":
        assert cells(printed, "copied by the sender")[1] == "32.0 MiB"
    elif "vmsplice does not work" not in printed:
        assert cells(printed, "by reference (vmsplice)")[1] == "32.0 MiB"
        assert cells(printed, "copied by the sender")[1] == "0 bytes"


def test_the_halves_are_told_apart(tmp_path, read_only_server):
    assert "one half" in failing(2, "demo", "zc://127.0.0.1/", "--serve", "*")
    assert "no address" in failing(2, "demo", "--serve", "1234", "--dir", tmp_path)
    assert "there is no demo" in failing(1, "demo", read_only_server.url + "/", "--dir", tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = ("demo", "--serve", where, "--size", "1M", "--dir", tmp_path)
        assert "choose another with --serve ADDRESS:PORT" in run(*arguments, code=8).stderr


def test_a_full_disk_is_told_before_it_is_full(tmp_path):
    line = failing(12, "demo", "--size", "1000T", "--dir", tmp_path)
    assert "choose another --dir, or a smaller --size" in line


# -- bytes that are wrong ---------------------------------------------------------------------------


@pytest.fixture
async def fetch(anyio_backend, make_context, tmp_path):
    """Run the fetching half against a server in this process; its exit code, and what it printed.

    ``interfere(stream, directory)`` is called before the server handles a stream.
    """

    async def fetch(interfere=lambda stream, directory: None, subscribers=0):
        context = make_context(pool_size=8 * MIB)
        served, fetched = tmp_path / "served", tmp_path / "fetched"
        served.mkdir()
        make_files(served, 2 * MIB)
        printed = io.StringIO()
        with Root(served) as root, deadline():
            files = FileServer(root)
            server = DemoServer(files, context)

            async def handle(stream):
                interfere(stream, served)
                await server.handle(stream)

            async with zcserver.serve(handle, port=0, context=context, trust_peer=True) as serving:
                url = f"zc://127.0.0.1:{serving.port}/"
                console = Console(file=printed, soft_wrap=True)
                code = await fetch_demo(url, 4 * MIB, fetched, console, subscribers)
                server.close()
            files.close()
        return code, printed.getvalue()

    return fetch


async def test_right_bytes_are_right_on_every_lane(fetch, make_context):
    code, printed = await fetch()
    assert code is ExitCode.OK
    by_reference = make_context().by_reference
    assert cells(printed, "by reference (vmsplice)")[1] == ("4.0 MiB" if by_reference else "0 bytes")
    assert ("vmsplice does not work there" in printed) is not by_reference


async def test_a_wrong_byte_in_a_message_is_a_mismatch(fetch, monkeypatch):
    fill = ring.fill

    def spoiled(view, number, pattern):
        fill(view, number, pattern)
        if number == 3:
            view[1000] ^= 1

    monkeypatch.setattr(ring, "fill", spoiled)
    code, printed = await fetch()
    assert code is ExitCode.MISMATCH
    assert "message 3 has checksum" in printed
    assert "FAILED" in printed


async def test_a_message_that_is_missing_is_a_mismatch(fetch):
    def shorter(stream, directory):
        if stream.method == "RING":
            stream.args["nbytes"] -= ring.MESSAGE

    code, printed = await fetch(shorter)
    assert code is ExitCode.MISMATCH
    assert "15 messages arrived, 16 were due" in printed


async def test_a_file_that_differs_is_a_mismatch(fetch):
    def change(stream, directory):
        if stream.method == "DIGEST" and stream.path.endswith("small-007.bin"):
            (directory / "folder 2" / "small-007.bin").write_bytes(b"other")

    code, printed = await fetch(change)
    assert code is ExitCode.MISMATCH
    assert "folder 2/small-007.bin differs" in printed


@pytest.mark.interpreted
async def test_words_of_the_server_are_printed_as_they_are_but_for_control_characters(fetch):
    def speak(stream, directory):
        if stream.method == "NUMBERS":
            reply = stream.reply

            async def replied(**numbers):
                await reply(**(numbers | {"lanes": "a\x1b[31m[/b],\nc", "no_vmsplice": "[link=x]\n\x07"}))

            stream.reply = replied

    code, printed = await fetch(speak)
    assert code is ExitCode.OK
    assert printed.splitlines()[:2] == [
        "lanes: a?[31m[/b], ?c",
        "  vmsplice does not work there, bytes are copied instead: [link=x]??",
    ]


async def test_every_subscriber_gets_what_is_published(fetch, make_context):
    code, printed = await fetch(subscribers=2)
    assert code is ExitCode.OK
    assert cells(printed, "moved")[2] == "4.0 MiB"
    assert "20 messages verified" in printed
    if make_context().by_reference:
        assert cells(printed, "by reference (vmsplice)")[2] == "4.0 MiB"


async def test_a_subscriber_that_gets_a_wrong_byte_is_a_mismatch(fetch, monkeypatch):
    fill = ring.fill

    def spoiled(view, number, pattern):
        fill(view, number, pattern)
        if len(view) == ring.FRAME and number == 1:
            view[1000] ^= 1

    monkeypatch.setattr(ring, "fill", spoiled)
    code, printed = await fetch(subscribers=2)
    assert code is ExitCode.MISMATCH
    assert "subscriber 1: message 1 has checksum" in printed
    assert "subscriber 2: message 1 has checksum" in printed


async def test_a_publisher_that_is_refused_ends_the_demo(fetch):
    def refuse(stream, directory):
        if stream.method == "PUBLISH":
            raise zcserver.StreamResetError(zcserver.ErrorCode.FORBIDDEN, "not here")

    code, printed = await fetch(refuse, subscribers=2)
    assert code is ExitCode.MISMATCH
    assert "the publisher failed: not here" in printed
    assert "subscriber 2: 0 messages arrived, 2 were due" in printed
