"""Contract of the probes: every registered one is held to it."""

import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.errors import InputError, UnknownNameError
from erasure.eval.attacks import Goal
from erasure.eval.attacks.base import Access
from erasure.eval.probes import (
    Aim,
    Models,
    Outcome,
    Probe,
    Subject,
    attack_and_probe_names,
    probe_class,
    probe_names,
    sampled_probes,
)
from erasure.eval.probes.base import Suite
from erasure.profile import ModelProfile, profile_of
from erasure.sampling import SamplingSettings, sample
from tests import pieces, tiny_families
from tests.eval.world import oracle, pipeline
from tests.tiny import sd1

SAMPLING = SamplingSettings(steps=4, guidance_scale=4.0)
GOAL = Goal(concept=Concept(target="cat"), prompt="a photo of a cat", seed=0)


def aim(profile: ModelProfile) -> Aim:
    return Aim(
        concept=Concept(target="cat", aliases=("kitty",)),
        prompts=("a photo of a cat", "a cat on the beach"),
        seeds=(0, 1),
        kept=(("dog", "a photo of a dog", 2), ("tree", "a tree", 3)),
        siblings=("dog", "rabbit"),
        profile=profile,
        sampling=SAMPLING,
    )


@cache
def run(name: str) -> tuple[Probe, list[list[Outcome]], bool]:
    """Return a quick probe, its outcomes in two runs on one model, and whether the model is as it was."""
    pipe = pipeline()
    parameters = {key: p for key, p in backbone_of(pipe).parameters(lambda _: True).items()}
    before = {key: p.detach().clone() for key, p in parameters.items()}
    kind = probe_class(name)
    probe, target = kind(**kind.quick), aim(profile_of("tinyworld"))

    def opened() -> Any:
        return _Open(pipe)

    material = probe.material(Models(original=opened, gold=opened), target)
    runs = [list(probe.outcomes(Subject(pipe=pipe, aim=target, material=material, judge=oracle()))) for _ in range(2)]
    unchanged = all(torch.equal(before[key], p) for key, p in parameters.items())
    return probe, runs, unchanged and not any(p.grad is not None for p in parameters.values())


class _Open:
    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    def __enter__(self) -> Any:
        return self.pipe

    def __exit__(self, *error: object) -> None:
        pass


@pytest.mark.parametrize("name", ["graph", "mma", "quantise", "relearn", "soft-prompt", "wordings"])
def test_a_dose_that_counts_something_is_whole(name: str) -> None:
    assert probe_class(name)(doses=(2.0,)).doses == (2.0,)
    with pytest.raises(InputError, match=rf"{name}.doses.0: expected a multiple of 1, got 1.5"):
        probe_class(name)(doses=(1.5,))


def test_a_probe_without_a_dose_takes_none() -> None:
    for name in ("combined", "faithful", "hidden", "never-taught", "plain", "surrogates", "traces"):
        for doses in ((2.0,), (1.0, 1.0)):
            with pytest.raises(InputError, match=rf"{name}.doses"):
                probe_class(name)(doses=doses)


@pytest.mark.parametrize("name", probe_names())
def test_it_is_a_piece_with_an_access_level_and_doses(name: str) -> None:
    kind = probe_class(name)
    pieces.check(kind)
    assert re.search(r"arXiv:\d{4}\.\d{4,5}", inspect.getdoc(inspect.getmodule(kind)) or "") or kind.exactness == "ours"
    assert Path(inspect.getfile(kind)).stem == name.replace("-", "_")
    assert kind.access in get_args(Access)
    assert kind.dose_unit
    source = inspect.getsource(inspect.getmodule(kind) or kind).replace("reads_anchor", "")
    assert kind.reads_anchor == ("anchor" in source), "it is aimed at a concept without an anchor otherwise"
    with pytest.raises(InputError, match=rf"{name}.doses: .*at least 1 item"):
        kind(**{**kind.quick, "doses": ()})


@pytest.mark.parametrize("name", probe_names())
def test_its_settings_in_each_suite_can_be_used(name: str) -> None:
    kind = probe_class(name)
    assert set(kind.suites) <= set(get_args(Suite))
    for settings in kind.suites.values():
        assert kind(**settings).doses


def test_an_unknown_probe_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'revival'"):
        probe_class("revivel")


@pytest.mark.parametrize("name", probe_names())
def test_it_has_an_outcome_at_each_dose(name: str) -> None:
    probe, (outcomes, _), _ = run(name)
    for part in dict.fromkeys(outcome.part for outcome in outcomes):
        doses = [outcome.dose for outcome in outcomes if outcome.part == part]
        assert len(doses) == len(set(doses))
        assert part or set(doses) <= set(probe.doses)
    for outcome in outcomes:
        assert bool(outcome.images) != bool(outcome.values)
        assert not outcome.images or len(outcome.images) == (len(outcome.pairs) or 2), "as many as the plain prompt has"
        assert len(outcome.kept) in (0, 2)


@pytest.mark.parametrize("name", probe_names())
def test_it_repeats_to_the_bit_and_leaves_the_model_as_it_was(name: str) -> None:
    _, (one, other), unchanged = run(name)
    assert unchanged
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        assert first.values == second.values
        for left, right in zip([*first.images, *first.kept], [*second.images, *second.kept], strict=True):
            assert np.array_equal(np.asarray(left), np.asarray(right))


@pytest.mark.parametrize("name", sampled_probes())
def test_a_sampled_probe_changes_the_sampling_and_restores_it(name: str) -> None:
    assert name in attack_and_probe_names()
    pipe = sd1()
    backbone = backbone_of(pipe)
    probe = sampled_probes()[name](**probe_class(name).quick)
    plain = sample(pipe, backbone.encode([GOAL.prompt]), [0], SAMPLING, output="latents")
    ids = probe.prompt_ids(backbone, GOAL)
    assert len(ids) >= 1
    for dose in probe.doses:
        with probe.with_dose(dose).applied_to(pipe, GOAL):
            assert not torch.equal(plain, sample(pipe, backbone.encode_ids(ids[:1]), [0], SAMPLING, output="latents"))
    assert torch.equal(plain, sample(pipe, backbone.encode([GOAL.prompt]), [0], SAMPLING, output="latents"))


@pytest.mark.parametrize("name", ["emphasis", "img2img", "mma", "ring-a-bell", "unlearn-diff"])
def test_a_transformer_that_reads_a_chat_is_probed_or_refused_in_one_line(name: str) -> None:
    pipe, kind, target = tiny_families.built("z-image"), probe_class(name), aim(profile_of("tinyworld"))
    probe = kind(**kind.quick)
    models = Models(original=lambda: _Open(pipe))
    if "img2img" not in name and "emphasis" not in name:
        with pytest.raises(InputError, match=r"^attack: expected a model whose text encoders share .*, got z-image\."):
            list(probe.outcomes(Subject(pipe=pipe, aim=target, material=probe.material(models, target))))
        return
    material = probe.material(models, target)
    assert all(len(each.images) == 2 for each in probe.outcomes(Subject(pipe=pipe, aim=target, material=material)))
