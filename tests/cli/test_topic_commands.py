"""``pub``, ``sub`` and ``serve --topics``, as in a shell: pipes, files, lost servers, closed pipes."""

import contextlib
import re
import select
import signal
import subprocess
import sys

import anyio
import pytest

from tests.cli.commands import PATIENCE, failing, running, serving, zcserver
from tests.raw_peer import deadline, until
from zcserver import Context, serve
from zcserver.cli.exits import CommandError, ExitCode
from zcserver.cli.sub import SubSettings, subscribe
from zcserver.topics import Topics

MIB = 1 << 20


@pytest.fixture(scope="module")
def hub():
    with serving("--topics", "--retain", "32M") as server:
        yield server


@pytest.fixture
def topic(hub, request):
    return f"{hub.url}/{request.node.name}"


@pytest.mark.parametrize(
    ("options", "count"),
    [(["--chunk", "1M"], 8), (["--chunk", "100K"], 82), (["--chunk", "8M"], 2), (["--frame"], 1), ([], 8)],
)
def test_what_is_published_from_a_file_comes_out_as_it_went_in(topic, tmp_path, random_bytes, options, count):
    content = random_bytes[: 8 * MIB + 5] if count != 8 else random_bytes[: 8 * MIB]
    (tmp_path / "in").write_bytes(content)
    done = zcserver("pub", topic, tmp_path / "in", *options)
    assert done.stderr.startswith(f"{count} message{'s' * (count > 1)} published, 8.0 MiB, ")
    done = zcserver("sub", topic, "--from", "earliest", "--count", str(count), text=False)
    assert done.stdout == content
    assert done.stderr.startswith(b"%d message" % count)


def test_lines_are_messages_and_come_out_as_lines(topic, tmp_path):
    lines = [b"one\n", b"\n", b"two\r\n", b"\x00\xff\n", b"x" * 20_000 + b"\n", b"no newline"]
    (tmp_path / "log").write_bytes(b"".join(lines))
    zcserver("pub", topic, tmp_path / "log", "--lines", "-q")
    zcserver("sub", topic, "--from", "1", "--count", "6", "-o", tmp_path / "out", "-q")
    assert [path.read_bytes() for path in sorted((tmp_path / "out").iterdir())] == lines
    assert zcserver("sub", topic, "--from", "2", "--count", "5", text=False).stdout == b"".join(lines[1:])


@pytest.mark.parametrize("content_type", ["image/png", "image/png; charset=binary"])
def test_messages_become_files_that_their_numbers_and_types_name(topic, tmp_path, content_type):
    (tmp_path / "still").write_bytes(b"\xff\xd8")
    zcserver("pub", topic, tmp_path / "still", "--frame", "--type", content_type)
    for _ in range(2):
        zcserver("sub", topic, "-o", tmp_path / "out", "--from", "earliest", "--count", "1")
    (path,) = (tmp_path / "out").iterdir()
    assert re.fullmatch(r"[0-9a-f]{20}-000000000001\.png", path.name)
    assert path.read_bytes() == b"\xff\xd8"


def test_a_message_is_written_through_no_link(topic, tmp_path):
    (tmp_path / "in").write_text("message")
    zcserver("pub", topic, tmp_path / "in", "--frame")
    command = ("sub", topic, "-o", tmp_path / "out", "--from", "earliest", "--count", "1")
    zcserver(*command)
    (saved,) = (tmp_path / "out").iterdir()
    saved.unlink()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (saved.name, f".{saved.name}.zcpart"):
        (tmp_path / "out" / name).symlink_to(victim)
    zcserver(*command)
    assert victim.read_text() == "precious"
    assert not saved.is_symlink()
    assert saved.read_text() == "message"


def test_a_restarted_server_counts_anew_and_no_saved_message_is_lost(tmp_path):
    for content in ("before", "after", "later still"):
        (tmp_path / "in").write_text(content)
        with serving("--topics") as server:
            zcserver("pub", f"{server.url}/log", tmp_path / "in", "--frame")
            zcserver("sub", f"{server.url}/log", "-o", tmp_path / "out", "--from", "1", "--count", "1")
    saved = sorted((tmp_path / "out").iterdir())
    assert [path.read_text() for path in saved] == ["before", "after", "later still"]


