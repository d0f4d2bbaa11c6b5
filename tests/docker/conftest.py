from collections.abc import Iterator

import pytest

from tests.docker.engine import Engine, provide_base_image, running


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Engine]:
    """An engine with the image built on it."""
    with running(tmp_path_factory.mktemp("docker")) as engine:
        provide_base_image(engine, pytestconfig.cache.mkdir("docker"))
        engine.compose("build", "server")
        yield engine


@pytest.fixture
def compose(engine: Engine) -> Iterator[Engine]:
    """Nothing of the project is left when the test is over."""
    yield engine
    engine.compose("--profile", "copy", "--profile", "fanout", "down", "--volumes")
