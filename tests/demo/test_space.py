"""The folder of a Hugging Face Space."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from erasure.demo.server.space import write
from erasure.errors import InputError
from tests.demo.running import ROOT, App


def test_the_requirement_is_the_wheel_that_lies_in_the_space(tmp_path) -> None:
    (tmp_path / "erasure-1.2.3-py3-none-any.whl").touch()
    write("someone/erasure", tmp_path)
    wanted = Requirement((tmp_path / "requirements.txt").read_text(encoding="utf-8").strip())
    assert (wanted.name, wanted.extras) == ("erasure", {"app"})
    assert wanted.url == "https://huggingface.co/spaces/someone/erasure/resolve/main/erasure-1.2.3-py3-none-any.whl"
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"sdk_version: {version('gradio')}\n" in page
    assert "app_file: app.py\n" in page


@pytest.mark.parametrize("space", ["erasure", "a/b/c", "a/b@c", "../.. /x", ""])
def test_another_name_is_refused(tmp_path, space: str) -> None:
    (tmp_path / "erasure-1.2.3-py3-none-any.whl").touch()
    with pytest.raises(InputError, match="owner/name"):
        write(space, tmp_path)


def test_a_folder_without_a_wheel_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="expected one wheel"):
        write("someone/erasure", tmp_path)


@pytest.mark.slow
def test_the_app_runs_from_a_wheel_and_another_folder(tmp_path) -> None:
    there = tmp_path / "installed"
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--no-compile"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", str(there), str(ROOT)], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(there))  # before the checkout, so that the wheel's files are what runs
        place = "import erasure, erasure.demo.page as page; print(erasure.__file__, page.__file__)"
        command = [sys.executable, "-c", place]
        found = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.split()
        assert all(Path(file).is_relative_to(there) for file in found)
        app = App(tmp_path)
        app.stop()
