"""The memory of a training, estimated before it starts, beside what it takes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from erasure import ESD, erase
from erasure.backbones import backbone_of
from erasure.erasers.esd import trained_by
from erasure.errors import InputError
from erasure.loading.room import check_weights_fit
from erasure.training import memory
from erasure.training.memory import training_memory
from erasure.training.shape import Shape
from erasure.training.student import Student, at_rest
from tests import tiny, tiny_families
from tests.test_cli import call, fails

VIDEOS = {"wan", "ltx", "cogvideox", "hunyuan-video", "mochi"}
FAMILIES = {
    **{name: tiny.EVERY[name] for name in ("sd1", "flux")},
    **{name: builder for name, builder in tiny_families.BUILDERS.items() if name not in VIDEOS},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_counted_without_a_pass(family: str) -> None:
    backbone = backbone_of(FAMILIES[family]())
    trained = frozenset(name for name in backbone.sites() if ".att" in name)
    need = training_memory(backbone, trained.__contains__, 2, batch_size=2)
    weights = {p.untyped_storage()._cdata for p in backbone.denoiser.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    student = Student(backbone, trained.__contains__, 2, torch.Generator().manual_seed(0))
    latents, states = torch.zeros(2, *backbone.latent_shape()), backbone.encode([""]).expand(2)
    with at_rest(backbone), saved_tensors_hooks(keep, lambda tensor: tensor):
        _output = student(backbone.predict, latents, torch.tensor(500), states)
    real = sum(each.untyped_storage().nbytes() for place, each in kept.items() if place not in weights)
    assert need.activations == pytest.approx(real, rel=0.05)
    assert (need.checkpointed is not None) == backbone.checkpoints
    assert (need.checkpointed or 0) <= need.activations
    assert need.optimiser == 16 * sum(leaf.numel() for leaf in student.trained)
    modules = [part for part in backbone.pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert need.weights == sum(p.numel() * 4 for module in modules for p in module.parameters())


@pytest.mark.parametrize("family", ["sd1", "flux"])
def test_checkpointing_changes_no_bit(family: str) -> None:
    pipe, edits = FAMILIES[family](), []
    for on in (False, True):
        edit = erase(pipe, "cat", eraser=ESD(steps=2, sample_steps=2, lr=1e-3, shape=Shape(checkpointing=on)))
        edits.append({name: change.of(torch.zeros(())) for name, change in edit.changes.items()})
    assert edits[0].keys() == edits[1].keys()
    assert all(torch.equal(delta, edits[1][name]) for name, delta in edits[0].items())
    assert not backbone_of(pipe).denoiser.is_gradient_checkpointing


def test_a_model_that_computes_otherwise_again_is_refused() -> None:
    eraser = ESD(steps=1, sample_steps=2, shape=Shape(checkpointing=True))
    with pytest.raises(InputError, match=r"^shape.checkpointing: expected a model .* got chroma\. Leave it out"):
        erase(tiny_families.built("chroma"), "cat", eraser=eraser)


def test_what_does_not_fit_is_refused_with_the_cheaper_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, eraser = tiny.flux(), ESD(steps=1, sample_steps=2, rank=2)
    monkeypatch.setattr(memory, "_ALWAYS", 0)
    backbone = backbone_of(pipe)
    need = training_memory(backbone, trained_by("x", backbone).__contains__, 2, 1)
    enough = need.optimiser + (need.checkpointed or 0)
    for free, choice in {enough: "Set eraser.shape.checkpointing=true", 10: "uce"}.items():
        monkeypatch.setattr(memory, "free_memory", lambda _, free=free: free)
        with pytest.raises(InputError, match=rf"^training: expected .* free on cpu beside the weights .*{choice}"):
            erase(pipe, "cat", eraser=eraser)


def test_the_command_says_what_a_training_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.sd1().save_pretrained("model")
    esd = ("--method", "esd", "--set", "eraser.steps=1", "--set", "eraser.sample_steps=2", "--no-measure")
    warned: list[str] = []
    monkeypatch.setattr("diffusers.models.modeling_utils.logger.warning", warned.append)
    for ledger in ("one", "again"):
        result: Any = call("remove", "cat", "--model", "model", "--ledger", ledger, *esd)
        assert "memory: weights 1 MiB, activations " in result.stderr
    assert not warned
    monkeypatch.setattr("erasure.loading.room.free_memory", lambda _: 2**20)
    message = fails("remove", "cat", "--model", "model", "--ledger", "two")
    assert "expected 1 MiB free on cpu for the weights of 'model' in float32, got 1 MiB. Remove by a closed" in message
    assert not Path("two").exists()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    for size in (2**62, 10**13):
        drawn = (*esd[:-1], "--set", f"eraser.batch_size={size}", "--no-measure")
        result = call("remove", "cat", "--model", "model", "--ledger", "two", *drawn)
        assert result.exit_code == 2
        assert "erasure: memory: expected enough for this work, got" in result.stderr.splitlines()[-1]
        assert not Path("two").exists()
    check_weights_fit("nowhere", "cpu")
    assert json.loads(Path("one/ledger.json").read_text())
