"""Pictures that Gradio serves as files."""

import os
from pathlib import Path

import pytest
from PIL import Image

from erasure.demo.desk import file_of


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
