"""Pictures that Gradio serves as files, and choices that it does not check."""

import os
from pathlib import Path

import pytest
from PIL import Image

from erasure.demo.desk import file_of
from erasure.demo.page import build
from erasure.demo.sessions import Sessions
from erasure.demo.studio import Studio
from tests.eval import world


def test_a_picture_is_never_written_over_while_it_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    picture = Image.effect_noise((64, 64), 90).convert("RGB")
    path = file_of(picture)
    whole = path.read_bytes()
    with path.open("rb") as reading:  # as a visitor's browser does, while another visitor is shown the same picture
        begun = reading.read(100)
        assert file_of(picture.copy()) == path
        assert begun + reading.read() == whole
        assert path.stat().st_ino != os.fstat(reading.fileno()).st_ino
    with Image.open(path) as shown:
        assert shown.tobytes() == picture.tobytes()
    assert file_of(picture.transpose(Image.Transpose.ROTATE_90)) != path
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_a_choice_of_the_session_is_not_compared_with_those_that_the_page_began_with() -> None:
    sessions = Sessions()
    page = build(Studio(world.pipeline(), "tinyworld", "cpu"), sessions)
    choosing = [
        (event, component.elem_id)
        for event in page.fns.values()
        for component in event.inputs
        if getattr(component, "choices", None) == [] and not getattr(component, "allow_custom_value", False)
    ]
    assert {name for _, name in choosing} >= {"audited", "back", "word"}
    assert not [(event.name, name) for event, name in choosing if event.preprocess]
    sessions.close()
