import pytest


@pytest.fixture
def served(tmp_path):
    directory = tmp_path / "served"
    directory.mkdir()
    return directory


@pytest.fixture
def local(tmp_path):
    directory = tmp_path / "local"
    directory.mkdir()
    return directory
