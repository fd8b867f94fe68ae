"""The method of the tab "Erase" and its settings: one set of fields, filled with the settings of the chosen method."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from erasure.erasers import eraser_names
from erasure.errors import InputError

from .. import limits
from ..desk import AS_SENT, ErrorsInALine
from ..forms import Setting, offered, summary

DEFAULT = "uce"
_KINDS = ("number", "choice", "switch")
Slot = tuple[bool, str, int]
"""Position of a field: whether it is a main one, its kind, and its index among those."""


@dataclass(frozen=True, kw_only=True)
class MethodForm:
    """Choice of a method, and the fields that hold its settings.

    Attributes:
        model: Name of the model, whose defaults the fields show.
        method: Choice of the method.
        shown: Method whose settings the fields hold, and changed settings by method, as the browser keeps them.
        fields: Fields by their slots; a method takes the first ones of each kind, the rest are hidden.
        boxes: Row of the main fields, and accordion of the others.
    """

    model: str
    method: gr.Dropdown
    shown: gr.JSON
    fields: Mapping[Slot, Component]
    boxes: tuple[gr.Row, gr.Accordion]

    @classmethod
    def placed(cls, model: str) -> "MethodForm":
        """Place the components at this position of the page."""
        methods = sorted(eraser_names(), key=lambda name: name != DEFAULT)
        choices = [(f"{name}: {summary(name)}", name) for name in methods]
        method = gr.Dropdown(choices, value=DEFAULT, label="Method", info="Type to search.", elem_id="method")
        first = _slots(DEFAULT, model)
        slots = {slot for name in methods for slot in _slots(name, model)}
        in_order = sorted(slots, key=lambda slot: (_KINDS.index(slot[1]), slot[2]))
        with gr.Column(elem_id="settings"):
            with gr.Row(elem_classes="settings-main") as main:
                fields = {slot: _field(slot, first.get(slot)) for slot in in_order if slot[0]}
            with gr.Accordion("More settings", open=False) as more:
                fields |= {slot: _field(slot, first.get(slot)) for slot in in_order if not slot[0]}
        shown = gr.JSON({"method": DEFAULT, "changed": {}}, visible=False)
        form = cls(model=model, method=method, shown=shown, fields=fields, boxes=(main, more))
        # The browser fills the fields in this order: until `shown` has changed, they count as those of the last method.
        outputs = [*fields.values(), *form.boxes, shown]
        method.change(form._fill, form.inputs, outputs, queue=False, **AS_SENT)
        return form

    @property
    def inputs(self) -> list[Component]:
        """Components whose values `settings` reads."""
        return [self.method, self.shown, *self.fields.values()]

    def settings(self, method: object, shown: object, *values: object) -> dict[str, Any]:
        """Return the settings of the chosen method that differ from their defaults, from the values of `inputs`.

        The fields count if they hold this method's settings; of a method chosen a moment ago, what they are about to
        show does.

        Raises:
            InputError: The values are not those of this page.
        """
        name = limits.name("method", method)
        return self._by_method(shown, values).get(name, {})

    def _by_method(self, shown: object, values: Sequence[object]) -> dict[str, dict[str, Any]]:
        """Return the settings that differ from their defaults, by method."""
        match shown:
            case {"method": str(name), "changed": dict(changed)} if all(isinstance(v, dict) for v in changed.values()):
                held = dict(zip(self.fields, values, strict=True))
                mine = {setting: held[slot] for slot, setting in _slots(name, self.model).items()}
                now = {s.name: value for s, value in mine.items() if value is not None and value != s.value}
                return {**changed, name: now}
        raise InputError("settings: expected those of this page, got others. Reload the page.")

    def _fill(self, method: object, shown: object, *values: object) -> list[Any]:
        """Return the updates that show the settings of the chosen method, with the visitor's values of before."""
        with ErrorsInALine():
            name = limits.name("method", method)
            slots, changed = _slots(name, self.model), self._by_method(shown, values)
        earlier = changed.get(name, {})
        updates = [_update(slots[slot], earlier) if slot in slots else gr.update(visible=False) for slot in self.fields]
        boxes = [gr.update(visible=any(slot[0] == main for slot in slots)) for main in (True, False)]
        return [*updates, *boxes, {"method": name, "changed": changed}]


def _slots(method: str, model: str) -> dict[Slot, Setting]:
    """Return the settings of a method by their slots."""
    taken = Counter[tuple[bool, str]]()
    slots = {}
    for setting in offered(method, model):
        place = (setting.main, {"whole": "number"}.get(setting.kind, setting.kind))
        slots[*place, taken[place]] = setting
        taken[place] += 1
    return slots


def _field(slot: Slot, setting: Setting | None) -> Component:
    """Place the field of a slot, with the setting that it holds at first; None is a hidden one."""
    main, kind, i = slot
    shared: dict[str, Any] = {"visible": setting is not None, "elem_id": f"{'main' if main else 'more'}-{kind}-{i}"}
    if setting is not None:
        shared |= {"label": setting.name, "info": setting.about, "value": setting.value}
    if kind == "choice":
        return gr.Dropdown(list(setting.choices) if setting else [], **shared)
    if kind == "switch":
        return gr.Checkbox(**shared)
    # without a precision, which would round "1.5" of a whole number in silence
    return gr.Number(min_width=140, **shared)


def _update(setting: Setting, earlier: Mapping[str, Any]) -> Any:
    """Return the update of a field that is to hold a setting, with the visitor's earlier value if it can hold that."""
    value = earlier.get(setting.name)
    fits = {
        "choice": value in setting.choices,
        "switch": isinstance(value, bool),
    }.get(setting.kind, isinstance(value, int | float) and not isinstance(value, bool))
    shown: dict[str, Any] = {"choices": list(setting.choices)} if setting.kind == "choice" else {}
    shown["value"] = value if fits else setting.value
    return gr.update(label=setting.name, info=setting.about, visible=True, **shown)
