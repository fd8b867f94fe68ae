"""Contract of the probes: every registered one is held to it."""

import inspect
import re
from pathlib import Path
from typing import get_args

import pytest
import torch

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.errors import UnknownNameError
from erasure.eval.attacks import Goal
from erasure.eval.attacks.base import Access
from erasure.eval.probes import attack_and_probe_names, probe_class, probe_names
from erasure.sampling import SamplingSettings, sample
from tests import pieces
from tests.tiny import sd1

SAMPLING = SamplingSettings(steps=2, guidance_scale=4.0)
GOAL = Goal(concept=Concept(target="cat"), prompt="a photo of a cat", seed=0)


@pytest.mark.parametrize("name", probe_names())
def test_it_is_a_piece_with_an_access_level_and_a_dose(name: str) -> None:
    kind = probe_class(name)
    pieces.check(kind)
    assert re.search(r"arXiv:\d{4}\.\d{4,5}", inspect.getdoc(inspect.getmodule(kind)) or "") or kind.exactness == "ours"
    assert Path(inspect.getfile(kind)).stem == name.replace("-", "_")
    assert kind.access in get_args(Access)
    assert kind.dose_unit
    probe = kind(**kind.quick)
    dose = getattr(probe, kind.dose)
    assert getattr(probe.with_dose(2 * dose), kind.dose) == 2 * dose
    assert name in attack_and_probe_names()


def test_an_unknown_probe_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'revival'"):
        probe_class("revivel")


@pytest.mark.parametrize("name", probe_names())
def test_it_repeats_to_the_bit_at_each_dose_and_leaves_the_model_as_it_was(name: str) -> None:
    pipe = sd1()
    backbone = backbone_of(pipe)
    weights = {key: p.detach().clone() for key, p in backbone.parameters(lambda _: True).items()}
    probe = probe_class(name)(**probe_class(name).quick)
    plain = sample(pipe, backbone.encode([GOAL.prompt]), [0], SAMPLING, output="latents")
    ids = probe.prompt_ids(backbone, GOAL)
    assert len(ids) >= 1
    for dose in (getattr(probe, probe.dose), 2 * getattr(probe, probe.dose)):
        runs = []
        for _ in range(2):
            with probe.with_dose(dose).applied_to(pipe, GOAL):
                runs.append(sample(pipe, backbone.encode_ids(ids[:1]), [0], SAMPLING, output="latents"))
        assert torch.equal(*runs)
    assert torch.equal(plain, sample(pipe, backbone.encode([GOAL.prompt]), [0], SAMPLING, output="latents"))
    assert all(torch.equal(weights[key], p) for key, p in backbone.parameters(lambda _: True).items())