def test_live_from_a_pipe_to_a_pipe(topic):
    with (
        running("sub", topic, "--from", "earliest", text=False, bufsize=0) as reader,
        running("pub", topic, "--lines", stdin=subprocess.PIPE, text=False, bufsize=0) as writer,
    ):
        for number in range(5):
            writer.stdin.write(b"line %d\n" % number)
            assert reader.stdout.readline() == b"line %d\n" % number  # before the next one is written
        writer.stdin.close()
        assert writer.wait(PATIENCE) == 0
        assert writer.stderr.read().startswith(b"5 messages published, 35 bytes")
        reader.send_signal(signal.SIGINT)
        assert reader.wait(PATIENCE) == ExitCode.INTERRUPTED
        assert reader.stderr.read().splitlines()[-1] == b"zcserver: interrupted"


def test_a_reader_that_has_enough_ends_it_quietly(topic, tmp_path, random_bytes):
    (tmp_path / "in").write_bytes(random_bytes[: 4 * MIB])
    zcserver("pub", topic, tmp_path / "in")
    with running("sub", topic, "--from", "earliest", text=False) as reader:
        assert reader.stdout.read(1000) == random_bytes[:1000]
        reader.stdout.close()
        assert reader.wait(PATIENCE) == ExitCode.FAILED
        assert reader.stderr.read() == b""


def test_a_reader_that_has_gone_ends_it_although_nothing_comes(topic, tmp_path):
    (tmp_path / "in").write_text("one\n")
    zcserver("pub", topic, tmp_path / "in")
    with running("sub", topic, "--from", "1") as reader:
        assert reader.stdout.readline() == "one\n"
        reader.stdout.close()
        assert reader.wait(PATIENCE) == ExitCode.FAILED
        assert reader.stderr.read() == ""


