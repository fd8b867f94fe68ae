"""Every public entrance refuses arguments of other types in one line, before it does anything."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

import erasure
from erasure.arguments import checks_arguments
from erasure.erasers import Eraser
from erasure.errors import ErasureError, InputError, UnknownNameError

ENTRANCES = (
    *("erasure.ledger:is_ledger", "erasure.ledger:check_anchors", "erasure.ledger:recorded_eraser"),
    *("erasure.ledger:present_settings", "erasure.ledger.replay:replay", "erasure.edits:DenseChange"),
    *("erasure.edits:LowRankChange", "erasure.edits:MapChange", "erasure.edits:SolvedChange"),
    *("erasure.edits:SumChange", "erasure.edits:EditMetadata", "erasure.edits:Switch", "erasure.edits:joint"),
    *("erasure.edits:ties", "erasure.edits:weights_of", "erasure.sampling:grid", "erasure.sampling:half_noised"),
    *("erasure.sampling:sample_pairs", "erasure.sampling:sample_part", "erasure.loading:attend_by"),
    *("erasure.loading:attend_once_by_xformers", "erasure.loading:load_stored", "erasure.judge:ZeroShotJudge"),
    *("erasure.judge:clip_judge", "erasure.judge:load_clip", "erasure.judge:probability_each"),
    *("erasure.judge:shows_any", "erasure.judge:shows_each", "erasure.concept:distinct"),
    *("erasure.ledger.view:LedgerView", "erasure.tinyworld.oracle:Oracle"),
    *("erasure.eval.metrics.accuracy:ClassifierJudge", "erasure.eval.metrics.accuracy:OracleClassifier"),
    *("erasure.eval.metrics.accuracy:check_classes", "erasure.eval.metrics.accuracy:hub_classifier"),
    *("erasure.eval.protocols.evaluate:evaluate", "erasure.eval.protocols.evaluate:write_scores"),
    *("erasure.eval.protocols.audit.plan:audit_of", "erasure.eval.protocols.audit.plan:probes_of"),
    *("erasure.eval.protocols.audit.run:Audit", "erasure.eval.protocols.audit.rows:gold_rows"),
    *("erasure.eval.protocols.variants:Variant", "erasure.eval.protocols.variants:reference_variants"),
    *("erasure.eval.protocols.sources:source_of", "erasure.eval.protocols.sources:benchmark_of"),
    *("erasure.eval.protocols.golds:gold_variant", "erasure.eval.protocols.sources:metrics_of"),
    *("erasure.eval.protocols.sources:sampler_of", "erasure.eval.protocols.sources:judges_of"),
    *("erasure.eval.protocols.red_team:AttackRun", "erasure.eval.protocols.red_team:attack_prompts"),
    *("erasure.eval.protocols.health:health", "erasure.eval.protocols.quick:measure"),
    *("erasure.eval.protocols.plans:plan_of", "erasure.eval.protocols.ledger_measures:LedgerMeasures"),
    *("erasure.eval.protocols.ledger_measures:course_of",),
)
"""Entrances of the main path beside the names of `erasure` itself, by module and name."""


class Stranger:
    """A value of no type that any entrance takes."""


def _functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the functions of all entrances: of a class its making and public methods, of an eraser its fits alone."""
    places = [name.partition(":") for name in (*(f"erasure:{name}" for name in erasure.__all__), *ENTRANCES)]
    for item in (getattr(import_module(module), name) for module, _, name in places):
        if not inspect.isclass(item):
            if callable(item):
                yield item.__qualname__, item
            continue
        for name, member in vars(item).items():
            function = getattr(member, "__func__", member)
            is_public = name.startswith("fit") if issubclass(item, Eraser) else not name.startswith("_")
            if inspect.isfunction(function) and is_public and not hasattr(function, "__isabstractmethod__"):
                yield function.__qualname__, function


def _strangers(function: Callable[..., Any]) -> tuple[list[object], dict[str, object]]:
    values: list[object] = []
    named: dict[str, object] = {}
    for each in inspect.signature(function).parameters.values():
        if each.kind is inspect.Parameter.KEYWORD_ONLY:
            named[each.name] = Stranger()
        elif each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            values.append(Stranger())
    return values, named


def test_every_entrance_refuses_strangers() -> None:
    failures = {}
    for name, function in _functions():
        values, named = _strangers(function)
        if len([*values, *named]) == sum(each in ("self", "cls") for each in inspect.signature(function).parameters):
            continue
        try:
            function(*values, **named)
            failures[name] = "takes them"
        except ErasureError as error:
            if "\n" in str(error) or "Stranger" not in str(error):
                failures[name] = str(error)
        except Exception as error:
            failures[name] = repr(error)
    assert not failures, "\n".join(f"{name}: {each}" for name, each in failures.items())


@checks_arguments
def _taking(
    number: int = 0,
    share: float = 0.0,
    names: Sequence[str] = (),
    place: str | Path = "",
    pairs: Mapping[str, int] | None = None,
    kind: Literal["a", "b"] = "a",
    call: Callable[[int], int] | None = None,
    fixed: tuple[int, str] = (0, ""),
    data: bytes = b"",
    array: NDArray[np.uint8] | Sequence[int] = (),
    rest: Any = None,
    **more: int,
) -> str:
    return repr((number, share, names, place, pairs, kind, call and call(1), fixed, data, array, rest, more))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("number", True, "_taking.number: expected a whole number, got True."),
        ("number", 1.0, "_taking.number: expected a whole number, got 1.0."),
        ("share", "1", "_taking.share: expected a number, got '1'."),
        ("names", "cat", "_taking.names: expected a list of texts, got 'cat'. Write ['cat']."),
        ("names", b"cat", "_taking.names: expected a list of texts, got b'cat'."),
        ("names", {"cat"}, "_taking.names: expected a list of texts, got {'cat'}."),
        ("place", 3, "_taking.place: expected a text or a Path, got 3."),
        ("pairs", {"a": "b"}, "_taking.pairs: expected a mapping of texts to whole numbers or None, got {'a': 'b'}."),
        ("call", 3, "_taking.call: expected a function or None, got 3."),
        ("fixed", (1, 2), "_taking.fixed: expected a tuple of 2, got (1, 2)."),
        ("fixed", (1,), "_taking.fixed: expected a tuple of 2, got (1,)."),
        ("array", "text", "_taking.array: expected ndarray or a list of whole numbers, got 'text'."),
        ("other", "text", "_taking.other: expected a whole number, got 'text'."),
        ("data", "text", "_taking.data: expected bytes, got 'text'."),
    ],
)
def test_a_value_of_another_type_is_one_line(name: str, value: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        _taking(**{name: value})
    assert str(caught.value) == message


def test_values_of_the_types_pass() -> None:
    values = {"number": np.int64(3), "share": 2, "names": ("cat",), "place": Path("x"), "pairs": {}, "rest": object}
    text = _taking(**values, call=lambda i: i + 1, fixed=(1, "x"), data=b"y", kind="b", array=np.zeros(1), more=1)
    assert text == repr(
        (np.int64(3), 2, ("cat",), Path("x"), {}, "b", 2, (1, "x"), b"y", np.zeros(1), object, {"more": 1})
    )


def test_an_unknown_choice_gets_a_suggestion_and_a_wrong_call_stays_pythons() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown _taking.kind 'A'. Did you mean 'a'\?"):
        _taking(kind="A")
    with pytest.raises(TypeError, match="multiple values for argument 'number'"):
        _taking(1, number=3)
