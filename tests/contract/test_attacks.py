"""Contract of the attacks: every registered one is held to it."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from erasure.backbones import Backbone, backbone_of
from erasure.concept import Concept
from erasure.errors import UnknownNameError
from erasure.eval.attacks import Attack, Goal, attack_class, attack_names
from erasure.progress import Progress
from tests import pieces
from tests.tiny import FAMILIES

CAT = Concept(target="cat", aliases=("kitten",))


@pytest.fixture(params=sorted(FAMILIES))
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return backbone_of(FAMILIES[request.param]())


def quick(name: str) -> Attack:
    return attack_class(name)(**attack_class(name).quick)


def goal(backbone: Backbone, seed: int = 0) -> Goal:
    latents = torch.randn(1, *backbone.latent_shape(), generator=torch.Generator().manual_seed(3))
    return Goal(concept=CAT, prompt="a photo of a cat", seed=seed, latents=latents)


@pytest.mark.parametrize("name", attack_names())
def test_it_is_a_piece_and_its_module_names_the_source(name: str) -> None:
    kind = attack_class(name)
    pieces.check(kind)
    module = inspect.getmodule(kind)
    assert module is not None
    assert re.search(r"arXiv:\d{4}\.\d{4,5}", module.__doc__ or "") or kind.exactness == "ours"
    assert Path(inspect.getfile(kind)).stem == name.replace("-", "_")
    assert kind.access in ("prompt", "gradient")


def test_an_unknown_attack_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'mma'"):
        attack_class("mna")


@pytest.mark.parametrize("name", attack_names())
def test_it_finds_whole_rows_the_same_for_a_seed_and_leaves_everything_as_it_was(name: str, backbone: Backbone) -> None:
    weights = {key: p.detach().clone() for key, p in backbone.parameters(lambda _: True).items()}
    state = torch.get_rng_state()
    reports: list[Progress] = []
    attack = quick(name)
    rows = attack.search(backbone, goal(backbone), on_progress=reports.append)
    tokenizer = backbone.pipe.tokenizer
    assert len(rows) >= 1
    assert [report.done for report in reports] == list(range(1, reports[-1].total + 1))
    assert rows.shape[1] == tokenizer.model_max_length
    for row in rows.tolist():
        end = row.index(tokenizer.eos_token_id)
        assert row[0] == tokenizer.bos_token_id
        assert set(row[end + 1 :]) <= {tokenizer.pad_token_id}
        assert tokenizer.bos_token_id not in row[1:]
    assert torch.equal(rows, attack.search(backbone, goal(backbone)))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(weights[key], p) for key, p in backbone.parameters(lambda _: True).items())
    assert all(p.grad is None for p in backbone.parameters(lambda _: True).values())
