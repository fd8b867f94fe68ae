"""Registry: how pieces are found, and how their settings are checked, written and read."""

import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field

from erasure import registry
from erasure.erasers import ERASERS, make_eraser
from erasure.erasers.uce import UCE
from erasure.errors import InputError, UnknownNameError
from erasure.guidance import GUIDANCES, Guidance
from erasure.registry import Chosen, Exactness, Plugin, Registry, registry_of, with_settings
from erasure.runs.schema import parse

PIECE = '''
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar
from erasure.guidance import Guidance
from erasure.registry import Exactness

@dataclass(frozen=True, kw_only=True)
class Still(Guidance):
    """Nothing.

    Attributes:
        scale: Strength.
    """

    name: ClassVar[str] = "{name}"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    scale: float = 1.0

    def applied_to(self, pipe):
        return nullcontext(pipe)
'''


@dataclass(frozen=True, kw_only=True)
class Nested(Plugin):
    """Guidances in a plugin."""

    name: ClassVar[str] = "nested"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"

    weight: Annotated[float, Field(ge=0)] = 1.0
    steps: tuple[int, ...] = (1, 2)
    guidances: tuple[Chosen[Guidance], ...] = ()
    by_name: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package with an entry point of the group, to be filled by a test."""
    package, info = tmp_path / "erasure_added", tmp_path / "erasure_added-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text("")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: erasure-added\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.ENTRY_POINTS}]\nadded = erasure_added\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.refresh()
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "erasure_added"]:
        del sys.modules[name]
    monkeypatch.undo()
    registry.refresh()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"reg": "1.0"}, "uce.reg: expected a number, got '1.0'."),
        ({"reg": -1.0}, "uce.reg: expected a number greater than 0, got -1.0."),
        ({"rows": "nonsense"}, "uce.rows: expected 'templates', 'published' or 'last-subject', got 'nonsense'."),
    ],
)
def test_settings_are_checked_at_construction(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as caught:
        UCE(**settings)
    assert str(caught.value) == text
    with pytest.raises(InputError):
        replace(UCE(), **settings)


@pytest.mark.parametrize(
    ("name", "settings", "path"),
    [
        ("uce", {"strength": 1e39}, "uce.strength"),
        ("uce", {"reg": -1e308}, "uce.reg"),
        ("esd", {"steps": 2**63}, "esd.steps"),
        ("esd", {"lr": 1e38}, "esd.lr"),
        ("rece", {"base": {"name": "uce", "reg": 1e300}}, "uce.reg"),
    ],
)
def test_a_number_that_nothing_is_computed_with_is_refused(name: str, settings: dict[str, Any], path: str) -> None:
    with pytest.raises(InputError, match=rf"{path}: expected a number (up to|greater)"):
        make_eraser(name, **settings)
    concepts = [{"target": "cat"}]
    with pytest.raises(InputError, match=r"expected a number (up to|greater)"):
        parse({"model": "some-model", "eraser": {"name": name, **settings}, "concepts": concepts})


def test_the_largest_numbers_are_taken() -> None:
    assert make_eraser("esd", lr=1e30, steps=2**63 - 1, preserve_scale=0.0).lr == 1e30


def test_an_unknown_setting_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown uce setting 'regg'. Did you mean 'reg'\?"):
        UCE(regg=1.0)  # type: ignore[call-arg]


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        Nested(weight=-1.0, steps=[1])  # type: ignore[arg-type]
    assert "nested.weight: expected a number greater than or equal to 0, got -1.0." in str(caught.value)
    assert "nested.steps: expected a tuple, got [1]." in str(caught.value)


def test_settings_of_a_config_may_hold_arrays() -> None:
    assert with_settings(Nested, {"steps": [3], "by_name": {"a": 1}}, where="x.") == Nested(
        steps=(3,), by_name={"a": 1}
    )
    with pytest.raises(InputError, match=r"x\.steps\.0: expected an integer, got '3'"):
        with_settings(Nested, {"steps": ["3"]}, where="x.")


def test_a_chosen_piece_is_read_from_a_name_a_mapping_or_an_instance() -> None:
    made = GUIDANCES.get("a-star")
    one = Nested(guidances=({"name": "a-star", "concepts": ["cat"]}, made(concepts=("dog",))))  # type: ignore[arg-type]
    assert one.guidances == (made(concepts=("cat",)), made(concepts=("dog",)))
    settings = one.as_settings()
    assert settings["guidances"][1]["name"] == "a-star"
    assert with_settings(Nested, {"guidances": settings["guidances"][:1]}, where="") == Nested(
        guidances=one.guidances[:1]
    )


def test_a_fault_within_a_chosen_piece_is_named_by_its_path() -> None:
    with pytest.raises(InputError, match=r"eraser\.guidances\.0\.a-star\.alpha: expected a number, got '0\.9'"):
        with_settings(Nested, {"guidances": [{"name": "a-star", "concepts": ["cat"], "alpha": "0.9"}]}, where="eraser.")
    with pytest.raises(UnknownNameError, match="Did you mean 'a-star'"):
        with_settings(Nested, {"guidances": ["a-start"]}, where="eraser.")
    with pytest.raises(InputError, match=r"guidances\.0: expected the name of a guidance or its settings, got 3"):
        with_settings(Nested, {"guidances": [3]}, where="")


@pytest.mark.parametrize("name", ERASERS.names())
def test_settings_as_written_make_the_same_eraser(name: str) -> None:
    kind = ERASERS.get(name)
    eraser = ERASERS.make(name, **kind.quick)
    assert ERASERS.make(name, **eraser.as_settings()) == eraser


def test_a_required_setting_is_asked_for() -> None:
    with pytest.raises(InputError, match=r"a-star\.concepts: expected a value, got none\."):
        GUIDANCES.make("a-star")
    with pytest.raises(InputError, match=r"guidances\.0\.a-star\.concepts: expected a value, got none\."):
        with_settings(Nested, {"guidances": ["a-star"]}, where="")


def test_the_signature_is_that_of_the_settings() -> None:
    assert list(inspect.signature(Nested).parameters) == ["weight", "steps", "guidances", "by_name"]


def test_a_registry_is_found_by_its_base() -> None:
    assert registry_of(Guidance) is GUIDANCES
    assert {"eraser", "guidance"} <= registry.registries().keys()


def test_a_piece_of_another_package_is_found_by_entry_point(added: Path) -> None:
    (added / "still.py").write_text(PIECE.replace("{name}", "still"))
    assert "still" in GUIDANCES.names()
    assert GUIDANCES.make("still", scale=2).as_settings() == {"scale": 2.0}
    with pytest.raises(InputError, match=r"still\.scale"):
        GUIDANCES.get("still")(scale="2")  # type: ignore[call-arg]


def test_two_pieces_of_one_name_are_an_error(added: Path) -> None:
    (added / "other.py").write_text(PIECE.replace("{name}", "a-star"))
    with pytest.raises(InputError, match="guidance 'a-star': expected one of that name, got erasure"):
        GUIDANCES.names()


def test_an_entry_point_that_cannot_be_imported_is_an_error(added: Path) -> None:
    (added / "broken.py").write_text("import no_such_module")
    with pytest.raises(InputError, match=r"entry point 'added' of erasure\.plugins: expected a module to import"):
        GUIDANCES.names()


def test_a_registry_names_what_is_unknown() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown guidance 'a-str'\. Did you mean 'a-star'"):
        GUIDANCES.get("a-str")
    assert isinstance(GUIDANCES, Registry)