def test_what_was_missed_is_told_though_no_message_follows(tmp_path, capsys):
    async def receive(url):
        with pytest.raises(CommandError, match="terminated"):
            await subscribe(url, SubSettings(str(tmp_path), 1, "drop-oldest", "", 0, quiet=False))

    async def run():
        said = ""
        with Context() as context, deadline():
            topics = Topics(context)
            topic = topics.topic("/t")
            for _ in range(5):
                await topic.publish(b"x")
            while topic.evict():
                pass
            async with (
                serve(topics.handle, port=0, context=context) as server,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(receive, f"zc://127.0.0.1:{server.port}/t")
                await until(lambda: topic.subscriptions)
                topics.close()
                while "trying again" not in said:
                    said += capsys.readouterr().err
                    await anyio.lowlevel.checkpoint()
                signal.raise_signal(signal.SIGTERM)
        return said + capsys.readouterr().err

    said = anyio.run(run)
    assert "missing 1 to 5 (not retained)\n" in said
    assert said.splitlines()[-1].endswith(", 5 missed")


def test_a_server_that_comes_back_is_found_again_by_both(tmp_path):
    with serving("--topics") as server:
        url = f"{server.url}/log"
        with (
            running("sub", url, text=False, bufsize=0) as reader,
            running("pub", url, "--lines", stdin=subprocess.PIPE, text=False, bufsize=0) as writer,
        ):
            # Until the subscription is there, its "latest" may be behind what is published.
            while not _comes(writer, reader, b"are you there?\n"):
                pass
            server.stop(signal.SIGKILL)
            assert b"trying again in" in reader.stderr.readline()
            with serving("--topics", port=server.port):
                writer.stdin.write(b"still here\n")
                while (line := reader.stdout.readline()) != b"still here\n":
                    assert line == b"are you there?\n"
                assert b"missing " in _line_with(reader.stderr, b"missing ")
                writer.stdin.close()
                assert writer.wait(PATIENCE) == 0


def _comes(writer, reader, line):
    writer.stdin.write(line)
    ready, _, _ = select.select([reader.stdout], [], [], 0.2)
    return bool(ready) and reader.stdout.readline() == line


def _line_with(stream, words):
    while words not in (line := stream.readline()):
        assert line
    return line


def test_standard_input_of_the_server_is_a_topic(tmp_path):
    code = "import sys, time\nfor n in range(3): print('line', n, flush=True)\nsys.stdin.read()"
    feeder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with feeder, serving("--stdin", "log", "--stdin-as", "lines", stdin=feeder.stdout) as server:
        done = zcserver("sub", f"{server.url}/log", "--from", "1", "--count", "3")
        assert done.stdout == "line 0\nline 1\nline 2\n"
        (tmp_path / "x").touch()
        line = failing(ExitCode.FORBIDDEN, "pub", f"{server.url}/log", tmp_path / "x")
        assert "lets nobody publish" in line
        feeder.stdin.close()
        assert "3 messages were published to /log" in server.process.stderr.readline()
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("form", "given", "published"),
    [
        ("lines", b"short\n" + b"x" * (600 << 10) + b"\nlost\n", b"short\n"),
        ("lines", b"short\n" + b"x" * (600 << 10), b"short\n"),
        ("600K", bytes(700 << 10), b""),
        ("", b"x" * (3 * MIB), b"x" * (3 * MIB)),
    ],
)
def test_input_that_cannot_be_published_does_not_end_the_server(tmp_path, form, given, published):
    (tmp_path / "in").write_bytes(given)
    options = ["--stdin", "log", "--retain", "512K", *(["--stdin-as", form] if form else [])]
    with (tmp_path / "in").open() as source, serving(tmp_path, *options, stdin=source) as server:
        said = server.process.stderr.readline()
        if form:
            assert "zcserver: standard input: a " in said
            assert "over the topic's limit of 524288 bytes" in said
            said = server.process.stderr.readline()
        assert "standard input has ended: " in said
        last = (
            zcserver("sub", f"{server.url}/log", "--from", "earliest", "--count", "1", text=False).stdout
            if published
            else b""
        )
        assert published.endswith(last)
        assert zcserver("get", f"{server.url}/in", "-o", "-", text=False).stdout == given
        assert server.stop() == 0


def test_a_file_is_published_in_messages_that_the_topic_takes(tmp_path, random_bytes):
    (tmp_path / "in").write_bytes(random_bytes[: 3 * MIB])
    with serving("--topics", "--retain", "512K") as server:
        done = zcserver("pub", f"{server.url}/t", tmp_path / "in")
        assert done.stderr.startswith("6 messages published, 3.0 MiB")


