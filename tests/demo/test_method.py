"""The fields of the chosen method: one set for all methods."""

from typing import Any

import gradio as gr
import pytest

from erasure.demo.forms import Setting, offered
from erasure.demo.tabs.method import DEFAULT, MethodForm
from erasure.erasers import eraser_names
from erasure.errors import InputError, UnknownNameError


class Visitor:
    """A browser with the fields: it keeps their values, and sends them all."""

    def __init__(self, form: MethodForm) -> None:
        self.form = form
        self.method = DEFAULT
        self.shown: Any = self.form.shown.value
        self.fields = [
            {key: getattr(field, key, None) for key in ("label", "info", "value", "visible")}
            for field in self.form.fields.values()
        ]

    def choose(self, method: str) -> None:
        self.method = method
        *updates, main, more, self.shown = self.form._fill(method, self.shown, *self.values())
        for field, update in zip(self.fields, updates, strict=True):
            field |= update
        mine = offered(method, "tinyworld")
        assert main["visible"] == any(setting.main for setting in mine)
        assert more["visible"] == any(not setting.main for setting in mine)

    def values(self) -> list[Any]:
        return [field["value"] for field in self.fields]

    def field(self, name: str) -> dict[str, Any]:
        [mine] = [field for field in self.fields if field["visible"] and field["label"] == name]
        return mine

    def sends(self) -> dict[str, Any]:
        return self.form.settings(self.method, self.shown, *self.values())


@pytest.fixture(scope="module")
def form() -> MethodForm:
    with gr.Blocks():
        return MethodForm.placed("tinyworld")


@pytest.fixture
def visitor(form: MethodForm) -> Visitor:
    return Visitor(form)


def value_other_than(setting: Setting) -> Any:
    if setting.kind == "choice":
        return next(choice for choice in setting.choices if choice != setting.value)
    return not setting.value if setting.kind == "switch" else 7.25


def test_each_method_shows_its_settings_with_their_defaults_and_has_its_values_again(visitor: Visitor) -> None:
    typed: dict[str, dict[str, Any]] = {}
    for method in eraser_names():
        visitor.choose(method)
        mine = {setting.name: setting for setting in offered(method, "tinyworld")}
        assert sorted(field["label"] for field in visitor.fields if field["visible"]) == sorted(mine)
        assert visitor.sends() == {}
        for name, setting in mine.items():
            field = visitor.field(name)
            assert (field["value"], field["info"]) == (setting.value, setting.about), (method, name)
            assert list(field.get("choices", ())) == list(setting.choices) or method == DEFAULT, (method, name)
            field["value"] = value_other_than(setting)
        typed[method] = {name: value_other_than(setting) for name, setting in mine.items()}
        assert visitor.sends() == typed[method]
    for method, values in typed.items():
        visitor.choose(method)
        assert {name: visitor.field(name)["value"] for name in values} == values
        assert visitor.sends() == values


def test_a_field_that_is_cleared_has_its_default_again(visitor: Visitor) -> None:
    visitor.field("reg")["value"] = None
    assert visitor.sends() == {}
    visitor.choose("esd")
    visitor.choose("uce")
    assert visitor.field("reg")["value"] == 0.5


def test_a_method_that_was_chosen_a_moment_ago_takes_nothing_from_the_fields_of_the_one_before(
    visitor: Visitor,
) -> None:
    visitor.choose("esd")
    visitor.field("steps")["value"] = 20
    visitor.choose("uce")
    visitor.field("reg")["value"] = 20
    visitor.method = "esd"
    assert visitor.sends() == {"steps": 20}
    visitor.method = "mace"
    assert visitor.sends() == {}


@pytest.mark.parametrize("earlier", ["x", True, None, [1], {}])
def test_what_a_field_cannot_hold_does_not_come_back(visitor: Visitor, earlier: object) -> None:
    visitor.shown = {"method": "uce", "changed": {"esd": {"steps": earlier, "release": earlier, "other": 1}}}
    visitor.choose("esd")
    assert (visitor.field("steps")["value"], visitor.sends()) == (150, {})


@pytest.mark.parametrize(
    "shown", [None, "uce", {}, {"method": 1, "changed": {}}, {"method": "uce", "changed": {"a": 1}}]
)
def test_what_is_not_of_the_page_is_refused(visitor: Visitor, shown: object) -> None:
    visitor.shown = shown
    with pytest.raises(InputError, match="Reload the page"):
        visitor.sends()
    with pytest.raises(gr.Error, match="Reload the page"):
        visitor.choose("esd")


def test_an_unknown_method_is_refused(visitor: Visitor) -> None:
    with pytest.raises(gr.Error, match="xyz"):
        visitor.choose("xyz")
    visitor.shown = {"method": "xyz", "changed": {}}
    with pytest.raises(UnknownNameError, match="xyz"):
        visitor.sends()


def test_the_page_has_no_more_fields_than_two_methods(form: MethodForm) -> None:
    most = max(len(offered(method, "tinyworld")) for method in eraser_names())
    assert len(form.fields) <= 2 * most
