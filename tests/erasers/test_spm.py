"""LECO and SPM: the loss, texts that are held, the learning rate, and the gate of a prompt."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from erasure import LECO, SPM, Concept, Ledger, SamplingEdit, WeightEdit
from erasure.backbones import backbone_of
from erasure.edits import LowRankChange
from erasure.errors import InputError
from erasure.guidance.spm import SPMGuidance, gate
from erasure.pipelines.export.formats import Export, write_export
from erasure.sampling import SamplingSettings, sample
from erasure.training.context import FitContext, TrainingTask
from erasure.training.finetune import Optimisation
from erasure.training.objectives.anchored import Anchored, gaussian_states
from erasure.training.objectives.guided import Guided
from erasure.training.student import Student
from tests import tiny

CAT, DOG = Concept(target="cat", aliases=("kitten",)), Concept(target="dog")
QUICK: dict[str, Any] = {"steps": 2, "sample_steps": 2, "lr": 0.05, "warm_up": 0, "restarts": 0, "anchoring": 1.0}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.sd1()


def first_loss(pipe: Any, objective: Any, concept: Concept) -> tuple[float, list[torch.Tensor]]:
    """Return the loss before the first update, and its gradient by the patches."""
    backbone = backbone_of(pipe)
    which = backbone.sites(("cross.k", "cross.v")).__contains__
    task = TrainingTask(context=FitContext(backbone=backbone), requests=(concept,), trained=which)
    student = Student(backbone, which, 1, torch.Generator().manual_seed(0))
    loss = objective.loss(task)(student, 0, torch.Generator().manual_seed(1))
    student(loss.backward)
    return float(loss), [leaf.grad for leaf in student.trained if leaf.grad is not None]


@pytest.mark.parametrize("away_from", ["unconditional", "anchor"])
def test_without_an_anchor_it_is_esds_loss_and_gradient(away_from: Any, pipe: Any) -> None:
    shared = {"negative_guidance": 1.5, "sample_steps": 3}
    plain, esd = (
        first_loss(pipe, objective, DOG)
        for objective in (Anchored(**shared, away_from=away_from, anchoring=0.0), Guided(**shared))
    )
    assert plain[0] == pytest.approx(esd[0], rel=1e-4)
    for one, other in zip(plain[1], esd[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)


def test_before_any_step_the_texts_that_are_held_cost_nothing(pipe: Any) -> None:
    for anchors in ("captions", "gaussian"):
        with_texts = first_loss(pipe, Anchored(sample_steps=3, anchoring=1000.0, anchors=anchors), DOG)
        assert with_texts[0] == pytest.approx(
            first_loss(pipe, Anchored(sample_steps=3, anchoring=0.0), DOG)[0], rel=1e-4
        )


def test_a_large_power_holds_the_least_like_text_alone(pipe: Any) -> None:
    backbone = backbone_of(pipe)
    concept = Concept(target="cat", preserve=("dog", "a long sentence about the sea"))
    task = TrainingTask(context=FitContext(backbone=backbone), requests=(concept,), trained=lambda _: False)
    drawn = Anchored(anchor_power=1e30).held(task, backbone.encode(["cat"]))(5, torch.Generator().manual_seed(0))
    assert len(set(drawn.prompts)) == 1


def test_random_texts_are_of_the_targets_size(pipe: Any) -> None:
    backbone = backbone_of(pipe)
    targets = backbone.encode(["cat"])
    drawn = gaussian_states(targets, 5, torch.Generator().manual_seed(0))
    sizes = drawn.states.flatten(1).norm(dim=1) / targets.states.norm()
    assert ((sizes > 0.79) & (sizes < 1.21)).all()
    assert len(drawn) == 5


def test_the_learning_rate_rises_and_falls_three_times() -> None:
    plan = Optimisation(steps=10, lr=1.0, warm_up=4, restarts=3)
    assert [plan.share_of_lr(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [plan.share_of_lr(step) for step in (4, 6, 8)] == pytest.approx([1.0] * 3)
    assert plan.share_of_lr(5) == pytest.approx(0.5)
    assert Optimisation(steps=10, lr=1.0).share_of_lr(9) == 1.0


def test_patches_of_rank_one_add_up_over_concepts(pipe: Any) -> None:
    context = FitContext(backbone=backbone_of(pipe))
    both, one, other = (SPM(**QUICK).fit(each, context) for each in ([CAT, DOG], [CAT], [DOG]))
    assert isinstance(both, WeightEdit)
    roles = {backbone_of(pipe).sites()[name].role.partition(".")[0] for name in both.changes}
    assert roles == {"cross", "self", "ff", "projection"}
    for name, change in both.changes.items():
        assert isinstance(change, LowRankChange)
        assert change.up.shape[1] == 2
        weight = backbone_of(pipe).parameters({name}.__contains__)[name].detach()
        parts = [edit.changes[name].of(weight) for edit in (one, other) if isinstance(edit, WeightEdit)]
        torch.testing.assert_close(change.of(weight), sum(parts[1:], parts[0]))
    assert LECO(**{"steps": 1, "sample_steps": 2}).fit([CAT], context).changes.keys() == both.changes.keys()


def test_a_gate_is_one_for_the_concept_and_less_for_others(pipe: Any) -> None:
    backbone = backbone_of(pipe)
    names = backbone.encode(list(CAT.names))
    opened = {text: gate(backbone.encode([text]), names) for text in ("cat", "kitten", "a cat", "zz")}
    assert opened["cat"] == opened["kitten"] == opened["a cat"] == pytest.approx(1.0)
    assert 0 <= opened["zz"] < 1
    alone = backbone.encode(["cat"])
    cosine = torch.cosine_similarity(backbone.encode(["zz"]).states.flatten(), alone.states.flatten(), dim=0)
    assert gate(backbone.encode(["zz"]), alone) == pytest.approx(max(float(cosine), 0.0), abs=1e-5)


def test_open_gates_are_the_patched_weights_without_cross_terms(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    context = FitContext(backbone=backbone_of(pipe))
    gated, plain = (SPM(**QUICK, gate=each).fit([CAT, DOG], context) for each in ("transport", "none"))
    assert isinstance(gated, SamplingEdit)
    settings = SamplingSettings(steps=2, guidance_scale=4.0)

    def latents(edit: Any) -> torch.Tensor:
        with edit.applied_to(pipe):
            return sample(pipe, ["a cat", "a bird"], [0, 1], settings, output="latents")

    before = sample(pipe, ["a cat", "a bird"], [0, 1], settings, output="latents")
    monkeypatch.setattr("erasure.guidance.spm.gate", lambda prompt, names: 1.0)
    torch.testing.assert_close(latents(gated), latents(plain), rtol=1e-3, atol=1e-4)
    monkeypatch.setattr("erasure.guidance.spm.gate", lambda prompt, names: float("kitten" in names.prompts))
    (guidance,) = gated.guidances
    assert isinstance(guidance, SPMGuidance)
    torch.testing.assert_close(latents(gated), latents(SPM(**QUICK).fit([CAT], context)), rtol=1e-3, atol=1e-4)
    monkeypatch.setattr("erasure.guidance.spm.gate", lambda prompt, names: 0.0)
    assert torch.equal(latents(gated), before)


def test_a_ledger_joins_gated_patches_and_exports_them(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    pipe.save_pretrained(tmp_path / "model")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    ledger = Ledger.create(tmp_path / "ledger", backbone_of(pipe).fingerprint(), str(tmp_path / "model"))
    for concept in (DOG, CAT):
        ledger.remove(pipe, SPM(**QUICK, gate="transport"), [concept])
    edit = ledger.edit()
    assert isinstance(edit, SamplingEdit)
    (guidance,) = edit.guidances
    assert isinstance(guidance, SPMGuidance)
    assert guidance.names == (("cat", "kitten"), ("dog",))
    (tmp_path / "out").mkdir()
    write_export(ledger, pipe, Export(format="pipeline"), tmp_path / "out")
    exported = DiffusionPipeline.from_pretrained(tmp_path / "out", trust_remote_code=True)

    def image(each: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return each("a cat", num_inference_steps=2, output_type="latent", generator=generator).images

    with ledger.applied_to(pipe):
        assert torch.equal(image(exported), image(pipe))
    assert not torch.equal(image(exported), image(pipe))


def test_a_model_without_guidance_has_no_gate() -> None:
    with pytest.raises(InputError, match=r"spm.gate: expected 'none' .*, sd3, got 'transport'"):
        SPM(**QUICK, gate="transport").fit([CAT], FitContext(backbone=backbone_of(tiny.sd3())))


def test_patches_of_grouped_convolutions_are_the_change_of_their_weights() -> None:
    layer = torch.nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
    ups, downs = torch.randn(2, 8, 1), torch.randn(2, 1, 2 * 9)
    read, scales = torch.randn(3, 8, 5, 5), torch.rand(3, 2)
    outputs = SPMGuidance(concepts=("cat",), ups={"w": ups}, downs={"w": downs}).patched(layer, "w", read, scales)
    for row in range(3):
        weight = (scales[row, :, None, None] * (ups @ downs)).sum(0).view(8, 2, 3, 3)
        expected = torch.nn.functional.conv2d(read[row : row + 1], weight, None, padding=1, groups=4)
        torch.testing.assert_close(outputs[row : row + 1], expected, rtol=1e-4, atol=1e-5)
