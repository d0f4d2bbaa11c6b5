import pytest

from zcserver.server import FileServer, Root


@pytest.fixture
def files(served):
    """A writable server of ``served``."""
    with Root(served) as root:
        yield FileServer(root, writable=True)
