"""Running the ``zcserver`` command as a user does: in a process of its own."""

import contextlib
import functools
import os
import signal
import subprocess
import sys

from tests.cli.nursery import Nursery

COMMAND = [sys.executable, "-m", "zcserver"]
PATIENCE = 60


def zcserver(*arguments, code=0, text=True, timeout=PATIENCE, **options):
    """Run a command to its end and check its exit code; the result has ``stdout`` and ``stderr`` as text."""
    words = [os.fspath(argument) for argument in arguments]
    if options.keys() <= {"env"}:
        done = _nursery().run(words, options.get("env"), timeout)
        if text:
            done.stdout, done.stderr = (output.decode() for output in (done.stdout, done.stderr))
    else:
        options = {"text": text, "capture_output": True, "timeout": timeout, **options}
        done = subprocess.run([*COMMAND, *words], check=False, **options)
    assert done.returncode == code, (done.returncode, done.stderr)
    assert "Traceback" not in str(done.stderr)
    return done


@functools.cache
def _nursery():
    return Nursery()


def failing(code, *arguments, **options):
    """The one line on stderr of a command that ends with ``code``."""
    lines = zcserver(*arguments, code=code, **options).stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("zcserver: ")
    return lines[0].removeprefix("zcserver: ")


def start(*arguments, **options):
    """A command that goes on running, as a process."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen([*COMMAND, *map(os.fspath, arguments)], **options)


@contextlib.contextmanager
def running(*arguments, **options):
    """As ``start``; the process ends with the block, whatever became of it."""
    process = start(*arguments, **options)
    try:
        yield process
    finally:
        process.kill()  # harmless when it has ended
        process.wait(PATIENCE)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


class Server:
    """``zcserver serve`` that has said its URL; ``url`` has no slash at its end."""

    def __init__(self, *arguments, port=0, **options):
        self.process = start("serve", *arguments, "--port", str(port), **options)
        line = self.process.stdout.readline()
        assert " at zc" in line, (line, self.process.stderr.read())
        self.url = line.split(" at ")[1].split()[0].rstrip("/")
        self.port = int(self.url.rpartition(":")[2])

    def stop(self, number=signal.SIGTERM):
        """End it and return its exit code; what it said is in ``stdout`` and ``stderr``."""
        self.process.send_signal(number)
        self.stdout, self.stderr = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode


@contextlib.contextmanager
def serving(*arguments, **options):
    server = Server(*arguments, **options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)
        server.process.stdout.close()
        server.process.stderr.close()
