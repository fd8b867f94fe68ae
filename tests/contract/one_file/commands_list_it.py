"""Lists and help of the command in a process that has the package of the pieces; `test_one_file` runs it there."""

import pytest
from typer.testing import CliRunner

from erasure.cli.main import app
from erasure.cli.setup import extension_points

ADDED = [(noun, name) for noun, point in extension_points().items() for name in point.names() if "added" in name]
SHOWN = [
    (("pieces", "added-transform"), "factor  Factor of the step, >= 0."),
    (("methods", "added-eraser"), "eraser.strength=1.0"),
    (("remove", "--help"), "added-eraser"),
    (("remove", "--help"), "added-sampling"),
    (("attack", "--help"), "added-attack-prompt"),
    (("evaluate", "--help"), "added-benchmark"),
]


def shown(*words: str) -> str:
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def listed() -> str:
    return shown("pieces")


@pytest.mark.parametrize(("noun", "name"), [pair for pair in ADDED if pair[1] != "added-guidance"])
def test_added_is_listed(noun: str, name: str, listed: str) -> None:
    assert f"{noun}  {name}" in listed


@pytest.mark.parametrize(("words", "text"), SHOWN, ids=lambda words: words if isinstance(words, str) else words[0])
def test_added_is_shown(words: tuple[str, ...], text: str) -> None:
    assert text in shown(*words)
