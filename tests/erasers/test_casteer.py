"""CASteer: directions from pairs of prompts, their fold into the weights, and the tensors that an export carries."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from erasure import CASteer, Concept, Edit, Ledger, SamplingEdit, WeightEdit
from erasure.backbones import backbone_of
from erasure.backbones.layer_readings import layer_outputs
from erasure.errors import InputError
from erasure.guidance.casteer import CASteerGuidance
from erasure.pipelines.export.formats import Export, write_export
from erasure.sampling import SamplingSettings, sample
from erasure.sampling.latents import noise
from erasure.training.context import FitContext
from erasure.training.trajectories import TrajectoryPoints
from erasure.training.word_attention.output_directions import prompt_pairs
from tests import tiny

CAT = Concept(target="cat", aliases=("kitten",))
DOG = Concept(target="dog", anchor="cat")
QUICK: dict[str, Any] = {"pairs": 2, "steps": 2, "places": 2}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.sd1()


def fitted(pipe: Any, *concepts: Concept, **settings: Any) -> CASteerGuidance:
    edit = CASteer(**{**QUICK, **settings}).fit(concepts, FitContext(backbone=backbone_of(pipe)))
    assert isinstance(edit, SamplingEdit)
    (guidance,) = edit.guidances
    assert isinstance(guidance, CASteerGuidance)
    return guidance


def latents(pipe: Any) -> torch.Tensor:
    return sample(pipe, ["a cat", "a bird"], [0, 1], SamplingSettings(steps=2, guidance_scale=4.0), output="latents")


def test_directions_are_units_and_their_sign_is_that_of_the_pair(pipe: Any) -> None:
    one = fitted(pipe, Concept(target="cat", anchor="dog"))
    other = fitted(pipe, DOG)
    assert len(one.directions) == 4
    for layer, rows in one.directions.items():
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(1, 2))
        torch.testing.assert_close(other.directions[layer], -rows, atol=1e-4, rtol=1e-4)
    assert one.direction_timesteps == tuple(map(float, backbone_of(pipe).schedule.timesteps(2)))


def test_one_direction_for_all_steps_is_their_mean(pipe: Any) -> None:
    averaged = fitted(pipe, CAT, averaged=True)
    assert all(rows.shape[1] == 1 for rows in averaged.directions.values())
    assert len(averaged.direction_timesteps) == 1


def test_pixels_of_the_name_alone_can_be_averaged(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def left_half(backbone: Any, points: TrajectoryPoints, names: Any, mask: Any) -> torch.Tensor:
        masks = torch.zeros(len(points), 8, 8, dtype=torch.bool)
        masks[:, :, : 4 if mask == "attention" else 8] = True
        return masks

    monkeypatch.setattr(
        "erasure.training.word_attention.output_directions.concept_masks", left_half
    )  # random weights have flat maps
    one = Concept(target="cat")
    everywhere, masked = (fitted(pipe, one, pairs=1, steps=1, places=1, mask=mask) for mask in ("none", "attention"))
    backbone = backbone_of(pipe)
    start = noise([torch.Generator().manual_seed(0)], backbone.latent_shape())
    timestep = backbone.schedule.timesteps(1)[0]
    for layer, rows in masked.directions.items():
        outputs = [
            layer_outputs(backbone, [layer], start, timestep, backbone.encode([prompt]))[layer].detach()[0]
            for prompt in ("a tree with cat", "a tree")
        ]
        side = round(len(outputs[0]) ** 0.5)
        left = (outputs[0] - outputs[1]).view(side, side, -1)[:, : side // 2].flatten(0, 1).mean(0)
        torch.testing.assert_close(rows[0, 0], left / left.norm(), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(rows, everywhere.directions[layer], atol=1e-3)


def test_pairs_differ_in_the_concept_alone() -> None:
    published = prompt_pairs(CAT, "published", 60)
    assert published[0] == ("a tree with cat", "a tree", "cat")
    assert {pair.word for pair in published} == {"cat", "kitten"}
    assert prompt_pairs(DOG, "published", 1)[0][:2] == ("a tree with dog", "a tree with cat")
    style = Concept(target="Van Gogh", kind="style")
    assert prompt_pairs(style, "published", 1)[0].named == "a tree, Van Gogh style"
    assert prompt_pairs(CAT, "templates", 3)[2] == ("a photo of a cat", "a photo", "cat")
    assert all("apple" not in pair.without for pair in prompt_pairs(Concept(target="apple"), "published", 60))


@pytest.mark.parametrize("several", ["orthonormal", "each", "mean"])
def test_the_fold_is_the_unclipped_guidance(several: Any, pipe: Any) -> None:
    context = FitContext(backbone=backbone_of(pipe))
    edit = CASteer(form="weights", several=several, **QUICK).fit([CAT, DOG], context)
    assert isinstance(edit, WeightEdit)
    assert {backbone_of(pipe).sites()[name].role for name in edit.changes} == {"cross.out"}
    with edit.applied_to(pipe):
        folded = latents(pipe)
    same = {"averaged": True, "clip": False, "rescale": False, "branches": "both", "several": several}
    with fitted(pipe, CAT, DOG, **same).applied_to(pipe):
        torch.testing.assert_close(latents(pipe), folded, atol=1e-4, rtol=1e-4)
    assert CASteer(form="weights").place == "factor of outputs"


@pytest.mark.parametrize(
    "settings", [{"clip": True}, {"rescale": True}, {"branches": "conditional"}, {"averaged": False}]
)
def test_no_other_form_is_folded(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"casteer.form: expected one direction for all steps"):
        CASteer(form="weights", **settings)


def test_a_concept_that_changes_nothing_is_named(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erasure.training.word_attention.output_directions._BESIDE", {"object": "{}"})
    with pytest.raises(InputError, match="expected prompts whose outputs tell of the concept, got the same with 'cat'"):
        fitted(pipe, CAT)


def test_an_export_without_its_tensors_samples_nothing(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    pipe.save_pretrained(tmp_path / "model")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "model")
    ledger = Ledger.create(tmp_path / "ledger", backbone_of(pipe).fingerprint(), str(tmp_path / "model"))
    ledger.remove(pipe, CASteer(**QUICK), [CAT])
    (tmp_path / "out").mkdir()
    write_export(ledger, pipe, Export(format="pipeline"), tmp_path / "out")
    exported = DiffusionPipeline.from_pretrained(tmp_path / "out", trust_remote_code=True)
    file = tmp_path / "out" / "guidance.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="expected the sha256"):
        exported("a cat", num_inference_steps=1)
    file.unlink()
    with pytest.raises(ValueError, match=r"pipeline: expected guidance.safetensors in .*, got FileNotFoundError"):
        exported("a cat", num_inference_steps=1)


def test_an_edit_file_without_a_tensor_is_damaged(pipe: Any, tmp_path: Path) -> None:
    edit = CASteer(**QUICK).fit([CAT], FitContext(backbone=backbone_of(pipe)))
    file = edit.as_file()
    tensors = dict(list(file.tensors.items())[1:])
    type(file)(format=file.format, description=file.description, tensors=tensors).write(tmp_path / "cut.safetensors")
    with pytest.raises(InputError, match=r"expected a tensor 'guidance.0.directions.unet.*' of real numbers, got none"):
        Edit.load(tmp_path / "cut.safetensors")
