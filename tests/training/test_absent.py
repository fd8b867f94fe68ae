"""The objective `absent`: its target, the evidence for it, its rows, and the inner attack."""

import io
import math
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from erasure.backbones import Backbone, backbone_of
from erasure.backbones.conditioning import Conditioning
from erasure.backbones.schedule import Discrete, Flow, NoiseSchedule
from erasure.cli.remove import announce
from erasure.concept import Concept
from erasure.erasers import make_eraser
from erasure.erasers.absent import Absent
from erasure.errors import InputError
from erasure.prompts import COMMON, blank, fill, speaks_of, templates
from erasure.runs.schema import parse
from erasure.training.absence.anchors import far_anchor
from erasure.training.absence.batches import Material, Shares
from erasure.training.absence.evidence import log_evidence, log_snr
from erasure.training.absence.images import ImageSettings
from erasure.training.absence.prompts import asking_names, random_prompts
from erasure.training.absence.walks import Walk, WalkSettings, walks_of
from erasure.training.context import FitContext, History, TrainingTask
from erasure.training.finetune import Optimisation, finetune
from erasure.training.inner_attack import InnerAttack, SoftPrompts
from erasure.training.objectives.absent import AbsentWorld, _Batches, absent_prediction
from erasure.training.student import Student
from tests import tiny

CAT = Concept(target="cat", preserve=("dog", "bird"), aliases=("kitten",))
QUICK = AbsentWorld(**AbsentWorld.quick)
DISCRETE = Discrete(alphas_cumprod=torch.linspace(0.999, 0.005, 1000), prediction_type="epsilon")
FLOW = Flow(sigmas=lambda steps: torch.linspace(1, 1 / steps, steps))


@pytest.fixture
def backbone() -> Backbone:
    return backbone_of(tiny.sd1())


def task_of(backbone: Backbone, batch_size: int = 4, concept: Concept = CAT) -> TrainingTask:
    sites = backbone.sites()
    context = FitContext(backbone=backbone)
    return TrainingTask(context=context, requests=[concept], trained=sites.__contains__, batch_size=batch_size)


def best_prediction(schedule: NoiseSchedule, x: Tensor, timestep: Tensor, mean: float) -> Float[Tensor, "n 1 1 1"]:
    """Return the perfect denoiser's prediction where clean latents are N(mean, 1)."""
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    signal, sigma = schedule.noised(one, zero, timestep), schedule.noised(zero, one, timestep)
    residual = (x - signal * mean) / (signal**2 + sigma**2)
    noise, clean = sigma * residual, mean + signal * residual
    return noise if isinstance(schedule, Discrete) else noise - clean


