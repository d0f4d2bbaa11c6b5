"""A Docker engine for the tests: the one that runs here, or one of their own, started and ended with them."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker import base_image

COMPOSE_DIRECTORY = base_image.ROOT / "docker"
_SECONDS = 240
_HOW = "on Debian: apt-get install docker.io docker-compose debootstrap"


class Engine:
    """``own``: started here. What the commands say goes into the error when they fail."""

    def __init__(self, host: str | None = None) -> None:
        self.own = host is not None
        self._environment = {**os.environ, **({"DOCKER_HOST": host} if host else {})}

    def docker(self, *arguments: str, code: int | None = 0, **options: object) -> str:
        """Run ``docker``, check its exit code and return what it printed."""
        return self._run(["docker", *arguments], code, self._environment, **options)

    def compose(self, *arguments: str, code: int | None = 0, **variables: str) -> str:
        """As ``docker``, with the project's compose file and these variables for it."""
        command = ["docker", "compose"] if self._has_plugin() else ["docker-compose"]
        environment = {**self._environment, **variables}
        return self._run([*command, *arguments], code, environment, cwd=COMPOSE_DIRECTORY)

    def process(self, *arguments: str) -> "subprocess.Popen[str]":
        """``docker`` while it runs."""
        return subprocess.Popen(
            ["docker", *arguments], env=self._environment, text=True, stdout=subprocess.PIPE
        )

    def works(self) -> bool:
        return bool(self.docker("info", "--format", "{{.ServerVersion}}", code=None).strip())

    def has(self, image: str) -> bool:
        return bool(self.docker("images", "--quiet", image).strip())

    def _has_plugin(self) -> bool:
        return not subprocess.run(
            ["docker", "compose", "version"], check=False, capture_output=True
        ).returncode

    def _run(
        self, command: list[str], code: int | None, environment: dict[str, str], **options: object
    ) -> str:
        done = subprocess.run(
            command,
            check=False,
            timeout=_SECONDS,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if code is not None else subprocess.DEVNULL,
            **options,  # type: ignore[call-overload]
        )
        printed = done.stdout.decode(errors="replace")
        assert code is None or done.returncode == code, f"{command} ended with {done.returncode}:\n{printed}"
        return printed


@contextlib.contextmanager
def running(directory: Path) -> Iterator[Engine]:
    """The engine that answers here, else one of our own below ``directory``; skip where there is neither."""
    if not shutil.which("docker"):
        pytest.skip(f"there is no docker command; {_HOW}")
    engine = Engine()
    if engine.works():
        yield engine
        return
    if not shutil.which("dockerd") or os.geteuid() != 0:
        pytest.skip(f"no Docker engine answers, and starting one needs root and dockerd; {_HOW}")
    with _started(directory) as engine:
        yield engine


@contextlib.contextmanager
def _started(directory: Path) -> Iterator[Engine]:
    host = f"unix://{directory}/docker.sock"
    places = {"data-root": "data", "exec-root": "exec", "pidfile": "pid"}
    options = [f"--{option}={directory / name}" for option, name in places.items()]
    with (directory / "log").open("wb") as log:
        daemon = subprocess.Popen(["dockerd", f"--host={host}", *options], stdout=log, stderr=log)
    try:
        _wait_until_it_listens(daemon, directory / "log")
        yield Engine(host)
    finally:
        daemon.terminate()
        daemon.wait(_SECONDS)


def _wait_until_it_listens(daemon: "subprocess.Popen[bytes]", log: Path) -> None:
    """Follow the log: dockerd tells when it is ready."""
    with subprocess.Popen(
        ["tail", "--follow", f"--pid={daemon.pid}", "--lines=+1", log], stdout=subprocess.PIPE
    ) as tail:
        assert tail.stdout is not None
        ready = any(b"API listen on" in line for line in tail.stdout)
        tail.kill()
    if not ready:
        pytest.skip(f"dockerd does not run here: {log.read_text()[-1000:]}")


def provide_base_image(engine: Engine, cache: Path) -> None:
    """From a registry if one can be reached; else our own, but never into somebody's engine."""
    base = base_image.name()
    if engine.has(base):
        return
    engine.docker("pull", "--quiet", base, code=None)
    if engine.has(base):
        return
    if not engine.own or not shutil.which("debootstrap"):
        pytest.skip(
            f"{base} cannot be pulled, and our own takes debootstrap and an engine of our own; {_HOW}"
        )
    root = base_image.make(cache)
    with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
        engine.docker("import", "-", base, stdin=tar.stdout)
