"""The optimisation loop: it learns, repeats itself, and leaves the model alone."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from erasure.backbones import Backbone, backbone_of
from erasure.edits import DenseChange, EditMetadata, LowRankChange, WeightEdit
from erasure.errors import InputError, SolveError
from erasure.progress import Progress
from erasure.training.finetune import Optimisation, WeightedLoss, finetune
from erasure.training.student import Student
from tests.tiny import FAMILIES, sd1


def keys(name: str) -> bool:
    return name.endswith("attn2.to_k.weight")


def everything(name: str) -> bool:
    return name.startswith("unet.")


def snapshot(backbone: Backbone) -> dict[str, Any]:
    modules = {key: part for key, part in backbone.pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {
        "weights": {f"{key}.{n}": v.clone() for key, part in modules.items() for n, v in part.state_dict().items()},
        "tensors": {f"{key}.{n}": id(p) for key, part in modules.items() for n, p in part.named_parameters()},
        "required": {
            f"{key}.{n}": p.requires_grad for key, part in modules.items() for n, p in part.named_parameters()
        },
        "grads": [n for part in modules.values() for n, p in part.named_parameters() if p.grad is not None],
        "modes": {f"{key}.{n}": m.training for key, part in modules.items() for n, m in part.named_modules()},
        "rng": torch.random.get_rng_state(),
    }


def assert_untouched(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert all(torch.equal(value, after["weights"][name]) for name, value in before["weights"].items())
    assert torch.equal(before["rng"], after["rng"])
    for part in ("tensors", "required", "grads", "modes"):
        assert before[part] == after[part]
    assert after["grads"] == []


def noise_loss(backbone: Backbone) -> Any:
    """Pull the prediction for a prompt to zero, at fresh latents."""
    states = backbone.encode(["a cat"])

    def loss(student: Student, step: int, generator: torch.Generator) -> Tensor:
        latents = torch.randn(1, *backbone.latent_shape(), generator=generator)
        output = student(backbone.predict, latents, torch.tensor(500), states)
        return output.float().square().mean()

    return loss


def quadratic(name: str, goal: Tensor) -> Any:
    def loss(student: Student, step: int, generator: torch.Generator) -> Tensor:
        return F.mse_loss(student.weights()[name].float(), goal, reduction="sum")

    return loss


def applied_weight(backbone: Backbone, changes: dict[str, Any], name: str) -> Tensor:
    metadata = EditMetadata.of("test", {}, backbone, [], 0)
    with WeightEdit(changes=changes, metadata=metadata).applied_to(backbone.pipe):
        return backbone.parameters(lambda other: other == name)[name].detach().clone()


@pytest.fixture
def backbone() -> Backbone:
    return backbone_of(sd1())


@pytest.fixture
def key(backbone: Backbone) -> str:
    return next(iter(backbone.parameters(keys)))


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("which", [keys, everything])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_model_is_left_as_it_was_and_the_changes_lower_the_loss(family: str, which: Any, rank: int | None) -> None:
    backbone = backbone_of(FAMILIES[family]())
    before = snapshot(backbone)
    changes = finetune(backbone, which, noise_loss(backbone), Optimisation(steps=8, lr=1e-2, rank=rank))
    assert_untouched(before, snapshot(backbone))
    names = backbone.parameters(which)
    assert set(changes) == {name for name, p in names.items() if rank is None or p.ndim > 1}
    kinds = {type(change) for change in changes.values()}
    assert kinds == {DenseChange if rank is None else LowRankChange}
    # What was trained is what an edit of the changes gives.
    loss = noise_loss(backbone)
    metadata = EditMetadata.of("test", {}, backbone, [], 0)

    def value() -> float:
        generator = torch.Generator().manual_seed(0)
        return loss(lambda function, *args: function(*args), 0, generator).item()

    with torch.no_grad():
        plain = value()
        with WeightEdit(changes=changes, metadata=metadata).applied_to(backbone.pipe):
            assert value() < plain


def test_the_model_is_left_as_it_was_by_an_exception(backbone: Backbone) -> None:
    backbone.denoiser.train()
    before = snapshot(backbone)

    def loss(student: Student, step: int, generator: torch.Generator) -> Tensor:
        value = noise_loss(backbone)(student, step, generator)
        if step == 2:
            student(lambda: 1 / 0)
        return value

    with pytest.raises(ZeroDivisionError):
        finetune(backbone, keys, loss, Optimisation(steps=5, lr=1e-2))
    assert_untouched(before, snapshot(backbone))


def test_inside_the_student_the_model_has_the_trained_weights_and_outside_its_own(backbone: Backbone, key: str) -> None:
    original = backbone.parameters(keys)[key].detach().clone()
    seen: list[tuple[Tensor, Tensor]] = []

    def current() -> Tensor:
        module, _, leaf = key.rpartition(".")
        return getattr(backbone.component("unet").get_submodule(module.removeprefix("unet.")), leaf).detach().clone()

    def loss(student: Student, step: int, generator: torch.Generator) -> Tensor:
        seen.append((student(current), current()))
        return quadratic(key, torch.zeros_like(original))(student, step, generator)

    finetune(backbone, keys, loss, Optimisation(steps=3, lr=1e-2))
    assert torch.equal(seen[0][0], original)
    assert not torch.equal(seen[-1][0], original)
    assert all(torch.equal(outside, original) for _, outside in seen)


def test_a_zero_gradient_changes_nothing(backbone: Backbone, key: str) -> None:
    weight = backbone.parameters(keys)[key].detach().clone()
    changes = finetune(
        backbone, lambda name: name == key, quadratic(key, weight), Optimisation(steps=5, lr=1e-2, optimizer="adam")
    )
    assert changes[key].delta.abs().max() == 0


def test_no_steps_change_nothing(backbone: Backbone) -> None:
    for rank in (None, 2):
        changes = finetune(backbone, everything, noise_loss(backbone), Optimisation(steps=0, lr=1e-3, rank=rank))
        weights = backbone.parameters(everything)
        assert all(change.of(weights[name]).abs().max() == 0 for name, change in changes.items())


def test_the_first_step_of_adam_is_the_learning_rate_against_the_sign(backbone: Backbone, key: str) -> None:
    weight = backbone.parameters(keys)[key].detach()
    goal = weight + torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    changes = finetune(
        backbone, lambda name: name == key, quadratic(key, goal), Optimisation(steps=1, lr=1e-3, optimizer="adam")
    )
    torch.testing.assert_close(changes[key].delta, 1e-3 * (goal - weight).sign(), rtol=1e-3, atol=1e-7)


def test_patches_reach_a_goal_of_their_rank(backbone: Backbone, key: str) -> None:
    weight = backbone.parameters(keys)[key].detach()
    generator = torch.Generator().manual_seed(1)
    up, down = (torch.randn(shape, generator=generator) for shape in ((len(weight), 1), (1, weight.shape[1])))
    goal = weight + up @ down
    optimisation = Optimisation(steps=600, lr=2e-2, rank=1)
    changes = finetune(backbone, lambda name: name == key, quadratic(key, goal), optimisation)
    assert changes[key].up.shape == (len(weight), 1)
    torch.testing.assert_close(applied_weight(backbone, changes, key), goal, rtol=0, atol=1e-2)


@pytest.mark.parametrize("rank", [None, 2])
def test_the_same_seed_gives_the_same_changes(backbone: Backbone, rank: int | None) -> None:
    def fit(seed: int) -> list[Tensor]:
        changes = finetune(backbone, keys, noise_loss(backbone), Optimisation(steps=3, lr=1e-3, rank=rank), seed=seed)
        return [
            change.of(weight)
            for change, weight in zip(changes.values(), backbone.parameters(keys).values(), strict=True)
        ]

    torch.manual_seed(5)
    first = fit(0)
    torch.manual_seed(6)
    assert all(torch.equal(one, other) for one, other in zip(first, fit(0), strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(first, fit(1), strict=True))


def test_gradient_checkpointing_changes_nothing_but_memory(backbone: Backbone) -> None:
    fits = []
    for checkpointed in (False, True):
        unet: Any = backbone.component("unet")
        unet.enable_gradient_checkpointing() if checkpointed else unet.disable_gradient_checkpointing()
        fits.append(
            finetune(backbone, everything, noise_loss(backbone), Optimisation(steps=2, lr=1e-2, optimizer="adam"))
        )
    for name, change in fits[0].items():
        torch.testing.assert_close(change.delta, fits[1][name].delta, rtol=1e-3, atol=1e-4)


def test_preservation_pulls_against_the_loss(backbone: Backbone, key: str) -> None:
    weight = backbone.parameters(keys)[key].detach().clone()
    goal = weight + 1

    def shift(scale: float) -> float:
        keep = WeightedLoss(loss=quadratic(key, weight), weight=scale)
        changes = finetune(
            backbone, lambda name: name == key, quadratic(key, goal), Optimisation(steps=400, lr=2e-2), terms=[keep]
        )
        return changes[key].delta.mean().item()

    # The minimum of (w - 1)^2 + scale w^2 is at 1 / (1 + scale).
    assert shift(0.0) == pytest.approx(1.0, abs=1e-2)
    assert shift(1.0) == pytest.approx(0.5, abs=1e-2)
    assert shift(3.0) == pytest.approx(0.25, abs=1e-2)


def test_a_preservation_term_leaves_the_draws_of_the_loss_as_they_were(backbone: Backbone, key: str) -> None:
    def draws(preservation: list[WeightedLoss]) -> list[float]:
        seen: list[float] = []

        def loss(student: Student, step: int, generator: torch.Generator) -> Tensor:
            seen.append(torch.rand((), generator=generator).item())
            return student.weights()[key].sum()

        finetune(backbone, keys, loss, Optimisation(steps=3, lr=1e-3), terms=preservation)
        return seen

    def drawing(student: Student, step: int, generator: torch.Generator) -> Tensor:
        return student.weights()[key].sum() * torch.rand((), generator=generator)

    assert draws([]) == draws([WeightedLoss(loss=drawing, weight=1.0)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rank", [None, 2])
def test_half_precision_models_learn_steps_below_their_resolution(dtype: torch.dtype, rank: int | None) -> None:
    backbone = backbone_of(sd1())
    backbone.pipe.to(dtype)
    changes = finetune(
        backbone, keys, noise_loss(backbone), Optimisation(steps=4, lr=1e-6, rank=rank, optimizer="adam")
    )
    weights = backbone.parameters(keys)
    for name, change in changes.items():
        delta = change.of(weights[name])
        assert torch.isfinite(delta).all()
        assert 0 < delta.abs().max() < 1e-4
        assert backbone.parameters(keys)[name].dtype == dtype


def test_steps_are_reported(backbone: Backbone) -> None:
    seen: list[Progress] = []
    finetune(backbone, keys, noise_loss(backbone), Optimisation(steps=3, lr=1e-3), on_progress=seen.append)
    assert [(step.done, step.total) for step in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(step.loss is not None and step.loss > 0 for step in seen)


def test_wrong_input_is_named(backbone: Backbone, key: str) -> None:
    loss = noise_loss(backbone)
    with pytest.raises(InputError, match="expected parameters to train, got none"):
        finetune(backbone, lambda name: False, loss, Optimisation(steps=1, lr=1e-3))
    with pytest.raises(InputError, match=r"finetune.lr: expected a number > 0, got 0"):
        finetune(backbone, keys, loss, Optimisation(steps=1, lr=0.0))
    with pytest.raises(InputError, match=r"finetune.rank: expected at least 1, got 0"):
        finetune(backbone, keys, loss, Optimisation(steps=1, lr=1e-3, rank=0))
    with pytest.raises(InputError, match=r"finetune.rank: expected at most 32, .* got 100000"):
        finetune(backbone, keys, loss, Optimisation(steps=1, lr=1e-3, rank=100_000))
    with pytest.raises(InputError, match=r"finetune.steps: expected at least 0, got -1"):
        finetune(backbone, keys, loss, Optimisation(steps=-1, lr=1e-3))
    with pytest.raises(SolveError, match="expected a finite loss, got nan at step 1"):
        finetune(
            backbone, keys, lambda student, *_: student.weights()[key].sum() * torch.nan, Optimisation(steps=1, lr=1e-3)
        )


def test_a_pull_moves_a_change_back_by_a_share() -> None:
    backbone = backbone_of(sd1())
    student = Student(backbone, keys, None, torch.Generator())
    name, leaf = next((key.name, leaf) for key, leaf in student.leaves.items())
    with torch.no_grad():
        leaf += 1.0
    student.pull_back(0.25)
    torch.testing.assert_close(student.shifts()[name], torch.full_like(leaf, 0.75), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_pull_keeps_the_changes_smaller(rank: int | None) -> None:
    backbone = backbone_of(sd1())

    def size(pull: float) -> float:
        optimisation = Optimisation(steps=20, lr=1e-2, rank=rank, pull=pull)
        changes = finetune(backbone, keys, noise_loss(backbone), optimisation)
        weights = backbone.parameters(keys)
        return float(torch.stack([changes[name].of(weights[name].data).norm() for name in changes]).norm())

    free, pulled, held = (size(pull) for pull in (0.0, 10.0, 100.0))
    assert 0 == held < pulled < free