def test_one_server_has_files_and_topics(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    with serving(tmp_path, "--topics", "-v", "--summary") as server:
        assert zcserver("get", f"{server.url}/file", "-o", "-").stdout == "content"
        zcserver("pub", f"{server.url}/file", tmp_path / "file")
        assert zcserver("sub", f"{server.url}/file", "--from", "1", "--count", "1").stdout == "content"
        assert server.stop() == 0
        logged = [line.split()[2:6] for line in server.stderr.splitlines()]
        assert ["GET", "/file", "OK", "7"] in logged
        assert ["PUBLISH", "/file", "OK", "7"] in logged
        assert any(line[:3] == ["SUBSCRIBE", "/file", "OK"] for line in logged)
        assert '"connections": 3' in server.stdout


@contextlib.contextmanager
def with_a_subscriber(log):
    """A server, and a subscriber that has received the line of ``log`` from /t."""
    log.write_bytes(b"here\n")
    with serving("--topics", "--grace", "60") as server:
        zcserver("pub", f"{server.url}/t", log)
        with running("sub", f"{server.url}/t", "--from", "1") as reader:
            assert reader.stdout.readline() == "here\n"
            yield server, reader


def test_a_running_subscription_does_not_keep_the_server_from_ending(tmp_path):
    with with_a_subscriber(tmp_path / "log") as (server, reader):
        assert server.stop() == 0
        assert "trying again" in reader.stderr.readline()


def test_a_server_that_waits_for_a_stopped_subscriber_says_so(tmp_path):
    with with_a_subscriber(tmp_path / "log") as (server, reader):
        reader.send_signal(signal.SIGSTOP)
        zcserver("pub", f"{server.url}/t", tmp_path / "log")
        server.process.send_signal(signal.SIGTERM)
        said = server.process.stderr.readline()
        assert said == "finishing 1 running requests (Ctrl-C ends them)\n"
        reader.kill()
        assert server.process.wait(PATIENCE) == 0


def test_a_subscriber_killed_twenty_times_has_every_message_at_the_end(topic, tmp_path):
    """It commits behind each file that it has written: what is written twice is the same file."""
    count = 60
    (tmp_path / "log").write_bytes(b"".join(b"%d\n" % number for number in range(count)))
    zcserver("pub", topic, tmp_path / "log", "--lines")
    out = tmp_path / "out"
    command = ["sub", topic, "-o", out, "--name", "writer", "--from", "committed", "-q"]
    for kill in range(1, 21):
        with running(*command) as reader:
            while reader.poll() is None and not list(out.glob(f"*-{2 * kill:012}")):
                pass
            reader.kill()
    written = len(list(out.glob("0*-*")))
    assert written >= 40
    with running(*command) as reader:
        while reader.poll() is None and not list(out.glob(f"*-{count:012}")):
            pass
    assert [path.read_bytes() for path in sorted(out.glob("0*-*"))] == [b"%d\n" % n for n in range(count)]


def test_what_is_wrong_is_one_line(topic, tmp_path, hub):
    (tmp_path / "big").write_bytes(bytes(33 * MIB))
    assert "over the topic's limit" in failing(ExitCode.FAILED, "pub", topic, tmp_path / "big", "--frame")
    assert "give one" in failing(ExitCode.USAGE, "pub", topic, tmp_path / "big", "--frame", "--lines")
    assert failing(ExitCode.NOT_A_FILE, "pub", topic, tmp_path) == f"{tmp_path} is a directory: name a file"
    line = failing(ExitCode.USAGE, "pub", topic, tmp_path / "big", "--key", "\udcff")
    assert "no text that could be sent" in line
    for number in ("0", str(2**63), "9" * 5000):
        assert "none of latest" in failing(ExitCode.USAGE, "sub", topic, "--from", number)
    assert "--allow-block" in failing(ExitCode.FORBIDDEN, "sub", topic, "--policy", "block")[:200]
    assert "is no topic" in failing(ExitCode.NOT_FOUND, "sub", f"{hub.url}/{'x' * 300}")
    for name in ("x" * 255, "a\tb"):
        assert "is no topic" in failing(ExitCode.USAGE, "serve", "--stdin", name)
    line = failing(ExitCode.USAGE, "serve", "--topics", "--retain", "64M", "--pool-size", "64M")
    assert "set --pool-size to 134217728" in line


def test_a_subscription_that_cannot_be_is_refused_before_connecting():
    url = "zc://127.0.0.1:1/t"
    assert "'foo' is not one of" in failing(ExitCode.USAGE, "sub", url, "--policy", "foo")
    assert "needs --name" in failing(ExitCode.USAGE, "sub", url, "--from", "committed")


def test_a_server_of_files_or_topics_only_says_so(read_only_server, topic, tmp_path):
    assert "not SUBSCRIBE" in failing(ExitCode.NOT_A_PEER, "sub", f"{read_only_server.url}/t")
    (tmp_path / "file").touch()
    for command in (
        ["get", topic, "-o", tmp_path / "copy"],
        ["get", "-r", topic, "-o", tmp_path / "copy"],
        ["put", tmp_path / "file", topic],
        ["sync", tmp_path, topic],
        ["ls", topic],
        ["rm", topic],
    ):
        assert "this server serves topics only" in failing(ExitCode.NOT_A_PEER, *command)
