"""EraseFlow: densities of the chain, trajectory balance as an early stop, and the divergence that it stands for."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from erasure.backbones import backbone_of
from erasure.backbones.schedule import Discrete, Flow
from erasure.concept import Concept
from erasure.erasers.eraseflow import EraseFlow, attended
from erasure.errors import InputError
from erasure.sampling.stochastic import Transition, log_density, stochastic_path
from erasure.training.context import FitContext, TrainingTask
from erasure.training.finetune import Optimisation, finetune
from erasure.training.objectives.anchor_paths import AnchorPaths, _Paths
from erasure.training.student import Student
from tests import tiny

BACKBONE: Any = backbone_of(tiny.sd1())
CAT = Concept(target="cat", anchor="dog")
SAME = Concept(target="word " * 100 + "one", anchor="word " * 100 + "two")
TRAINED = attended(BACKBONE).__contains__
QUICK = AnchorPaths(sample_steps=5, transitions=3, denoiser="frozen", log_beta=0.0)
DISCRETE = Discrete(alphas_cumprod=torch.linspace(0.999, 0.01, 100).square(), prediction_type="epsilon")
FLOW = Flow(sigmas=lambda steps: torch.linspace(1, 1 / steps, steps))
STEPS = [(DISCRETE, 80, 40), (DISCRETE, 5, 1), (FLOW, 1000.0, 700.0), (FLOW, 300.0, 20.0)]


def task_of(concept: Concept = CAT, batch_size: int = 2) -> TrainingTask:
    return TrainingTask(
        context=FitContext(backbone=BACKBONE), requests=[concept], trained=TRAINED, batch_size=batch_size
    )


def student_of(rank: int | None = None) -> Student:
    return Student(BACKBONE, TRAINED, rank, torch.Generator().manual_seed(1))


def draws(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def log_ratio(settings: AnchorPaths, student: Student, concept: Concept = CAT) -> Tensor:
    return _Paths(settings, task_of(concept)).log_ratio(student, 0, torch.Generator().manual_seed(0))


def test_the_density_is_the_mean_of_the_normal_one() -> None:
    x, mean = draws(0, 2, 3, 4, 4), draws(1, 2, 3, 4, 4)
    spread = torch.tensor([0.3, 2.0])[:, None, None, None]
    expected = Normal(mean, spread.expand_as(mean)).log_prob(x).flatten(1).mean(1)
    torch.testing.assert_close(log_density(x, mean, spread), expected)


@pytest.mark.parametrize(("schedule", "timestep", "following"), STEPS)
def test_both_kernels_belong_to_one_chain(schedule: Any, timestep: float, following: float) -> None:
    """p(x_s | x_t, x0) q(x_t | x0) = q(x_s | x0) q(x_t | x_s), for an output that stands for the true x0."""
    clean, x_t, x_s = draws(0, 1, 2, 3, 3), draws(1, 1, 2, 3, 3), draws(2, 1, 2, 3, 3)
    t, s = torch.tensor(timestep), torch.tensor(following)
    step = Transition(schedule=schedule, timestep=t, following=s)
    a_t, b_t = schedule.factors(t)
    a_s, b_s = schedule.factors(s)
    noise = (x_t - a_t * clean) / b_t
    output = noise if schedule is DISCRETE else noise - clean
    one = step.denoising(output, x_t, x_s) + log_density(x_t, a_t * clean, b_t)
    other = log_density(x_s, a_s * clean, b_s) + step.noising(x_t, x_s)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_step_without_noise_is_refused() -> None:
    with pytest.raises(InputError, match="timesteps: expected steps that add noise"):
        Transition(schedule=FLOW, timestep=torch.tensor(20.0), following=torch.tensor(0.0))


def test_on_the_anchors_chain_the_log_ratio_is_what_the_levels_say() -> None:
    """With x0 exactly known, the mean of sum log p / q telescopes to log b_T / b_1."""
    clean, timesteps = draws(0, 1, 4, 32, 32), FLOW.timesteps(10)

    def predict(x: Tensor, timestep: Tensor) -> Tensor:
        return (x - clean) / (timestep / 1000)

    path = stochastic_path(FLOW, predict, draws(1, 1, 4, 32, 32), timesteps, torch.Generator().manual_seed(2))
    total = torch.zeros(1)
    for i, x in enumerate(path[:-1]):
        step = Transition(schedule=FLOW, timestep=timesteps[i], following=timesteps[i + 1])
        total += step.denoising(predict(x, timesteps[i]), x, path[i + 1]) - step.noising(x, path[i + 1])
    assert float(total) == pytest.approx(float((timesteps[0] / timesteps[-1]).log()), abs=0.1)
    torch.testing.assert_close(path[-1].std(), (clean * 0.9).square().mean().add(0.01).sqrt(), rtol=0.05, atol=0)


def test_the_divergence_has_the_mean_gradient_of_the_likelihood() -> None:
    mean, aim, spread = torch.tensor([[[[0.7]]]], requires_grad=True), torch.tensor([[[[0.2]]]]), 0.5
    x = aim + spread * draws(0, 100_000, 1, 1, 1)
    density = log_density(x, mean.expand_as(x), torch.tensor(spread).view(1, 1, 1, 1))
    (sampled,) = torch.autograd.grad(-density.mean(), mean)
    (exact,) = torch.autograd.grad(((mean - aim) / spread).square().sum() / 2, mean)
    torch.testing.assert_close(sampled, exact, rtol=0.02, atol=0)


def test_the_loss_is_the_squared_residual_and_rests_where_log_beta_meets_it() -> None:
    student = student_of()
    ratio = log_ratio(QUICK, student, SAME)
    (slope,) = student(torch.autograd.grad, ratio.mean(), student.trained[:1])
    balance = QUICK.loss(task_of(SAME, batch_size=2))(student, 0, torch.Generator().manual_seed(0))
    assert float(balance.detach()) == pytest.approx(float((QUICK.log_z + ratio.detach()).square().mean()), rel=1e-4)
    single = task_of(SAME, batch_size=1)
    value = _Paths(QUICK, single).log_ratio(student, 0, torch.Generator().manual_seed(0))
    for offset in (0.0, 0.5):
        at_rest = replace(QUICK, log_beta=QUICK.log_z + float(value) - offset)
        loss = at_rest.loss(single)(student, 0, torch.Generator().manual_seed(0))
        (gradient,) = student(torch.autograd.grad, loss, student.trained[:1])
        again = _Paths(QUICK, single).log_ratio(student, 0, torch.Generator().manual_seed(0))
        (slope,) = student(torch.autograd.grad, again.sum(), student.trained[:1])
        torch.testing.assert_close(gradient, 2 * offset * slope, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("log_beta", [50.0, -50.0])
def test_a_negative_residual_raises_the_paths_likelihood_and_a_positive_one_lowers_it(log_beta: float) -> None:
    task = task_of()
    before = float(log_ratio(QUICK, student_of()).mean())
    loss = replace(QUICK, log_beta=log_beta).loss(task)
    fixed = lambda student, step, _: loss(student, step, torch.Generator().manual_seed(0))  # noqa: E731
    changes = finetune(BACKBONE, TRAINED, fixed, Optimisation(steps=1, lr=1e-4))
    student = student_of()
    with torch.no_grad():
        for leaf, tensor in student.leaves.items():
            tensor += changes[leaf.name].of(tensor)
    after = float(log_ratio(QUICK, student).mean())
    assert (after > before) == (log_beta > 0)


def test_sums_are_means_times_the_entries() -> None:
    student = student_of()
    mean, total = (log_ratio(replace(QUICK, density=density), student) for density in ("mean", "sum"))
    torch.testing.assert_close(total, mean * 4 * 8 * 8, rtol=1e-3, atol=1e-2)
    matching, generators = replace(QUICK, form="matching"), [torch.Generator().manual_seed(0) for _ in range(2)]
    mean, total = (
        replace(matching, density=density).loss(task_of())(student, 0, generator)
        for density, generator in zip(("mean", "sum"), generators, strict=True)
    )
    assert float(total.detach()) == pytest.approx(float(mean.detach()) * 4 * 8 * 8, rel=1e-3)
    assert EraseFlow(density="sum").log_beta == 83.0


def test_the_divergence_is_zero_where_the_target_reads_like_the_anchor() -> None:
    matching, student = replace(QUICK, form="matching"), student_of()
    same, apart = (
        matching.loss(task_of(concept))(student, 0, torch.Generator().manual_seed(0)) for concept in (SAME, CAT)
    )
    assert float(same) == pytest.approx(0, abs=1e-6)
    assert float(apart) > 1e-4


def test_the_first_path_of_fresh_patches_is_that_of_the_original() -> None:
    paths = [_Paths(replace(QUICK, denoiser=denoiser), task_of()) for denoiser in ("student", "frozen")]
    for each in paths:
        each._renew(student_of(rank=2), 0, torch.Generator().manual_seed(3))
    assert all(torch.equal(one, other) for one, other in zip(paths[0]._path, paths[1]._path, strict=True))


def test_later_updates_take_the_last_path_again_and_half_of_the_steps_are_the_last_ones() -> None:
    paths, generator, drawn = _Paths(replace(QUICK, fresh=2), task_of()), torch.Generator().manual_seed(0), []
    for step in range(4):
        paths._renew(student_of(), step, generator)
        drawn.append(paths._path)
    assert drawn[0] is not drawn[1]
    assert drawn[1] is drawn[2] is drawn[3]
    places = AnchorPaths().places(torch.Generator().manual_seed(0))
    assert len(set(places)) == 20
    assert places[-10:] == list(range(39, 49))


def test_a_measured_reward_leaves_the_anchor_almost_without_residual() -> None:
    task = task_of(SAME, batch_size=8)
    value = replace(QUICK, log_beta=None, transitions=4).loss(task)(student_of(), 0, torch.Generator().manual_seed(0))
    assert float(value.detach()) < 0.05


def test_the_projections_of_all_attention_are_trained() -> None:
    unet = attended(BACKBONE)
    assert {name.split(".attn")[1].split(".")[0] for name in unet} == {"1", "2"}
    assert {name.split(".to_")[1].split(".")[0] for name in unet} == {"q", "k", "v", "out"}
    flux = attended(backbone_of(tiny.EVERY["flux"]()))
    assert any("add_v_proj" in name for name in flux)
    assert any("single_transformer_blocks" in name and "attn.to_q" in name for name in flux)