@pytest.mark.parametrize("schedule", [DISCRETE, FLOW])
@pytest.mark.parametrize("level", [100, 400, 800])
def test_with_the_analytic_odds_the_mixture_loses_one_of_two_gaussians(schedule: NoiseSchedule, level: int) -> None:
    prior, of_concept, of_rest = 0.3, 1.5, -1.0
    timestep = torch.tensor([level]).to(torch.float32 if isinstance(schedule, Flow) else torch.int64)
    x = torch.linspace(-3, 3, 13).reshape(-1, 1, 1, 1)
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    signal, sigma = (schedule.noised(*pair, timestep).item() for pair in ((one, zero), (zero, one)))
    spread = (signal**2 + sigma**2) ** 0.5
    densities = [torch.distributions.Normal(signal * mean, spread).log_prob(x).exp() for mean in (of_concept, of_rest)]
    odds = prior * densities[0] / ((1 - prior) * densities[1])
    concept, rest = (best_prediction(schedule, x, timestep, mean) for mean in (of_concept, of_rest))
    mixture = (odds * concept + rest) / (1 + odds)
    torch.testing.assert_close(absent_prediction(mixture, concept, odds.flatten()), rest, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", [DISCRETE, FLOW])
def test_the_log_ratio_of_signal_to_noise_is_that_of_the_schedule(schedule: NoiseSchedule) -> None:
    timesteps = torch.tensor([900, 500, 100])
    if isinstance(schedule, Discrete):
        alpha = schedule.alphas_cumprod[timesteps].double()
        expected = (alpha / (1 - alpha)).log()
    else:
        timesteps = timesteps.float()
        expected = 2 * ((1 - timesteps / 1000) / (timesteps / 1000)).double().log()
    torch.testing.assert_close(log_snr(schedule, timesteps), expected, rtol=1e-4, atol=1e-4)


class TwoGaussians:
    """A backbone whose denoiser is perfect for two Gaussians of latents, told apart by the prompt."""

    MEANS: ClassVar[dict[str, float]] = {"cat": 0.15, "dog": 0.0}

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def predict(self, latents: Tensor, timestep: Tensor, conditioning: Any) -> Tensor:
        alpha = self._backbone.schedule.alphas_cumprod[timestep].reshape(-1, 1, 1, 1)  # type: ignore[attr-defined]
        means = torch.tensor([self.MEANS[prompt] for prompt in conditioning.prompts]).reshape(-1, 1, 1, 1)
        return (1 - alpha).sqrt() * (latents - alpha.sqrt() * means)


def test_the_evidence_is_the_log_likelihood_ratio_of_two_gaussians(backbone: Backbone) -> None:
    clean = torch.randn(3, *backbone.latent_shape(), generator=torch.Generator().manual_seed(0)) + 0.15
    prompts = backbone.encode(["cat", "dog"])
    rows = torch.tensor([[0, 1]] * 3)
    timesteps = backbone.schedule.timesteps(300)
    perfect = TwoGaussians(backbone)
    evidence = log_evidence(perfect, clean, prompts, rows, timesteps, torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    exact = (0.15 * clean - 0.15**2 / 2).flatten(1).sum(1)
    torch.testing.assert_close(evidence[:, 0, -1] - evidence[:, 1, -1], exact, rtol=0.25, atol=0.6)
    assert (evidence.diff(dim=-1) <= 0).all()


def test_on_what_stays_the_reference_is_the_optimum(backbone: Backbone) -> None:
    task = task_of(backbone)
    student = Student(backbone, task.trained, None, torch.Generator())
    kept = replace(QUICK, named=0.0, crossed=0.0, otherwise=0.0, attack=InnerAttack(prompts=0))
    value = kept.loss(task)(student, 0, torch.Generator().manual_seed(0))
    found = student(torch.autograd.grad, value, student.trained, allow_unused=True)
    assert value < 1e-10
    assert all(gradient is None or gradient.abs().max() < 1e-4 for gradient in found)


@pytest.mark.parametrize(
    "settings", [{"instead": "blank"}, {"odds": "estimated"}, {"odds": "constant", "max_odds": 0.0}, {"guided": 3.0}]
)
def test_training_lowers_the_loss(settings: dict[str, Any], backbone: Backbone) -> None:
    task = task_of(backbone, batch_size=8)
    objective = replace(QUICK, attack=InnerAttack(prompts=0), **settings)
    losses: list[float] = []
    finetune(
        backbone,
        task.trained,
        objective.loss(task),
        Optimisation(steps=24, lr=1e-3, optimizer="adam"),
        on_progress=lambda progress: losses.append(progress.loss or 0.0),
    )
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])


class Constant(Student):
    """A student whose prediction is 0, and a value in the first rows."""

    value: float = 0.0

    def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        batch = torch.zeros_like(args[1])
        batch[:4] = self.value
        return batch


def test_a_guided_row_is_compared_at_its_scale_and_the_empty_prompt_has_a_row(backbone: Backbone) -> None:
    task = task_of(backbone)
    student = Constant(backbone, task.trained, None, torch.Generator())
    rows = {"named": 1.0, "crossed": 0.0, "otherwise": 0.0}

    def loss_of(guided: float, value: float) -> float:
        student.value = value  # the empty prompts' rows, which come last, are 0
        objective = replace(QUICK, instead="blank", guided=guided, attack=InnerAttack(prompts=0), **rows)  # type: ignore[arg-type]
        return float(objective.loss(task)(student, 0, torch.Generator().manual_seed(0)))

    assert loss_of(3.0, 0.5) == pytest.approx((loss_of(1.0, 1.5) + loss_of(1.0, 0.0)) / 2, rel=1e-5)


