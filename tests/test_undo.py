"""Undo equals never having removed: the weights depend on the set of standing requests alone, to the last bit."""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.edits import EditMetadata, WeightEdit, joint
from erasure.erasers import Eraser, eraser_class, eraser_names, make_eraser
from erasure.ledger import Ledger
from erasure.prompts import GENERIC
from erasure.runs import removal, schema
from erasure.tinyworld.profile import TinyWorldProfile
from erasure.training.context import FitContext, History
from tests import tiny

PIPE = tiny.sd1()
BACKBONE = backbone_of(PIPE)
REQUESTS: dict[str, dict[str, Any]] = {  # the tiny world's profile completes those that preserve nothing by name
    "rabbit": {},
    "mosaic": {},
    "Biscuit": {},
    "church": {"anchor": "house", "preserve": ["rabbit", "mosaic"]},
    "gun": {"anchor": "flower", "preserve": []},
}
CLOSED_FORMS: dict[str, dict[str, Any]] = {
    "uce": {},
    "uce, last subject": {"rows": "last-subject"},
    "uce, published": {"rows": "published", "preserve_scale": None, "empty_anchor": "start"},
    "speed": {},
    "cfe, last subject": {"rows": "last-subject", "least_share": 0.0},
    "rece": {"base": {"name": "uce", "rows": "last-subject"}},
    "trce, text": {"stages": "text", **eraser_class("trce").quick},
}
UNEDITED = WeightEdit(changes={}, metadata=EditMetadata.unedited(BACKBONE.fingerprint(), "tiny"))
Step = tuple[str, list[str], int]


@pytest.fixture(autouse=True, scope="module")
def small_world() -> Iterator[None]:
    """Leave the world a few concepts, so that a default preserve list is short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TinyWorldProfile, "concepts", ("rabbit", "church", "gun", "Biscuit", "mosaic"))
        patch.setattr("erasure.closed_form.caption_statistics.GENERIC", GENERIC[:2])
        yield


def config_of(kind: str) -> dict[str, Any]:
    return {"name": kind.partition(",")[0], **CLOSED_FORMS[kind]}


def eraser_of(kind: str) -> Eraser:
    return make_eraser(**config_of(kind))


def run_of(kind: str, names: Sequence[str]) -> schema.Run:
    concepts = [{"target": name, **REQUESTS[name]} for name in names]
    return schema.parse({"model": "tinyworld", "eraser": config_of(kind), "concepts": concepts, "measure": None})


def weights(edit: Any) -> dict[str, Tensor]:
    with edit.applied_to(PIPE, check=False):
        return {name: weight.detach().clone() for name, weight in tiny.text_weights(BACKBONE).items()}


@cache
def alone(kind: str, request: tuple[str, ...]) -> Any:
    """Return the edit of a request whose removal was the only one ever."""
    run = run_of(kind, request)
    return run.eraser.fit(run.concepts, FitContext(backbone=BACKBONE))


def carry_out(ledger: Ledger, kind: str, step: Step, requests: dict[str, tuple[str, ...]]) -> None:
    """Carry out a command, a removal of a family as one entry, or an undo; note which request each entry is."""
    what, names, which = step
    if what == "undo":
        if ledger.standing:
            ledger.undo(ledger.standing[which % len(ledger.standing)].id)
        return
    run = run_of(kind, names)
    if what == "family":
        entries = [ledger.remove(PIPE, run.eraser, run.concepts)]
    else:
        run, _ = removal.remaining(run, ledger)
        entries = list(removal.remove(run, PIPE, ledger))
    for entry in entries:
        requests[entry.id] = tuple(concept.target for concept in entry.concepts)


steps = st.tuples(
    st.sampled_from(["command", "command", "family", "undo", "undo"]),
    st.lists(st.sampled_from(list(REQUESTS)), min_size=1, max_size=3, unique=True),
    st.integers(0, 9),
)


@pytest.mark.parametrize("kind", CLOSED_FORMS)
@settings(max_examples=3, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(plan=st.lists(steps, min_size=2, max_size=4), data=st.data())
def test_the_weights_depend_on_the_set_of_standing_requests_alone(
    kind: str, plan: list[Step], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ledger = Ledger.open_or_create(tmp_path_factory.mktemp("ledger"), PIPE, "tiny")
    requests: dict[str, tuple[str, ...]] = {}
    for step in plan:
        carry_out(ledger, kind, step, requests)
    standing = data.draw(st.permutations(sorted({requests[entry.id] for entry in ledger.standing})))
    expected = weights(joint([alone(kind, request) for request in standing]) if standing else UNEDITED)
    for name, weight in weights(ledger.edit()).items():
        assert torch.equal(weight, expected[name]), (name, standing)


def test_undoing_one_of_a_command_is_the_command_without_it(tmp_path: Path) -> None:
    """The case that was reported: the other entries of the command had stopped preserving what it removed."""
    ledger, never = (Ledger.open_or_create(tmp_path / name, PIPE, "tiny") for name in ("undone", "never"))
    for each, names in ((ledger, ["rabbit", "mosaic", "church"]), (never, ["rabbit", "church"])):
        list(removal.remove(removal.remaining(run_of("uce", names), each)[0], PIPE, each))
    ledger.undo("002")
    assert [entry.concepts for entry in ledger.standing] == [entry.concepts for entry in never.standing]
    assert "mosaic" in ledger.standing[0].concepts[0].preserve
    expected = weights(never.edit())
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(ledger.edit()).items())


@pytest.mark.parametrize("kind", CLOSED_FORMS)
def test_a_closed_form_does_not_depend_on_what_was_removed_before(kind: str) -> None:
    concept, before = Concept(target="cat", preserve=("dog", "house")), Concept(target="dog")
    edits = [
        eraser_of(kind).fit([concept], FitContext(backbone=BACKBONE, history=history))
        for history in (History(), History(targets=(before,)))
    ]
    one, other = (weights(edit) for edit in edits)
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    assert all(isinstance(edit, WeightEdit) and edit.closed_form for edit in edits)


def test_every_eraser_with_a_closed_form_is_tried() -> None:
    """An eraser that reads text alone and changes weights has one; others, in some of their settings."""
    concepts = [Concept(target="cat")]
    read_text = [name for name in eraser_names() if eraser_class(name).depends_on == "text"]
    edits = {name: make_eraser(name).fit(concepts, FitContext(backbone=BACKBONE)) for name in read_text}
    closed = {name for name, edit in edits.items() if isinstance(edit, WeightEdit)}
    assert closed <= {config_of(kind)["name"] for kind in CLOSED_FORMS}
