"""Contract of every piece, whatever its extension point."""

import re
from dataclasses import fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any

import pytest

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.edits import SamplingEdit
from erasure.erasers import eraser_class, make_eraser
from erasure.errors import InputError, UnknownNameError
from erasure.guidance import Guidance
from erasure.registry import Plugin, described
from erasure.training.context import FitContext


def check(kind: type[Plugin], *, frozen: bool = True) -> None:
    """Check that a class is a documented dataclass that names itself and its source, with strict settings."""
    assert is_dataclass(kind)
    assert not frozen or kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert re.fullmatch(r"[a-z0-9]+([-_][a-z0-9]+)*", kind.name)
    assert kind.source
    assert kind.exactness in ("published", "reconstructed", "ours")
    documented = {name for base in kind.__mro__ if is_dataclass(base) for name in described(base)}
    settings = [field for field in fields(kind) if field.init]
    missing = [field.name for field in settings if field.name not in documented]
    assert not missing, f"{kind.name}: {missing} not documented"
    if settings:
        first = settings[0].name
        with pytest.raises(UnknownNameError, match=f"Unknown {kind.name} setting '{first}x'. Did you mean '{first}'"):
            kind(**{f"{first}x": 1})
    numbers = [field.name for field in settings if isinstance(field.default, float)]
    if numbers:
        with pytest.raises(InputError) as caught:
            kind(**{**_settings(kind), **dict.fromkeys(numbers, "1.0")})
        assert all(f"{kind.name}.{name}" in str(caught.value) for name in numbers)
        assert "\n" not in str(caught.value)


def _settings(kind: type[Plugin]) -> dict[str, Any]:
    return dict(kind.quick or MappingProxyType({}))


def guidance(kind: Any, pipe: Any, **settings: Any) -> Guidance:
    """Return a guidance for the word "cat"; one with tensors is fitted by the eraser of its name."""
    made = kind(concepts=("cat",), **{**kind.quick, **settings})
    if not kind.fitted:
        return made
    eraser = make_eraser(kind.name, **eraser_class(kind.name).quick)
    if hasattr(eraser, "gate"):  # of two forms of the method, the one during sampling
        eraser = replace(eraser, gate="transport")
    edit = eraser.fit([Concept(target="cat", preserve=("bird",))], FitContext(backbone=backbone_of(pipe)))
    assert isinstance(edit, SamplingEdit)
    return replace(edit.guidances[0], **{**kind.quick, **settings})