class ByName(TwoGaussians):
    """Another mean for every name, wherever it is in a prompt."""

    MEANS: ClassVar[dict[str, float]] = {"cat": 0.1, "dog": 0.2, "bird": 0.5, "Paris": 3.0, "tree": -0.6}

    def predict(self, latents: Tensor, timestep: Tensor, conditioning: Any) -> Tensor:
        means = [sum(mean for name, mean in self.MEANS.items() if name in prompt) for prompt in conditioning.prompts]
        return latents - torch.tensor(means).reshape(-1, 1, 1, 1)


def test_the_anchor_that_is_found_is_the_farthest_everyday_name_that_stays(backbone: Backbone) -> None:
    task = replace(task_of(backbone), context=FitContext(backbone=ByName(backbone)))  # type: ignore[arg-type]

    def found(*preserve: str) -> str:
        return far_anchor(task, replace(CAT, preserve=preserve), ImageSettings(steps=4, guidance_scale=4.0))

    assert found("dog", "bird", "Paris") == "bird"
    assert found("dog", "bird", "tree") == "tree"
    assert found("Paris") == "tree"  # the farthest of all everyday names


def test_no_anchor_was_removed_before(backbone: Backbone) -> None:
    task = task_of(backbone)
    everyday = far_anchor(task, CAT, ImageSettings(steps=2, guidance_scale=4.0))
    history = History(targets=(Concept(target=everyday),))
    task = replace(task, context=replace(task.context, history=history))
    assert far_anchor(task, CAT, ImageSettings(steps=2, guidance_scale=4.0)) != everyday
    history = History(targets=tuple(Concept(target=name) for name in COMMON["object"]))
    task = replace(task, context=replace(task.context, history=history))
    with pytest.raises(InputError, match="no everyday name stays"):
        far_anchor(task, replace(CAT, preserve=()), ImageSettings(steps=2, guidance_scale=4.0))


def test_names_of_earlier_removals_ask_for_their_anchor() -> None:
    dog = Concept(target="dog", aliases=("puppy",), anchor="House")
    house, tree = Concept(target="house", anchor="tree"), Concept(target="tree")
    assert asking_names(house, [dog]) == ["house", "dog", "puppy"]
    assert asking_names(tree, [dog, house]) == ["tree", "house", "dog", "puppy"]
    assert asking_names(tree, [dog, Concept(target="bird")]) == ["tree"]


def test_a_removed_anchor_is_removed_from_the_prompts_that_draw_it_too(backbone: Backbone) -> None:
    history = History(targets=(Concept(target="lion", anchor="cat"),))
    task = task_of(backbone)
    task = replace(task, context=replace(task.context, history=history))
    material = Material(task, 4, 4, ImageSettings(steps=2, guidance_scale=4.0))
    prompts = material.prompts.prompts
    assert any("lion" in prompts[row] for row in material.concepts[0].named)
    assert any("lion" in prompts[row] for row, _ in material.concepts[0].crossings)


def test_the_eraser_records_the_anchor_that_it_found(backbone: Backbone) -> None:
    objective = {**Absent.quick["objective"], "instead": "anchor"}
    eraser = make_eraser("absent", **{**Absent.quick, "steps": 1, "objective": objective})
    [fitted] = eraser.fit([CAT], FitContext(backbone=backbone)).metadata.concepts
    assert fitted.anchor in CAT.preserve
    named = replace(CAT, anchor="tree")
    assert eraser.fit([named], FitContext(backbone=backbone)).metadata.concepts == (named,)


def test_a_removal_says_that_the_fit_finds_the_anchor() -> None:
    absent = {"name": "absent", "objective": {"name": "absent", "instead": "anchor"}}
    assert _announced(absent, "cat") == "cat: object, becomes what the fit finds, preserving dog"
    assert "becomes what the fit finds" in _announced({"name": "stack", "parts": ["uce", absent]}, "cat")
    assert "becomes nothing" in _announced({"name": "absent"}, "cat")
    assert "becomes 'tree'" in _announced(absent, {"target": "cat", "anchor": "tree"})


