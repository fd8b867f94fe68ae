"""One process without this package for all tests that read exports in it."""

from collections.abc import Iterator

import pytest

from tests.pipelines.elsewhere import Elsewhere


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    process = Elsewhere(tmp_path_factory.mktemp("elsewhere"))
    yield process
    process.stop()
