"""The compose file as its users run it: ``make test-docker``. Slow the first time, which builds the image."""

import pytest

from tests.demo_output import cells

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
SMALL = {"SIZE": "32M", "STREAM": "128M"}


def test_the_pair_moves_files_and_memory_by_reference(compose):
    printed = compose.compose("up", "--exit-code-from", "client", **SMALL)
    assert "OK: 201 files identical, 512 messages verified" in printed
    assert cells(printed, "by reference (vmsplice)")[1] == "128.0 MiB"
    assert cells(printed, "copied by the sender")[1] == "0 bytes"
    assert int(cells(printed, "buffers recycled")[1]) >= 512


def test_where_vmsplice_is_forbidden_the_same_bytes_are_copied(compose):
    printed = compose.compose(
        "--profile", "copy", "up", "--exit-code-from", "copy-client", "copy-client", **SMALL
    )
    assert "vmsplice: Operation not permitted" in printed
    assert "OK: 201 files identical, 512 messages verified" in printed
    assert cells(printed, "by reference (vmsplice)") == ["0 bytes", "0 bytes"]
    assert cells(printed, "copied by the sender")[1] == "128.0 MiB"


def test_sixteen_subscribers_get_every_byte_from_the_same_pages(compose):
    printed = compose.compose(
        "--profile", "fanout", "up", "--exit-code-from", "fanout-client", "fanout-client", **SMALL
    )
    # 512 of the stream, and 16 times 8 frames of 1 MiB.
    assert "OK: 201 files identical, 640 messages verified" in printed
    assert cells(printed, "moved")[2] == "128.0 MiB"
    assert cells(printed, "by reference (vmsplice)")[2] == "128.0 MiB"


def test_the_clients_failure_is_the_exit_code(compose):
    printed = compose.compose("up", "--exit-code-from", "client", code=2, SIZE="1M", STREAM="nonsense")
    assert "'nonsense' is no size" in printed


@pytest.fixture
def container(engine, request):
    """Start the image with these arguments; return the container's id."""
    started = []

    def start(*arguments: str) -> str:
        started.append(engine.docker("run", "--detach", *arguments).split()[-1])
        return started[-1]

    yield start
    for one in started:
        engine.docker("rm", "--force", "--volumes", one)


HARDENED = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
QUICK = ["--health-interval=1s", "--health-retries=2"]


def health(engine, container: str) -> str:
    """What the first verdict of the container's health check is."""
    with engine.process(
        "events", "--since=0", f"--filter=container={container}", "--filter=event=health_status",
        "--format={{.Action}}",
    ) as events:  # fmt: skip
        verdict = events.stdout.readline().strip()
        events.kill()
    return verdict.removeprefix("health_status: ")


def test_the_image_serves_as_nobody_special_from_a_file_system_that_it_cannot_write_to(engine, container):
    server = container(*HARDENED, *QUICK, "zcserver")
    assert health(engine, server) == "healthy"
    assert engine.docker("exec", server, "id", "-u").strip() != "0"
    engine.docker("exec", server, "touch", "/opt/zcserver/new", code=1)
    lanes = engine.docker("exec", server, "zcserver", "doctor", "--json")
    assert '"vmsplice"' in lanes


def test_a_container_in_which_nothing_is_served_is_unhealthy(engine, container):
    idle = container(*HARDENED, *QUICK, "--entrypoint=sleep", "zcserver", "300")
    assert health(engine, idle) == "unhealthy"


def test_stopping_is_orderly(engine, container):
    server = container(*HARDENED, *QUICK, "zcserver")
    assert health(engine, server) == "healthy"
    engine.docker("stop", server)
    assert engine.docker("inspect", "--format", "{{.State.ExitCode}}", server).strip() == "0"