def _announced(eraser: dict[str, Any], request: str | dict[str, str]) -> str:
    concept = {"target": request} if isinstance(request, str) else request
    lines = io.StringIO()
    announce(
        parse({"model": "some-folder", "eraser": eraser, "concepts": [{**concept, "preserve": ["dog"]}]}),
        Console(file=lines, width=200),
    )
    return lines.getvalue().strip()


def test_all_parts_of_a_stack_draw_the_anchor_that_one_finds(backbone: Backbone) -> None:
    objective = {**Absent.quick["objective"], "instead": "anchor"}
    absent = {**Absent.quick, "name": "absent", "steps": 1, "objective": objective}
    edit = make_eraser("stack", parts=("uce", absent)).fit([CAT], FitContext(backbone=backbone))
    [fitted] = edit.metadata.concepts
    assert fitted.anchor in CAT.preserve
    assert [part.concepts for part in edit.metadata.parts] == [(fitted,)] * 2


def test_with_an_anchor_the_concepts_prompts_start_from_it_and_others_from_themselves(backbone: Backbone) -> None:
    read: list[tuple[str, ...]] = []

    class Watched(type(backbone)):
        def predict(self, latents: Tensor, timestep: Tensor, conditioning: Any) -> Tensor:
            read.append(conditioning.prompts)
            return super().predict(latents, timestep, conditioning)

    concept = replace(CAT, anchor="tree")
    objective = replace(QUICK, instead="anchor", max_odds=0.0, crossed=0.0, attack=InnerAttack(prompts=0))
    watched = Watched(**vars(backbone))

    def targets(named: float) -> set[str]:
        task = task_of(watched, concept=concept)
        student = Student(backbone, task.trained, None, torch.Generator())
        loss = replace(objective, named=named, otherwise=1 - named).loss(task)
        for step in range(4):
            loss(student, step, torch.Generator().manual_seed(step))
        return {prompt for prompts in read[-8::2] for prompt in prompts}

    assert all("tree" in prompt for prompt in targets(1.0))
    others = targets(0.0)
    assert "" in others
    assert not any("tree" in prompt for prompt in others)


def test_with_an_anchor_a_guided_error_counts_as_often_as_sampling_counts_it(backbone: Backbone) -> None:
    task = task_of(backbone, concept=replace(CAT, anchor="tree"))
    student = Student(backbone, task.trained, None, torch.Generator())
    rows = replace(QUICK, instead="anchor", named=0.0, crossed=0.0, otherwise=1.0, attack=InnerAttack(prompts=2))

    def loss(scale: float) -> float:
        batches = _Batches(replace(rows, guided=scale), task)
        soft = batches._material._anything_else
        batches._material._anything_else = lambda prompts, generator: min(soft(prompts, generator), -1)  # type: ignore[method-assign]
        return float(batches.loss(student, 1, torch.Generator().manual_seed(0)).detach())

    assert loss(3.0) == pytest.approx(9 * loss(1.0), rel=1e-5)


def test_with_an_anchor_a_prompt_counts_once(backbone: Backbone) -> None:
    task = task_of(backbone, concept=replace(CAT, anchor="tree"))
    student = Student(backbone, task.trained, None, torch.Generator())
    rows = replace(QUICK, instead="anchor", named=0.5, crossed=0.0, otherwise=0.5, attack=InnerAttack(prompts=0))
    once, guided = (
        float(replace(rows, guided=scale).loss(task)(student, 0, torch.Generator().manual_seed(0)).detach())
        for scale in (1.0, 3.0)
    )
    assert guided == once


def test_a_concept_without_an_anchor_is_refused_where_one_is_asked_for(backbone: Backbone) -> None:
    with pytest.raises(InputError, match=r"absent\.instead: expected an anchor of 'cat', got none\."):
        replace(QUICK, instead="anchor").loss(task_of(backbone))


