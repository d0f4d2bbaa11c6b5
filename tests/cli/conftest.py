import random
import re

import pytest

from tests.cli.commands import serving


@pytest.fixture(scope="session")
def shared_root(tmp_path_factory):
    """What the servers below offer: a directory, in which each test has one of its own."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="session")
def read_only_server(shared_root):
    with serving(shared_root) as server:
        yield server


@pytest.fixture(scope="session")
def writable_server(shared_root):
    with serving(shared_root, "--writable") as server:
        yield server


@pytest.fixture
def served(shared_root, request):
    """The test's own directory below the servers' root."""
    directory = shared_root / re.sub(r"\W", "_", request.node.name)
    directory.mkdir()
    return directory


@pytest.fixture
def local(tmp_path, monkeypatch):
    """An empty directory, which is the current one."""
    directory = tmp_path / "local"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture
def url(read_only_server, served):
    """Of ``served``, on a read-only server."""
    return f"{read_only_server.url}/{served.name}"


@pytest.fixture
def writable_url(writable_server, served):
    return f"{writable_server.url}/{served.name}"


@pytest.fixture(scope="session")
def random_bytes():
    return random.Random(1).randbytes(32 << 20)


@pytest.fixture
def big(served, random_bytes):
    """32 MiB of random bytes, served."""
    path = served / "big"
    path.write_bytes(random_bytes)
    return path
