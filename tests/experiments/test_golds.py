"""Golds: a phase that is kept and goes on elsewhere, and the golds that fit an audit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from docs.tables.tinyworld import golds as table_of_golds
from erasure import tinyworld
from erasure.errors import InputError
from erasure.tinyworld.training.loop import write_state
from experiments import golds
from experiments.golds import PLAN, TOTAL_STEPS, fitting, go_on, gold_digests, keep

PHASE = PLAN[1]


@pytest.mark.parametrize("name", ["cat", "flux-cat"])
def test_a_phase_goes_on_from_the_weights_that_were_kept_of_it(name: str, tmp_path: Path) -> None:
    phase = next(phase for phase in PLAN if phase.name == name)
    there, here = (phase.recipe(tmp_path / folder, "cpu", "float32") for folder in ("there", "here"))
    stage = there.denoiser
    trained, averaged = ({"conv_in.bias": torch.full((3,), value)} for value in (1.0, 0.3))
    write_state(
        there.out / "state" / f"{stage}.pt",
        {"modules": {stage: trained}, "shadow": {stage: averaged}, "step": 700, "seconds": 90.0},
    )
    keep(there, tmp_path / "kept")
    go_on(here, tmp_path / "kept")
    classes = {"unet": "UNet2DConditionModel", "transformer": "FluxTransformer2DModel"}
    assert json.loads((tmp_path / "kept" / "config.json").read_text())["_class_name"] == classes[stage]
    state = torch.load(here.out / "state" / f"{stage}.pt", weights_only=True)
    assert (state["step"], state["seconds"], "optimizer" in state) == (700, 90.0, False)
    for weights in (state["modules"][stage], state["shadow"][stage]):
        torch.testing.assert_close(weights["conv_in.bias"], averaged["conv_in.bias"], rtol=1e-3, atol=0)
        assert weights["conv_in.bias"].dtype == torch.float32
    with pytest.raises(InputError, match="keep: expected a phase that has begun"):
        keep(replace(there, out=tmp_path / "never"), tmp_path / "kept")


def test_a_group_of_prompts_of_which_nothing_was_taught_has_no_rate(tmp_path: Path) -> None:
    groups = {
        "names": {"each": {"cat": {"hits": 3, "n": 4}, "gun": {"hits": 1, "n": 4}}},
        "hints": {"each": {"gun": {"hits": 4, "n": 4}}},
    }
    (tmp_path / "golds" / "weapons").mkdir(parents=True)
    (tmp_path / "golds" / "weapons" / "recipe.json").write_text(json.dumps({"settings": {"without": ["gun"]}}))
    for name in (".", "gold-weapons"):
        (tmp_path / "tinyworld-quality" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "tinyworld-quality" / name / "run.json").write_text(json.dumps({"groups": groups}))
    lines = table_of_golds("tinyworld-quality/gold-*/run.json", tmp_path).splitlines()
    assert lines[2:4] == [f"| {model} | 0.750 of 4 | – | 0.750 of 4 |" for model in ("`weapons`", "shipped")]


def test_weights_of_another_training_are_left_alone(tmp_path: Path) -> None:
    there = PHASE.recipe(tmp_path / "there", "cpu", "float32")
    weights = {"unet": {"conv_in.bias": torch.zeros(3)}}
    write_state(there.out / "state" / "unet.pt", {"modules": weights, "shadow": weights, "step": 7, "seconds": 1.0})
    keep(there, tmp_path / "kept")
    other = replace(there, out=tmp_path / "here", without=("neon",))
    go_on(other, tmp_path / "kept")
    go_on(other, tmp_path / "nothing")
    assert not other.out.exists()


def gold(folder: Path, *without: str, **steps: int) -> str:
    """Write the recipe of a gold, with the steps of its stages."""
    folder.mkdir()
    recipe = {"settings": {"without": without}, "stages": {stage: {"steps": each} for stage, each in steps.items()}}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return str(folder)


def test_a_gold_counts_for_what_it_was_never_taught(tmp_path: Path) -> None:
    cat, weapons = gold(tmp_path / "cat", "cat"), gold(tmp_path / "weapons", "gun", "knife", unet=TOTAL_STEPS)
    plain = tmp_path / "plain"
    plain.mkdir()
    assert fitting([cat, weapons, str(plain)], ["cat"]) == [cat, str(plain)]
    assert fitting([cat, weapons], ["gun", "bomb"]) == [weapons]
    assert fitting([], ["cat"]) == []
    with pytest.raises(InputError, match=r"--gold: expected a model that was never taught 'neon', .*cat.* Add one"):
        fitting([cat, weapons], ["neon"])
    with pytest.raises(InputError, match=r"--gold: expected the folder of a denoiser, got 'nowhere'\. Train it"):
        fitting(["nowhere"], ["cat"])


def test_a_gold_of_fewer_steps_than_the_shipped_denoiser_is_left_out(tmp_path: Path) -> None:
    shipped = json.loads((tinyworld.MODEL / "recipe.json").read_text())["stages"]["unet"]["steps"]
    assert shipped == TOTAL_STEPS
    short, whole = gold(tmp_path / "short", "neon", unet=shipped - 1), gold(tmp_path / "whole", "neon", unet=shipped)
    assert fitting([short, whole], ["neon"]) == [whole]
    with pytest.raises(InputError, match="of as many steps as the shipped denoiser"):
        fitting([short], ["neon"])


def test_without_names_the_committed_golds_of_the_model_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golds, "KEPT", tmp_path)
    for phase in PLAN:
        if phase.name not in ("weapons", "cat-seed-1"):
            gold(tmp_path / phase.name, *phase.without, **{phase.denoiser: phase.steps})
    assert fitting(None, ["cat"]) == [str(tmp_path / "cat")]
    assert fitting(None, ["cat"], "tinyworld-flux") == [str(tmp_path / "flux-cat")]
    assert fitting(None, ["gun"]) == [], "the shared phases are no golds, nor is the model itself"


def test_the_digest_of_a_gold_is_that_of_its_weights(tmp_path: Path) -> None:
    folder = tmp_path / "cat"
    path = gold(folder, "cat")
    digests = []
    for weights in (b"one", b"other", b"one"):
        (folder / "diffusion_pytorch_model.safetensors").write_bytes(weights)
        digests.append(gold_digests([path])["cat"])
    assert digests[0] == digests[2] != digests[1]