@pytest.mark.parametrize("schedule", [DISCRETE, FLOW], ids=["discrete", "flow"])
def test_a_walk_with_the_true_noise_ends_at_its_image(schedule: NoiseSchedule) -> None:
    clean, generator = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(3)), torch.Generator()
    [walk] = walks_of(WalkSettings(number=1, steps=10, latest=0.5), schedule, clean, lambda image, *_: 7 + image)
    places = set()
    for _ in range(200):
        walk.begin(0, generator)
        places.add(walk.place)
        signal, sigma = schedule.factors(walk.timestep.reshape(1))
        true = (walk.latents[None] - signal * clean[walk.image]) / sigma
        assert walk.base == 7 + walk.image
        before, image = walk.place, walk.image
        output = schedule.target(clean[image][None], true, walk.timestep.reshape(1))
        walk.go_on(schedule.prediction(output, walk.latents[None], walk.timestep.reshape(1))[0])
        if walk.place > before:  # on its way: still the image with noise of the level
            expected = schedule.noised(clean[image][None], true, walk.timestep.reshape(1))[0]
            torch.testing.assert_close(walk.latents, expected, rtol=1e-3, atol=1e-3)
    assert places == set(range(10))


def test_a_walk_of_the_student_starts_from_noise_and_keeps_its_prompt() -> None:
    clean, generator = torch.full((3, 1, 2, 2), 100.0), torch.Generator().manual_seed(0)
    walks = walks_of(WalkSettings(number=2, steps=4, soft=0.5), DISCRETE, clean, lambda image, *_: image)
    assert [walk.is_student for walk in walks] == [False, False, True, True]
    walk = walks[-1]
    places, reads = [], []
    for i in range(8):
        walk.begin(-1 - i, generator)
        if walk.place == 0:
            assert walk.latents.abs().max() < 10  # nothing of the image
        places.append(walk.place)
        reads.append(walk.read)
        walk.go_on(torch.zeros(1, 2, 2))
    assert places == [0, 1, 2, 3] * 2
    assert reads == [-1] * 4 + [-5] * 4


