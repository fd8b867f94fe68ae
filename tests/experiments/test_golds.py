"""Golds: a phase that is kept and goes on elsewhere."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from erasure.errors import InputError
from erasure.tinyworld.training.loop import write_state
from experiments.golds import PLAN, go_on, keep

PHASE = PLAN[1]


def test_a_phase_goes_on_from_the_weights_that_were_kept_of_it(tmp_path: Path) -> None:
    there, here = (PHASE.recipe(tmp_path / name, "cpu", "float32") for name in ("there", "here"))
    trained, averaged = ({"conv_in.bias": torch.full((3,), value)} for value in (1.0, 0.3))
    write_state(
        there.out / "state" / "unet.pt",
        {"modules": {"unet": trained}, "shadow": {"unet": averaged}, "step": 700, "seconds": 90.0},
    )
    keep(there, tmp_path / "kept")
    go_on(here, tmp_path / "kept")
    state = torch.load(here.out / "state" / "unet.pt", weights_only=True)
    assert (state["step"], state["seconds"], "optimizer" in state) == (700, 90.0, False)
    for weights in (state["modules"]["unet"], state["shadow"]["unet"]):
        torch.testing.assert_close(weights["conv_in.bias"], averaged["conv_in.bias"], rtol=1e-3, atol=0)
        assert weights["conv_in.bias"].dtype == torch.float32
    with pytest.raises(InputError, match="keep: expected a phase that has begun"):
        keep(replace(there, out=tmp_path / "never"), tmp_path / "kept")


def test_weights_of_another_training_are_left_alone(tmp_path: Path) -> None:
    there = PHASE.recipe(tmp_path / "there", "cpu", "float32")
    weights = {"unet": {"conv_in.bias": torch.zeros(3)}}
    write_state(there.out / "state" / "unet.pt", {"modules": weights, "shadow": weights, "step": 7, "seconds": 1.0})
    keep(there, tmp_path / "kept")
    other = replace(there, out=tmp_path / "here", without=("neon",))
    go_on(other, tmp_path / "kept")
    go_on(other, tmp_path / "nothing")
    assert not other.out.exists()
