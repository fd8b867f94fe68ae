"""What every eraser owes, whatever its method: a file in erasure/erasers/ is held to it by being there."""

import copy
import inspect
import itertools
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.edits import Edit, WeightEdit
from erasure.erasers import eraser_class, eraser_names, make_eraser
from erasure.errors import InputError, UnknownNameError
from erasure.progress import Progress
from erasure.sampling import SamplingSettings, sample
from erasure.training.context import FitContext
from tests import pieces, tiny

CONCEPTS = [
    Concept(target="cat", anchor="dog", preserve=("bird",), aliases=("kitten",)),
    Concept(target="Van Gogh", kind="style", preserve=("Monet",)),
]
PROMPTS = ["a photo of a cat and a house", "a bird"]
NAMES = eraser_names()
SAMPLING = SamplingSettings(steps=2, guidance_scale=4.0)


def quick(name: str) -> Any:
    return make_eraser(name, **eraser_class(name).quick)


def state_of(pipe: Any) -> dict[str, Tensor]:
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {
        f"{name}.{key}": value.clone() for name, part in modules.items() for key, value in part.state_dict().items()
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def deltas(edit: Edit, pipe: Any) -> dict[str, Tensor]:
    """Return the effect of an edit: the change of each weight, and for an edit during sampling its images."""
    if not isinstance(edit, WeightEdit):
        with edit.applied_to(pipe):
            return {"latents": sample(pipe, PROMPTS, [0, 1], SAMPLING, output="latents")}
    weights = backbone_of(pipe).parameters(edit.changes.__contains__)
    return {name: change.of(weights[name].detach()) for name, change in edit.changes.items()}


def test_every_file_beside_the_bases_is_an_eraser() -> None:
    files = Path(inspect.getfile(eraser_class("uce"))).parent.glob("*.py")
    methods = {file.stem for file in files} - {"__init__", "base", "shared_map"}
    modules = [eraser_class(name).__module__ for name in NAMES]
    assert {module.rpartition(".")[2] for module in modules if module.startswith("erasure.erasers.")} == methods


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_piece_with_defaults_that_names_its_source(name: str) -> None:
    kind = eraser_class(name)
    pieces.check(kind)
    module = inspect.getmodule(kind)
    assert module is not None
    assert re.search(r"arXiv:\d{4}\.\d{4,5}", f"{module.__doc__}{kind.__doc__}") or kind.source == "ours"
    kind()


@dataclass(frozen=True, kw_only=True)
class Model:
    """A pipeline that all fits of a family share, and what it was when it was built: none may change it."""

    pipe: Any
    state: dict[str, Tensor]
    switches: dict[str, Any]
    images: Tensor


@cache
def model_of(family: str) -> Model:
    pipe = tiny.EVERY[family]()
    images = sample(pipe, PROMPTS, [0, 1], SAMPLING, output="latents")
    return Model(pipe=pipe, state=state_of(pipe), switches=switches_of(pipe), images=images)


def switches_of(pipe: Any) -> dict[str, Any]:
    """Return what of a pipeline is no tensor of its state."""
    backbone = backbone_of(pipe)
    parameters = backbone.parameters(lambda _: True)
    return {
        "scheduler": copy.deepcopy(dict(pipe.scheduler.config)),
        "training": {part: pipe.components[part].training for part in ("vae", *backbone.components())},
        "requires_grad": {key: value.requires_grad for key, value in parameters.items()},
        "grad": [key for key, value in parameters.items() if value.grad is not None],
    }


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A fit with the seed 5, what it reported, and whether it left torch's global generator alone."""

    edit: Edit
    steps: list[Progress]
    left_alone: bool


@cache
def fitted(name: str, family: str = "sd1") -> Fitted:
    backbone = backbone_of(model_of(family).pipe)
    steps: list[Progress] = []
    torch.manual_seed(1)
    before = torch.get_rng_state()
    edit = quick(name).fit(CONCEPTS, FitContext(backbone=backbone, seed=5, on_progress=steps.append))
    return Fitted(edit=edit, steps=steps, left_alone=torch.equal(before, torch.get_rng_state()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", tiny.EVERY)
def test_a_fit_leaves_the_model_as_it_was_and_the_edit_changes_what_it_names(name: str, family: str) -> None:
    model = model_of(family)
    pipe, backbone = model.pipe, backbone_of(model.pipe)
    assert model.switches["grad"] == []
    if not eraser_class(name).covers(type(backbone)):
        with pytest.raises(InputError, match=rf"\w+: expected a model .+, got {family}\."):
            quick(name).fit(CONCEPTS, FitContext(backbone=backbone))
        return
    edit = fitted(name, family).edit
    assert same(model.state, state_of(pipe))
    assert switches_of(pipe) == model.switches
    with edit.applied_to(pipe):
        inside = state_of(pipe)
        assert not torch.equal(sample(pipe, PROMPTS, [0, 1], SAMPLING, output="latents")[0], model.images[0])
    changed = {key for key in model.state if not torch.equal(model.state[key], inside[key])}
    if isinstance(edit, WeightEdit):
        assert changed
    assert changed <= set(getattr(edit, "changes", ()))
    assert torch.equal(sample(pipe, PROMPTS, [0, 1], SAMPLING, output="latents"), model.images)
    assert same(model.state, state_of(pipe))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_edit(name: str) -> None:
    pipe = tiny.sd1()
    torch.manual_seed(2)
    other = quick(name).fit(CONCEPTS, FitContext(backbone=backbone_of(pipe), seed=5))
    assert same(deltas(fitted(name).edit, pipe), deltas(other, pipe))


@pytest.mark.parametrize("name", NAMES)
def test_the_global_generator_is_left_alone(name: str) -> None:
    assert fitted(name).left_alone


@pytest.mark.parametrize("name", NAMES)
def test_the_edit_says_how_it_came_to_be_and_survives_the_disk(name: str, tmp_path: Path) -> None:
    pipe, edit = model_of("sd1").pipe, fitted(name).edit
    metadata = edit.metadata
    assert (metadata.method, metadata.seed, metadata.concepts) == (name, 5, tuple(CONCEPTS))
    assert metadata.base_fingerprint == backbone_of(pipe).fingerprint()
    assert make_eraser(name, **metadata.settings) == quick(name)
    loaded = Edit.load(edit.save(tmp_path / "edit.safetensors"))
    assert loaded.metadata == metadata
    assert same(deltas(loaded, pipe), deltas(edit, pipe))


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_reported_to_the_end(name: str) -> None:
    steps = fitted(name).steps
    fit = [step for step in steps if step.stage == "fit"]
    assert [step.done for step in fit] == list(range(1, len(fit) + 1))
    assert fit[-1] == steps[-1]
    for before, after in itertools.pairwise(steps):
        # Each stage counts up to its total; only then comes another, or the same from the start.
        assert before.done < after.done if before.done < before.total else after.done >= 1
        assert before.stage == after.stage or before.done == before.total
    assert steps[-1].done == steps[-1].total


@pytest.mark.parametrize("name", NAMES)
def test_no_concepts_are_an_error(name: str) -> None:
    with pytest.raises(InputError, match="expected at least one"):
        quick(name).fit([], FitContext(backbone=backbone_of(model_of("sd1").pipe)))


def test_an_unknown_eraser_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown eraser 'ucee'. Did you mean 'uce'"):
        make_eraser("ucee")