def test_soft_prompts_are_read_where_they_lead_the_student(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    walks = WalkSettings(soft=1.0, number=2, steps=3)
    objective = replace(QUICK, named=0.0, crossed=0.0, otherwise=1.0, walks=walks, attack=InnerAttack(prompts=2))
    task, steps = task_of(backbone), list[tuple[Walk, Tensor]]()
    go_on = Walk.go_on
    monkeypatch.setattr(Walk, "go_on", lambda walk, to: (steps.append((walk, to)), go_on(walk, to)))
    students = [Student(backbone, task.trained, None, torch.Generator()) for _ in range(2)]
    with torch.no_grad():
        for weight in students[1].leaves.values():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    first = []
    for student in students:
        loss, generator = objective.loss(task), torch.Generator().manual_seed(0)
        before = len(steps)
        assert all(bool(loss(student, step, generator).isfinite()) for step in range(6))
        assert len(steps) > before
        first.append(steps[before][1])
    assert all(walk.is_student and walk.read < 0 for walk, _ in steps)
    assert not torch.allclose(*first)  # a step is that of the student's own prediction


def test_strides_move_each_row_for_itself_towards_its_loss(backbone: Backbone) -> None:
    read, attack = backbone.encode(["a dog", "a bird"]), InnerAttack(strides=3, stride=0.1)
    aims = torch.stack([read.states[0].detach() + 1.0, read.states[1].detach()])

    def distance(prompts: Conditioning) -> Float[Tensor, " n"]:
        return (prompts.states - aims).square().flatten(1).mean(1)

    moved = attack.moved(read, distance)
    length = float(read.states.std())
    torch.testing.assert_close(moved.states[0], read.states[0] + 0.3 * length)
    torch.testing.assert_close(moved.states[1], read.states[1])  # no gradient, no stride
    assert not moved.states.requires_grad


def test_soft_prompts_make_strides_towards_the_reference_in_the_loss(backbone: Backbone) -> None:
    objective = replace(QUICK, named=0.0, crossed=0.0, otherwise=1.0)
    task = task_of(backbone)
    student = Student(backbone, task.trained, None, torch.Generator())
    values = {}
    for strides in (0, 4):
        attack = InnerAttack(prompts=2, strides=strides, stride=0.5)
        loss = replace(objective, attack=attack).loss(task)
        values[strides] = [loss(student, i, torch.Generator().manual_seed(i)).item() for i in range(3)]
    assert values[0] != values[4]
    assert all(value == value for value in values[4])


def test_walks_take_their_share_of_the_concepts_rows(backbone: Backbone) -> None:
    walks = WalkSettings(share=1.0, number=2, steps=3)
    objective = replace(QUICK, named=1.0, crossed=0.0, otherwise=0.0, walks=walks, attack=InnerAttack(prompts=0))
    task = task_of(backbone)
    student = Student(backbone, task.trained, None, torch.Generator())
    loss, generator = objective.loss(task), torch.Generator().manual_seed(0)
    plain = replace(objective, walks=WalkSettings()).loss(task)(student, 0, torch.Generator().manual_seed(0)).detach()
    values = [float(loss(student, step, generator).detach()) for step in range(6)]
    assert values[0] != float(plain)
    assert all(value == value for value in values)


def test_a_batch_holds_the_shares_of_the_four_kinds(backbone: Backbone) -> None:
    material = Material(task_of(backbone), 2, 4, ImageSettings(steps=2, guidance_scale=4.0))
    generator = torch.Generator().manual_seed(0)
    shares = Shares(named=0.25, crossed=0.25, otherwise=0.25)
    rows = [material.drawn(i, 16, shares, [3], generator) for i in range(16)]
    concept = material.concepts[0]
    assert [row.concept for row in rows].count(0) == 8
    assert all(row.read == row.named != row.base for row in rows[:4])
    assert all(row.read != row.named for row in rows[4:8])
    assert all((row.read, row.base) in concept.crossings for row in rows[8:12])
    assert all(row.read == row.base == row.named for row in rows[12:])


def test_kept_images_are_read_by_other_kept_prompts_with_the_references_prediction(backbone: Backbone) -> None:
    material = Material(task_of(backbone), 2, 4, ImageSettings(steps=2, guidance_scale=4.0), mixed=True)
    generator, every = torch.Generator().manual_seed(0), Shares(named=0.0, crossed=0.0, otherwise=0.0, mixed=1.0)
    rows = [material.drawn(i, 100, every, [], generator) for i in range(100)]
    texts = material.prompts.prompts
    assert len({texts[row.read] for row in rows}) > 10
    assert all(any(name in texts[row.read] for name in CAT.preserve) for row in rows)
    assert not any(speaks_of(texts[row.read], [CAT]) for row in rows)
    assert all(row.read == row.base == row.named and row.concept is None for row in rows)
    own = [material.drawn(i, 100, replace(every, mixed=0.0), [], generator) for i in range(100)]
    assert {row.read for row in own} <= {*material._kept_prompts}


def test_soft_prompts_read_a_share_of_the_crossed_rows(backbone: Backbone) -> None:
    material = Material(task_of(backbone), 2, 4, ImageSettings(steps=2, guidance_scale=4.0))
    shares = Shares(named=0.0, crossed=1.0, otherwise=0.0, crossed_soft=0.5)
    generator = torch.Generator().manual_seed(0)
    rows = [material.drawn(i, 200, shares, [3], generator) for i in range(200)]
    soft = [row for row in rows if row.attack == 0]
    assert 70 < len(soft) < 130
    assert {row.read for row in soft} == {-1, -2, -3}
    assert all((row.named, row.base) in material.concepts[0].crossings for row in rows)
    assert all(row.read == row.named and row.attack is None for row in rows if row.read >= 0)
    assert all(row.read >= 0 for row in (material.drawn(i, 200, shares, [], generator) for i in range(200)))


def test_the_loss_sees_the_soft_prompts_of_crossed_rows(backbone: Backbone) -> None:
    task = task_of(backbone)
    objective = replace(QUICK, named=0.0, crossed=1.0, otherwise=0.0, attack=InnerAttack(prompts=2))
    student = Student(backbone, task.trained, None, torch.Generator())
    plain = float(objective.loss(task)(student, 0, torch.Generator().manual_seed(0)).detach())
    loss = replace(objective, crossed_soft=1.0).loss(task)(student, 0, torch.Generator().manual_seed(0))
    assert plain != float(loss.detach())


def test_what_a_soft_prompt_starts_from_may_be_the_prompt_without_an_anchor(backbone: Backbone) -> None:
    task = task_of(backbone, concept=replace(CAT, anchor="dog"))
    rows = {"images": 8, "named": 0.5, "crossed": 0.0, "otherwise": 0.5}
    objective = replace(QUICK, instead="anchor", attack=InnerAttack(prompts=2), **rows)  # type: ignore[arg-type]
    for base in ("anchor", "blank"):
        batches = _Batches(replace(objective, soft_instead=base), task)
        read = batches._material.prompts.prompts
        material, generator = batches._material, torch.Generator().manual_seed(0)
        shares = Shares(named=0.5, crossed=0.0, otherwise=0.5)
        rows = [batches._anchored(material.drawn(i, 60, shares, [2], generator)) for i in range(60)]
        soft = [row for row in rows if row.read < 0]
        assert soft
        assert all("dog" in read[row.base] if base == "anchor" else not read[row.base] for row in soft)
        assert all("dog" in read[row.base] for row in rows if row.read == row.named)
        assert all(batches._counts_guided(row) for row in soft)
        starts = [read[row] for row in batches._starts(batches._material.concepts[0])]
        assert all("dog" in start for start in starts) if base == "anchor" else starts.count("") == len(starts) / 2


def test_what_is_no_prompt_of_the_image_takes_the_concepts_direction_from_the_images_own(backbone: Backbone) -> None:
    task = task_of(backbone, concept=replace(CAT, anchor="dog"))
    batches = _Batches(replace(QUICK, instead="anchor", soft_instead="blank", attack=InnerAttack(prompts=2)), task)
    read, generator = batches._material.prompts.prompts, torch.Generator().manual_seed(0)
    shares = Shares(named=0.2, crossed=0.0, otherwise=0.8)
    rows = [batches._anchored(batches._material.drawn(i, 80, shares, [2], generator)) for i in range(80)]
    others = [row for row in rows if row.read != row.named]
    assert others
    for row in others:
        assert row.against is not None
        assert read[row.base] == ("" if row.read < 0 else read[row.read])
        pair = read[row.named], read[row.against]
        sentences = templates("object")
        assert pair in {(fill(one, name), blank("object", one)) for one in sentences for name in CAT.names}
    assert all(row.against is None for row in rows if row.read == row.named)


def test_estimated_odds_rise_from_none_at_pure_noise_to_the_largest(backbone: Backbone) -> None:
    batches = _Batches(replace(QUICK, odds="estimated", attack=InnerAttack(prompts=0)), task_of(backbone))
    [(timesteps, ratios)] = batches._log_odds
    assert timesteps == sorted(timesteps)
    assert ratios[-1] == 0.0, "nothing is known of pure noise"
    batches._log_odds = [([0.0, 500.0, 1000.0], [100.0, 1.0, 0.0])]
    shares, generator = Shares(named=1.0, crossed=0.0, otherwise=0.0), torch.Generator().manual_seed(0)
    row, rest = batches._material.drawn(0, 4, shares, [], generator), len(CAT.preserve)
    odds = [batches._odds_of(row, torch.tensor(timestep)) for timestep in (1000, 750, 500, 0)]
    assert odds == pytest.approx([1 / rest, math.exp(0.5) / rest, math.exp(1) / rest, batches._settings.max_odds])


def test_no_kept_or_random_prompt_names_the_concept(backbone: Backbone) -> None:
    material = Material(task_of(backbone), 4, 8, ImageSettings(steps=2, guidance_scale=4.0))
    named = {i for i, prompt in enumerate(material.prompts.prompts) if "cat" in prompt or "kitten" in prompt}
    assert named == {*material.concepts[0].named, *(row for row, _ in material.concepts[0].crossings)}
    texts = random_prompts(backbone, 12, [CAT], torch.Generator().manual_seed(1))
    assert texts == random_prompts(backbone, 12, [CAT], torch.Generator().manual_seed(1))


def test_the_inner_attack_lowers_the_denoising_loss_and_leaves_the_weights(backbone: Backbone) -> None:
    task = task_of(backbone)
    student = Student(backbone, task.trained, None, torch.Generator())
    clean = torch.randn(2, *backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
    settings = InnerAttack(prompts=2, every=1, updates=10, life=100, lr=0.1, batch_size=4)
    prompts = SoftPrompts(settings, backbone, clean, backbone.encode(["a photo", "a picture"]))

    def error() -> float:
        added = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))
        timesteps = torch.tensor([500, 700])
        with torch.no_grad():
            read = prompts.read([0, 1])
            predicted = backbone.predict(backbone.schedule.noised(clean, added, timesteps), timesteps, read)
        return float((predicted - added).square().mean())

    generator = torch.Generator().manual_seed(2)
    prompts.advance(student, 1, generator)
    first = error()
    for step in range(4):
        prompts.advance(student, step, generator)
    assert error() < first
    assert all(leaf.grad is None for leaf in student.trained)


