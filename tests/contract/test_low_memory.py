"""Transformers whose weights stay on the disk, beside the same models loaded: equal to the last bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.backbones.streaming import blocks_of
from erasure.closed_form.pair_problems import pair_problems
from erasure.closed_form.readers import Places, PromptPair
from erasure.concept import Concept
from erasure.edits import EditMetadata, WeightEdit
from erasure.io.tensor_files import StoredTensor
from erasure.loading import load_model, load_stored
from tests import tiny, tiny_families

NAMES = sorted([*tiny.JOINT, *tiny_families.BUILDERS])
# Saved, they are diffusers' own pipelines, which read the layers of an encoder of full depth.
CLASSES = {
    "flux2": tiny_families.TinyFlux2,
    "flux2-klein": tiny_families.TinyFlux2Klein,
    "hunyuan-video": tiny_families.TinyHunyuanVideo,
}


def loaded(load: Any, folder: Path, family: str) -> Any:
    pipe = load(str(folder))
    pipe.__class__ = CLASSES.get(family, type(pipe))
    pipe.default_sample_size = 8  # which no file holds
    return backbone_of(pipe)


def fitted(backbone: Any) -> WeightEdit:
    """Return a closed form of one prompt in every stream of the text."""
    pair = PromptPair.of("a photo of a {}", "cat", "dog", "a photo of a dog")
    problems = pair_problems(backbone, {pair: 1.0}, {}, Places(words="all", trailing=0.5, trailing_states=2), reg=1e-3)
    metadata = EditMetadata.of("uce", {}, backbone, [Concept(target="cat")], 0)
    return WeightEdit.from_problems(problems, lambda space: list(backbone.sites(reads=space)), metadata)


@pytest.mark.parametrize("family", NAMES)
def test_a_fit_on_the_disk_is_that_of_the_loaded_model(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tiny_families.built(family) if family in tiny_families.BUILDERS else tiny.JOINT[family]()
    pipe.save_pretrained(tmp_path, max_shard_size="200KB")
    whole, stored = (loaded(load, tmp_path, family) for load in (load_model, load_stored))
    assert (whole.family, whole.fingerprint()) == (family, backbone_of(pipe).fingerprint())
    assert hasattr(pipe, "load_lora_weights") == ("lora" in whole.abilities)
    assert "low memory" in whole.abilities
    assert (stored.family, stored.fingerprint()) == (family, whole.fingerprint())
    assert stored.sites() == whole.sites()
    read = observed(monkeypatch)
    states, wanted = stored.read(["a cat", ""]).streams, whole.read(["a cat", ""]).streams
    assert all(torch.equal(states[space].states, stream.states) for space, stream in wanted.items())
    edit, expected = fitted(stored), fitted(whole)
    assert edit.changes.keys() == expected.changes.keys()
    denoiser = [name for name in read if name.startswith(str(tmp_path / "transformer"))]
    assert len(denoiser) <= 6  # of the layers between the states and their readers
    unread = {id(p) for part, last in stored.last_layers().items() for p in last_parameters(stored, part, last)}
    named = {name for name, p in stored._named_parameters() if id(p) in unread}
    assert not {name for name in named if file_of(stored, name) in read}
    factors, others = edit.as_lora(stored.pipe).state_dict, expected.as_lora(whole.pipe).state_dict
    assert factors.keys() == others.keys()
    assert all(torch.equal(factor, others[name]) for name, factor in factors.items())


def observed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return a set to which each tensor is added that is read otherwise than for a fingerprint, as path and name."""
    read: set[str] = set()
    sparsely: list[bool] = []
    every, whole, rows = StoredTensor.every, StoredTensor.read, StoredTensor.rows

    def some(tensor: StoredTensor, step: int) -> Tensor:
        sparsely.append(True)
        try:
            return every(tensor, step)
        finally:
            sparsely.pop()

    def noted(tensor: StoredTensor, *indices: Any) -> Tensor:
        if not sparsely:
            read.add(f"{tensor.path.parent}/{tensor.name}")
        return rows(tensor, *indices) if indices else whole(tensor)

    for name, method in {"every": some, "read": noted, "rows": noted}.items():
        monkeypatch.setattr(StoredTensor, name, method)
    return read


def last_parameters(backbone: Any, part: str, last: int) -> list[Tensor]:
    """Return the parameters of an encoder's layers whose output nothing reads."""
    unread = blocks_of(backbone.component(part))[last:]
    assert len(unread) > 0
    return list(unread.parameters())


def file_of(backbone: Any, name: str) -> str:
    tensor = backbone._stored(name, backbone.component(name.partition(".")[0]).get_parameter(name.partition(".")[2]))
    return f"{tensor.path.parent}/{tensor.name}"
