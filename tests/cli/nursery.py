"""Commands in processes of their own, without an interpreter's start for each.

A process that has all of the command line loaded forks one for every command: half of the suite's time went
into imports otherwise.
"""

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile


class Nursery:
    """The side of the tests."""

    def __init__(self):
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.cli.nursery", str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
        atexit.register(self.close)

    def run(self, arguments, env, timeout):
        """As ``subprocess.run``; a command that takes longer ends with everything here."""
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            wanted = {
                "arguments": arguments,
                "env": dict(os.environ if env is None else env),
                "cwd": os.getcwd(),
            }
            files = [stdout.fileno(), stderr.fileno()]
            socket.send_fds(self._sock, [json.dumps(wanted).encode()], files)
            self._sock.settimeout(timeout)
            try:
                status = int(self._sock.recv(64))
            except TimeoutError:
                self.close()
                raise
            outputs = [os.pread(fd, os.fstat(fd).st_size, 0) for fd in files]
        return subprocess.CompletedProcess(arguments, os.waitstatus_to_exitcode(status), *outputs)

    def close(self):
        """End it, and what runs in it."""
        self._sock.close()
        self._process.kill()
        self._process.wait()


def raise_all(sock):
    """The other side: a child for each request; the answer is its wait status."""
    while True:
        request, files, _, _ = socket.recv_fds(sock, 1 << 20, 2)
        if not request:
            return
        child = os.fork()
        if not child:
            sock.close()
            become(json.loads(request), files)
        for fd in files:
            os.close(fd)
        sock.send(b"%d" % os.waitpid(child, 0)[1])


def become(wanted, files):
    """The command: what ``python -m zcserver`` does in this place, with this output."""
    from zcserver.cli import main

    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(wanted["env"])
    for target, fd in enumerate(files, start=1):
        os.dup2(fd, target)
    sys.argv = ["zcserver", *wanted["arguments"]]
    main()


if __name__ == "__main__":
    from zcserver.cli import app, demo, doctor, get, pub, put, remote, serve, sub  # noqa: F401 – they are loaded when needed

    with socket.socket(fileno=int(sys.argv[1])) as ours:
        raise_all(ours)
