"""A ledger on every family: removals are recorded, put together in any order, and undone to the last bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.erasers.uce import UCE
from erasure.ledger import Ledger
from erasure.training.context import FitContext
from tests import tiny


def readers(backbone: Any) -> dict[str, torch.nn.Parameter]:
    """Return the weights of all layers that read a text stream directly."""
    return backbone.parameters({name for name, site in backbone.sites().items() if site.reads}.__contains__)


@pytest.mark.parametrize("family", tiny.EVERY)
def test_removals_are_joined_and_undone_bit_for_bit(family: str, tmp_path: Path) -> None:
    pipe = tiny.EVERY[family]()
    backbone = backbone_of(pipe)
    before = {name: weight.detach().clone() for name, weight in readers(backbone).items()}
    concepts = [Concept(target="cat", anchor="dog"), Concept(target="boat")]
    cat, boat = (UCE(strength=1.0).fit([concept], FitContext(backbone=backbone)) for concept in concepts)

    def weights_of(ledger: Ledger) -> dict[str, torch.Tensor]:
        with ledger.applied_to(pipe):
            return {name: weight.detach().clone() for name, weight in readers(backbone).items()}

    one, other, alone = (Ledger.open_or_create(tmp_path / name, pipe, "tiny") for name in ("one", "other", "alone"))
    for ledger, edits in ((one, (cat, boat)), (other, (boat, cat)), (alone, (boat,))):
        for edit in edits:
            ledger.add(edit)
    joined = weights_of(one)
    assert one.verify(pipe) == []
    for name, weight in weights_of(other).items():
        assert torch.equal(joined[name], weight)
        assert not torch.equal(weight, before[name])
    one.undo("001")
    for name, weight in weights_of(alone).items():
        assert torch.equal(weights_of(one)[name], weight)
    for name, weight in readers(backbone).items():
        assert torch.equal(weight, before[name])
