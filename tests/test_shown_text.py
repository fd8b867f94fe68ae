"""Text of people is shown as it is: never as markup, as a terminal's commands, or in another text's place."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from erasure import Concept, Ledger
from erasure.cli import console
from erasure.cli.main import app
from erasure.cli.setup import extension_points
from erasure.erasers import make_eraser
from erasure.errors import InputError
from erasure.eval.images.png import file_name
from erasure.eval.protocols.ledger_measures import LedgerMeasures
from erasure.eval.reports.ledger_report import write_report
from erasure.eval.reports.model_card import model_card
from erasure.eval.reports.page import filled
from erasure.io.text import as_code, in_markdown, is_control, one_line, visible
from erasure.pipelines.export.formats import Export, Written
from erasure.runs.seeds import read_seeds
from tests import tiny

ROOT = Path(__file__).parents[1]
FACTS = {
    "config": {"model": "\x1b]0;x\x07", "eraser": {"name": "uce"}, "seed": 0},
    "git": None,
    "device": "cpu",
    "threads": 1,
    "platform": "Linux",
    "versions": {},
    "seconds": 1.0,
    "peak_mib": 1.0,
}
HOSTILE = (
    "cat [/red] \x1b[31m\x1b]0;title\x07 \x9b31m \u202egnp <img src=x onerror=alert(1)> [a](http://b) `c` | _d_ :dog:"
)


@settings(deadline=None)
@given(text=st.text())
def test_what_is_visible_holds_no_control_character(text: str) -> None:
    assert not any(is_control(sign) for sign in visible(text, keep=""))
    assert not any(is_control(sign) for sign in one_line(text))
    assert "\n" not in one_line(text)


@settings(deadline=None)
@given(text=st.text(alphabet=st.sampled_from("ab *_`<>&|[]()\\$~!#-:\"'é"), max_size=30))
def test_markdown_shows_a_text_as_it_is(text: str) -> None:
    html = MarkdownIt("commonmark").enable("table").renderInline(f"x{in_markdown(text)}x")
    assert re.sub(r"&(lt|gt|amp|quot);", "", html).find("<") == -1
    row = MarkdownIt("commonmark").enable("table").render(f"|a|b|\n|-|-|\n|{in_markdown(text)}|{as_code(text)}|\n")
    assert row.count("<td>") == 2


def test_the_consoles_show_markup_and_commands_of_a_terminal(capsys) -> None:
    table = Table("a", box=None)
    table.add_row(Text(HOSTILE))
    console.out.print(HOSTILE)
    console.out.print(table)
    console.print_whole(table)
    console.print_json({"name": HOSTILE})
    with pytest.raises(typer.Exit):
        console.fail(HOSTILE)
    captured = capsys.readouterr()
    for shown in (captured.out, captured.err):
        assert not any(is_control(sign) for sign in shown if sign != "\n")
        assert "[/red] \\x1b[31m" in shown or "\\u001b[31m" in shown
    assert len(captured.err.strip().splitlines()) == 1
    console.print_json({"name": HOSTILE})
    assert json.loads(capsys.readouterr().out) == {"name": HOSTILE}


def test_every_page_is_filled_by_the_function_that_escapes() -> None:
    sources = [path for folder in ("eval", "demo", "pipelines") for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in sources if "Environment(" in path.read_text()] == ["page.py"]


def test_a_page_shows_text_as_it_is() -> None:
    curve = {"lines": [], "grid": [(1.0, HOSTILE)], "labels": [(1.0, HOSTILE)], "left": 0, "right": 1}
    page = filled("curve", curve=curve)
    assert not any(is_control(sign) for sign in page if sign != "\n")
    assert "<img" not in page
    assert "\\x1b[31m" in page


def test_a_report_of_a_hostile_name_holds_no_control_character(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    ledger = Ledger.open_or_create(tmp_path / "ledger", pipe, str(tmp_path))
    ledger.remove(
        pipe, make_eraser("uce", rows="last-subject"), [Concept(target="\x07dog\x9b1m", anchor="\x1b[31m<b>")]
    )
    page = write_report(LedgerMeasures(ledger, pipe, None), FACTS).read_text()
    assert not any(is_control(sign) for sign in page if sign != "\n")
    assert "\\x07dog" in page
    assert r"\x1b[31m&lt;b&gt;" in page


def test_a_card_and_the_log_show_names_as_they_are(tmp_path: Path, monkeypatch) -> None:
    pipe = tiny.sd1()
    ledger = Ledger.open_or_create(tmp_path / "ledger", pipe, str(tmp_path))
    concept = Concept(target="[dog]", anchor=HOSTILE[:40], preserve=("<script>",), aliases=("`x`|y",))
    ledger.remove(pipe, make_eraser("uce", rows="last-subject"), [concept])
    export = Export()
    written = Written(export=export, state=ledger.state(), base="0" * 64, notes=(), name="a/b")
    card = str(model_card(ledger, pipe, written, image=False))
    body = card.split("---", 2)[2]
    assert "<" not in re.sub(r"```.*?```", "", body, flags=re.S)
    assert not any(is_control(sign) for sign in body if sign != "\n")
    assert r"\[dog\] (object) | \`x\`\|y |" in body
    shown = CliRunner().invoke(app, ["log", str(tmp_path / "ledger")]).output
    assert "[dog]" in shown
    assert not any(is_control(sign) for sign in shown if sign != "\n")


@pytest.mark.parametrize(
    ("family", "method", "settings", "said"),
    [
        ("sd1", "uce", {"rows": "last-subject"}, False),
        ("sdxl", "uce", {"rows": "last-subject"}, True),
        ("sdxl", "uce", {}, False),
        ("sdxl", "trce", {"stages": "text", "reg": 1e-3, "frames": ("a photo of a {}",)}, False),
    ],
)
def test_a_card_says_that_the_sentence_vector_is_not_edited(
    tmp_path: Path, family: str, method: str, settings: dict[str, Any], said: bool
) -> None:
    pipe = tiny.EVERY[family]()
    ledger = Ledger.open_or_create(tmp_path, pipe, str(tmp_path))
    ledger.remove(pipe, make_eraser(method, **settings), [Concept(target="cat", anchor="dog", preserve=("house",))])
    written = Written(export=Export(), state=ledger.state(), base="0" * 64, notes=(), name="a/b")
    card = str(model_card(ledger, pipe, written, image=False))
    assert ("no layer that reads it was edited" in card) is said


def test_no_two_prompts_share_a_file() -> None:
    prompts = ["猫", "犬", "", "empty", "a cat", "A cat", "a-cat", "a cat!", "a" * 60, "a" * 61, "é", "e\u0301"]
    names = [file_name(prompt, 3) for prompt in prompts]
    assert len({name.casefold() for name in names}) == len(prompts)
    assert file_name("a cat", 3) == "a-cat-3.png"


def test_a_selection_of_no_seeds_is_refused_and_a_double_counts_once() -> None:
    assert read_seeds("0-2,1,5") == [0, 1, 2, 5]
    for wrong, message in (
        ("7-0", "--seeds: expected ranges that rise, got '7-0'. Write 0-7"),
        ("9" * 20, f"--seeds: expected numbers of at most 18 digits, got '{'9' * 20}'"),
        ("", "--seeds: expected whole numbers"),
        ("1,,2", "--seeds: expected whole numbers"),
        ("0-999999999999", "--seeds: expected at most 10000 seeds, got 1000000000000"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            read_seeds(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "erasure: No such command 'nonsense'."),
        (["remove", "cat", "--nonsense"], "No such option: --nonsense"),
        (["remove", "cat", "--seed", "x"], "Invalid value for '--seed'"),
        (["remove", "cat", "--seed", "99999999999999999999"], "Invalid value for '--seed'"),
        (["undo", "here"], "Missing argument 'ID'"),
        (
            ["generate", "x", "--prompt", "a", "--out", "b", "--steps", "0"],
            "'--steps': expected a number greater than or equal to 1, got '0'. See",
        ),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        app(arguments)
    captured = capsys.readouterr()
    assert (ended.value.code, captured.out) == (2, "")
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1


def test_listings_show_no_address_of_an_object() -> None:
    """Defaults are shown as what they are, in the output of every command that lists something and in every help."""
    commands = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    calls = [
        ["methods"],
        ["methods", "uce"],
        ["methods", "stack"],
        ["models"],
        ["pieces"],
        *(["pieces", name] for name in _piece_names()),
    ]
    for arguments in [*calls, ["--help"], *([name, "--help"] for name in commands)]:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, arguments
        assert result.output.strip(), arguments
        assert not re.search(r"\bat 0x|<[\w.]+ object|_MISSING|<class|<function|<factory>", result.output), arguments


def _piece_names() -> list[str]:
    points = extension_points()
    return sorted({*points, *(name for point in points.values() for name in point.names())})