def test_a_soft_prompt_starts_anew_at_the_end_of_its_life(backbone: Backbone) -> None:
    task = task_of(backbone)
    student = Student(backbone, task.trained, None, torch.Generator())
    clean = torch.randn(2, *backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
    start = backbone.encode(["a photo"])
    settings = InnerAttack(prompts=1, every=2, life=2, batch_size=1)
    prompts = SoftPrompts(settings, backbone, clean, start)
    generator = torch.Generator().manual_seed(2)
    distances = []
    for step in range(6):
        prompts.advance(student, step, generator)
        distances.append(float((prompts.read([0]).states - start.states).abs().max()))
    one, two = settings.lr, 2 * settings.lr
    assert distances == pytest.approx([one, one, two, two, one, one], rel=0.4)


def test_lives_grow_and_the_last_finished_prompts_stay_in_the_archive(backbone: Backbone) -> None:
    student = Student(backbone, task_of(backbone).trained, None, torch.Generator())
    clean = torch.randn(2, *backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
    settings = InnerAttack(prompts=1, every=1, life=1, growth=2.0, archive=2, batch_size=1)
    prompts = SoftPrompts(settings, backbone, clean, backbone.encode(["a photo"]))
    generator = torch.Generator().manual_seed(2)
    sizes, finished = [], []
    for step in range(9):  # lives of 1, 2, 4 and 8 updates: ends before the updates 1, 3 and 7
        if step in (1, 3, 7):
            finished.append(prompts.read([0]).states)
        prompts.advance(student, step, generator)
        sizes.append(len(prompts))
    assert sizes == [1, 2, 2, 3, 3, 3, 3, 3, 3]
    assert torch.equal(prompts.read([1, 2]).states, torch.cat(finished[1:]))


def test_restarts_of_one_text_differ_by_their_spread(backbone: Backbone) -> None:
    clean = torch.zeros(1, *backbone.latent_shape())
    text = backbone.encode(["a photo"])
    prompts = SoftPrompts(InnerAttack(prompts=2, spread=0.5), backbone, clean, text)
    prompts.begin(torch.Generator().manual_seed(2))
    offsets = prompts.read([0, 1]).states - text.states
    assert not torch.equal(offsets[0], offsets[1])
    assert float(offsets.std()) == pytest.approx(0.5 * float(text.states.std()), rel=0.1)


def test_the_eraser_trains_all_but_the_embedding_of_the_noise_level(backbone: Backbone) -> None:
    eraser = make_eraser("absent", **Absent.quick)
    edit = eraser.fit([CAT], FitContext(backbone=backbone))
    time = set(backbone.sites(("time",)))
    assert time
    assert set(edit.changes) == set(backbone.sites()) - time


@pytest.mark.parametrize("cosine", [True, False])
def test_along_a_cosine_the_last_updates_move_little(cosine: bool, backbone: Backbone) -> None:
    eraser = Absent(**{**Absent.quick, "steps": 8}, cosine=cosine)  # type: ignore[arg-type]
    before, moved = [], []

    def look(student: Student, done: int) -> bool:
        now = torch.cat([leaf.detach().flatten() for leaf in student.trained])
        moved.extend(float((now - last).norm()) for last in before[-1:])
        before.append(now)
        return False

    eraser.learned(eraser.task([CAT], FitContext(backbone=backbone)), look)
    assert (moved[-1] < 0.2 * moved[0]) == cosine


def test_shares_of_more_than_everything_are_refused() -> None:
    AbsentWorld(named=0.5, crossed=0.3, otherwise=0.2)
    with pytest.raises(InputError, match=r"absent\.otherwise: expected shares of at most 1 together, got 1\.2\."):
        AbsentWorld(named=0.5, crossed=0.4, otherwise=0.3)
