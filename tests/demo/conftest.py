"""One running app for all tests that visit it."""

from collections.abc import Iterator

import pytest

from tests.demo.running import App


@pytest.fixture(scope="session")
def running(tmp_path_factory) -> Iterator[App]:
    app = App(tmp_path_factory.mktemp("app"))
    yield app
    app.stop()
    assert not list(app.folder.glob("erasure-app-*")), "visitors' folders are still there"
    assert "Traceback" not in app.log.read_text()
