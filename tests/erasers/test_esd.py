"""ESD: the target of its loss, what each variant trains, and where its latents come from."""

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from erasure.backbones import Backbone, backbone_of
from erasure.concept import Concept
from erasure.edits import DenseChange, LowRankChange, WeightEdit
from erasure.erasers import make_eraser
from erasure.erasers.esd import ESD, trained_by
from erasure.errors import InputError
from erasure.prompts import templates
from erasure.sampling import scheduled_prediction
from erasure.training import trajectories
from erasure.training.context import FitContext, TrainingTask
from erasure.training.draws.prompt_pairs import prompt_pairs
from erasure.training.finetune import Loss
from erasure.training.objectives import guided
from erasure.training.objectives.guided import negatively_guided, preserved_prompts
from erasure.training.student import Student
from erasure.training.trajectories import PartialTrajectories
from tests.tiny import FAMILIES, JOINT, sd1

CAT = Concept(target="cat", anchor="dog", preserve=("house",), aliases=("kitten",))
BARE = Concept(target="cat")
QUICK = ESD(steps=2, lr=1e-3, sample_steps=4)


@pytest.fixture(params=sorted(FAMILIES))
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return backbone_of(FAMILIES[request.param]())


class Untrained(Student):
    """A student that is still the original."""

    def __init__(self) -> None: ...

    def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, tuple[str, ...]]]:
    """Record latents, timestep and prompts of each prediction of the loss (not of the denoising before it)."""
    calls: list[tuple[Tensor, Tensor, tuple[str, ...]]] = []

    def predict(backbone: Backbone, latents: Tensor, timestep: Tensor, states: Any) -> Tensor:
        calls.append((latents, timestep, states.prompts))
        return scheduled_prediction(backbone, latents, timestep, states)

    monkeypatch.setattr(guided, "scheduled_prediction", predict)
    return calls


def erasing(settings: ESD, backbone: Backbone, *concepts: Concept) -> Loss:
    return settings._objective.loss(settings._task(concepts, FitContext(backbone=backbone)))


def loss_at_the_start(settings: ESD, backbone: Backbone, concept: Concept = BARE, seed: int = 0) -> Tensor:
    loss = erasing(settings, backbone, concept)
    with torch.no_grad():
        return loss(Untrained(), 0, torch.Generator().manual_seed(seed))


def test_negatively_guided_goes_from_the_anchor_away_from_the_target() -> None:
    anchor, target = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 5.0)
    assert negatively_guided(anchor, target, 0.0).item() == 2.0
    assert negatively_guided(anchor, target, 1.0).item() == -1.0
    assert negatively_guided(anchor, anchor, 7.0).item() == 2.0


@pytest.mark.parametrize("negative_guidance", [0.0, 1.0, 2.5])
def test_the_loss_at_the_start_is_that_of_the_formula(
    backbone: Backbone, negative_guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch)
    found = loss_at_the_start(replace(QUICK, negative_guidance=negative_guidance), backbone)
    [(_, _, frozen_prompts), (latents, timestep, student_prompts)] = calls
    assert frozen_prompts == ("", "cat")
    assert student_prompts == ("cat",)
    with torch.no_grad():
        target = scheduled_prediction(backbone, latents, timestep, backbone.encode(["cat"]))
        free = scheduled_prediction(backbone, latents, timestep, backbone.unconditional())
    # While the student is the original, its distance to the goal is (1 + eta) times the guidance direction.
    expected = (1 + negative_guidance) ** 2 * (target - free).square().mean()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-9)
    assert found > 0


def test_in_v_the_goal_is_the_same_combination_of_predictions() -> None:
    backbone = backbone_of(FAMILIES["sd2"]())
    latents, timestep = torch.randn(1, 4, 8, 8), torch.tensor(300)
    with torch.no_grad():
        anchor, target = (backbone.predict(latents, timestep, backbone.encode([text])) for text in ("", "cat"))
    goal_in_v = negatively_guided(anchor, target, 1.5)
    in_epsilon = [backbone.schedule.noise_of(v, latents, timestep) for v in (anchor, target)]
    torch.testing.assert_close(
        backbone.schedule.noise_of(goal_in_v, latents, timestep),
        negatively_guided(*in_epsilon, 1.5),
        rtol=1e-4,
        atol=1e-5,
    )


def test_an_anchor_takes_the_place_of_the_unconditional_prompt(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch)
    loss_at_the_start(QUICK, backbone, CAT)
    assert calls[0][2] == ("dog", "cat")


def test_a_target_that_reads_like_its_anchor_is_learned_at_once(backbone: Backbone) -> None:
    # Both are cut to the same tokens, so student and goal are equal, whatever the guidance.
    long = "word " * 100
    same = Concept(target=long + "one", anchor=long + "two")
    assert loss_at_the_start(replace(QUICK, negative_guidance=3.0), backbone, same) == pytest.approx(0, abs=1e-10)


def test_the_step_goes_down_the_loss_and_all_edits_leave_the_model_alone(backbone: Backbone) -> None:
    before = {name: value.detach().clone() for name, value in backbone.parameters(lambda name: True).items()}
    settings = replace(QUICK, variant="full", steps=6, lr=1e-4, sample_steps=1)
    edit = settings.fit([BARE], FitContext(backbone=backbone))
    now = backbone.parameters(lambda name: True)
    assert all(torch.equal(value, now[name]) for name, value in before.items())
    states, free = backbone.encode(["cat"]), backbone.unconditional()
    latents, timestep = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor(1)
    with torch.no_grad():
        read = [scheduled_prediction(backbone, latents, timestep, some.expand(4)) for some in (free, states)]
        goal = negatively_guided(*read, 1.0)
        with edit.applied_to(backbone.pipe):
            after = scheduled_prediction(backbone, latents, timestep, states.expand(4))
    assert (after - goal).square().mean() < (read[1] - goal).square().mean()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_variants_train_what_they_name(family: str) -> None:
    backbone = backbone_of(FAMILIES[family]())
    names = {variant: trained_by(variant, backbone) for variant in ("x", "x-strict", "u", "full")}
    whole = {name for name in backbone.parameters(lambda name: True) if name.startswith("unet.")}
    assert names["full"] == whole
    assert names["x-strict"] == set(backbone.sites(reads="text"))
    assert names["x"] == {name for name in whole if "attn2" in name}
    assert names["x-strict"] < names["x"]
    assert not names["u"] & names["x"]
    left_out = {name.split(".")[1] for name in whole - names["u"] - names["x"]}
    expected = {"time_embedding", "conv_norm_out", "conv_out"} | ({"add_embedding"} if family == "sdxl" else set())
    assert left_out == expected


@pytest.mark.parametrize("variant", ["x", "x-strict", "u", "full"])
@pytest.mark.parametrize("rank", [None, 2])
def test_only_declared_parameters_change(variant: Any, rank: int | None) -> None:
    backbone = backbone_of(sd1())
    edit = replace(QUICK, variant=variant, rank=rank).fit([CAT], FitContext(backbone=backbone))
    expected = backbone.parameters(trained_by(variant, backbone).__contains__)
    assert set(edit.changes) == {name for name, p in expected.items() if rank is None or p.ndim > 1}
    assert {type(change) for change in edit.changes.values()} == {DenseChange if rank is None else LowRankChange}
    with edit.applied_to(backbone.pipe):
        pass


def test_the_edit_survives_saving_and_says_how_it_came_to_be(tmp_path: Any) -> None:
    backbone = backbone_of(sd1())
    edit = replace(QUICK, variant="full", rank=2).fit([CAT], FitContext(backbone=backbone, seed=4))
    loaded = WeightEdit.load(edit.save(tmp_path / "edit.safetensors"))
    assert (loaded.metadata.method, loaded.metadata.seed) == ("esd", 4)
    assert loaded.metadata.settings["rank"] == 2
    assert loaded.metadata.concepts == (CAT,)
    for name, weight in backbone.parameters(edit.changes.__contains__).items():
        assert torch.equal(edit.changes[name].of(weight), loaded.changes[name].of(weight))


def test_the_same_seed_gives_the_same_edit() -> None:
    backbone = backbone_of(sd1())
    settings = replace(QUICK, prompts="templates", trajectory_uses=2, preserve_scale=1.0)
    first, again, other = (
        settings.fit([CAT, Concept(target="gun")], FitContext(backbone=backbone, seed=seed)) for seed in (0, 0, 1)
    )
    for name, change in first.changes.items():
        assert torch.equal(change.delta, again.changes[name].delta)
    assert any(not torch.equal(change.delta, other.changes[name].delta) for name, change in first.changes.items())


class Shifted(Untrained):
    """A student whose text attention differs from the original's while it is in force."""

    def __init__(self, backbone: Backbone) -> None:
        self._weights = [w for name, w in backbone.parameters(lambda name: ".attn2." in name).items()]

    def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        kept = [weight.detach().clone() for weight in self._weights]
        try:
            for weight in self._weights:
                weight.data.add_(0.3)
            return function(*args, **kwargs)
        finally:
            for weight, before in zip(self._weights, kept, strict=True):
                weight.data.copy_(before)


def denoised(pipe: Any, latents: Tensor, timesteps: list[int]) -> Tensor:
    """Return latents after deterministic DDIM along the timesteps with guidance 3, by the pipeline's UNet itself."""
    states, free = (
        pipe.text_encoder(pipe.tokenizer(text, padding="max_length", return_tensors="pt").input_ids)[0]
        for text in ("cat", "")
    )
    for timestep, following in itertools.pairwise(timesteps):
        alpha, after = (pipe.scheduler.alphas_cumprod[each] for each in (timestep, following))
        bound, unbound = (pipe.unet(latents, timestep, each).sample for each in (states, free))
        noise = unbound + 3 * (bound - unbound)
        clean = (latents - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        latents = after.sqrt() * clean + (1 - after).sqrt() * noise
    return latents


@pytest.mark.parametrize("release", ["paper", "2023", "2025"])
@torch.no_grad()
def test_latents_timestep_and_loss_of_a_release_are_those_of_its_script(
    release: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = sd1()
    backbone, student = backbone_of(pipe), Shifted(backbone_of(pipe))
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(11))
    monkeypatch.setattr(trajectories, "noise", lambda generators, shape: start)
    calls = recorded(monkeypatch)
    loss = erasing(ESD(release=release, sample_steps=4), backbone, BARE)
    schedule = [751, 501, 251, 1]  # four steps of 250, offset 1
    seen = set()
    for seed in range(12):
        calls.clear()
        value = loss(student, 0, torch.Generator().manual_seed(seed))
        latents, timestep, _ = calls[1]
        if release == "2023":
            # The script draws a bin k, and its sampler starts one step late and ends behind index k - 1.
            k = int(timestep) // 250
            run = [501, 251, 1, 0][: {3: 2, 2: 3, 1: 4, 0: 4}[k]]
            seen.add(k)
        else:
            run = schedule[: schedule.index(int(timestep)) + 1]
            seen.add(len(run) - 1)
        frozen = (lambda function, *args: function(*args)) if release == "2025" else student
        torch.testing.assert_close(latents, frozen(denoised, pipe, start, run), rtol=1e-4, atol=1e-5)
        free, bound = (
            pipe.unet(latents, timestep, backbone.encode([text]).states).sample
            if text
            else pipe.unet(latents, timestep, backbone.unconditional().states).sample
            for text in ("", "cat")
        )
        mine = student(lambda x, t: pipe.unet(x, t, backbone.encode(["cat"]).states).sample, latents, timestep)
        # The option of the script of 2025 is 2 and goes out from the conditional prediction.
        goal = bound - 2 * (bound - free) if release == "2025" else free - 1 * (bound - free)
        torch.testing.assert_close(value, (mine - goal).square().mean(), rtol=1e-4, atol=1e-9)
    assert seen == {0, 1, 2, 3}


def test_a_redrawn_timestep_lies_anywhere_in_its_bin(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = backbone_of(sd1())
    monkeypatch.setattr(
        trajectories, "trajectory_latents", lambda *args, stops, **kwargs: {stop: args[1] + stop for stop in stops}
    )
    settings: dict[str, Any] = {"steps": 3, "guidance_scale": 3.0, "uses": 3, "batch_size": 1, "pairing": "bin"}
    latents = PartialTrajectories(backbone, backbone.encode(["cat"]), lambda generator: 0, **settings)
    generator = torch.Generator().manual_seed(0)
    drawn = [sorted(int(latents.next(generator)[1]) for _ in range(3)) for _ in range(60)]
    for i, (low, high) in enumerate(((0, 333), (333, 667), (667, 1000))):  # rounded thirds of 1000
        bin_of = [row[i] for row in drawn]
        assert low <= min(bin_of) < low + 60
        assert high - 60 < max(bin_of) < high


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_release_of_2025_trains_the_linear_and_convolutional_layers(family: str) -> None:
    backbone = backbone_of(FAMILIES[family]())
    modules = dict(backbone.component("unet").named_modules())
    whole = {
        f"unet.{name}.{each}"
        for name, module in modules.items()
        if type(module).__name__ in ("Linear", "Conv2d")
        for each, _ in module.named_parameters(recurse=False)
    }
    assert trained_by("full", backbone, "2025") == whole
    assert trained_by("x", backbone, "2025") == {name for name in whole if "attn2" in name}
    assert trained_by("u", backbone, "2025") == {name for name in whole if "attn2" not in name}
    keys_and_values = {name for name in whole if "attn2.to_k" in name or "attn2.to_v" in name}
    assert trained_by("x-strict", backbone, "2025") == keys_and_values
    assert any("time_embedding" in name for name in whole)
    assert not any("norm" in name for name in whole)


def test_a_release_brings_its_defaults_and_what_is_given_wins() -> None:
    later = make_eraser("esd", release=2025, variant="x-strict")  # as YAML reads it
    assert later == ESD(release="2025", variant="x-strict")
    assert (later.as_settings()["steps"], later.as_settings()["lr"]) == (200, 5e-5)
    assert ESD(release="2025", steps=7) == replace(ESD(release="2025"), steps=7)
    assert ESD(release="2023") == replace(ESD(), release="2023")
    with pytest.raises(InputError, match=r"esd\.release"):
        make_eraser("esd", release=2024)


def test_redrawn_timesteps_are_refused_where_there_are_none() -> None:
    backbone = backbone_of(JOINT["flux"]())
    with pytest.raises(InputError, match="pairing: expected a model with discrete timesteps, got flux"):
        replace(QUICK, release="2023").fit([BARE], FitContext(backbone=backbone))


def test_latents_lie_at_a_place_of_the_schedule_drawn_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = backbone_of(sd1())
    monkeypatch.setattr(
        trajectories, "trajectory_latents", lambda *args, stops, **kwargs: {stop: args[1] + stop for stop in stops}
    )
    monkeypatch.setattr(trajectories, "noise", lambda generators, shape: torch.zeros(len(generators), *shape))
    latents = PartialTrajectories(
        backbone, backbone.encode(["cat"]), lambda generator: 0, steps=4, guidance_scale=3.0, uses=1, batch_size=1
    )
    generator = torch.Generator().manual_seed(0)
    seen: Counter[int] = Counter()
    for _ in range(200):
        x, timestep, _ = latents.next(generator)
        assert timestep == backbone.schedule.timesteps(4)[int(x.mean())]
        seen[int(timestep)] += 1
    assert set(seen) == set(backbone.schedule.timesteps(4).tolist())
    assert min(seen.values()) > 25  # of 50 expected


def test_the_student_denoises_to_its_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = backbone_of(sd1())
    within: list[bool] = []
    inside = False

    class Watched(Untrained):
        def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            inside = True
            try:
                return function(*args, **kwargs)
            finally:
                inside = False

    def denoised(*args: Any, **kwargs: Any) -> dict[int, Tensor]:
        within.append(inside)
        assert kwargs["guidance_scale"] == 3.0
        return {stop: torch.randn(1, 4, 8, 8) for stop in kwargs["stops"]}

    monkeypatch.setattr(trajectories, "trajectory_latents", denoised)
    erasing(QUICK, backbone, BARE)(Watched(), 0, torch.Generator())
    assert within == [True]


def test_one_trajectory_feeds_as_many_updates_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = backbone_of(sd1())
    runs: list[int] = []
    real = trajectories.trajectory_latents

    def counted(*args: Any, **kwargs: Any) -> dict[int, Tensor]:
        runs.append(len(kwargs["stops"]))
        return real(*args, **kwargs)

    monkeypatch.setattr(trajectories, "trajectory_latents", counted)
    replace(QUICK, steps=6, trajectory_uses=3).fit([BARE], FitContext(backbone=backbone))
    assert runs == [3, 3]
    runs.clear()
    replace(QUICK, steps=3).fit([BARE], FitContext(backbone=backbone))
    assert runs == [1, 1, 1]


def test_a_batch_draws_its_prompts_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = backbone_of(sd1())
    calls = recorded(monkeypatch)
    loss = erasing(replace(QUICK, batch_size=16, prompts="templates"), backbone, CAT, Concept(target="gun"))
    with torch.no_grad():
        loss(Untrained(), 0, torch.Generator().manual_seed(0))
    (latents, _, frozen), (_, _, student) = calls
    assert len(latents) == 32
    anchors, targets = frozen[:16], frozen[16:]
    assert targets == student
    assert len(set(targets)) > 8
    assert {"cat", "kitten", "gun"} == {word for text in targets for word in ("cat", "kitten", "gun") if word in text}
    for anchor, target in zip(anchors, targets, strict=True):
        assert ("gun" in target) == ("dog" not in anchor)
        assert "gun" not in anchor


def test_templates_speak_of_every_name() -> None:
    pairs = prompt_pairs(CAT, "templates")
    assert len(pairs) == 2 * len(templates("object"))
    assert ("a photo of a kitten", "a photo of a dog") in pairs
    assert ("a photo of a cat", "a photo") in prompt_pairs(BARE, "templates")
    assert prompt_pairs(CAT, "bare") == [("cat", "dog")]


def test_preserving_keeps_the_predictions_of_what_stays() -> None:
    backbone = backbone_of(sd1())
    concept = Concept(target="cat", preserve=("house",))
    states = backbone.encode(["house", ""])
    latents, timestep = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor(501)

    def drift(preserve_scale: float) -> float:
        settings = ESD(
            variant="full", steps=12, lr=1e-3, sample_steps=2, negative_guidance=50.0, preserve_scale=preserve_scale
        )
        edit = settings.fit([concept], FitContext(backbone=backbone))
        with torch.no_grad():
            before = scheduled_prediction(backbone, latents, timestep, states)
            with edit.applied_to(backbone.pipe):
                return (scheduled_prediction(backbone, latents, timestep, states) - before).square().mean().item()

    assert drift(100.0) < 0.5 * drift(0.0)


def test_what_another_concept_erases_is_not_preserved() -> None:
    concepts = [Concept(target="cat", preserve=("dog", "house")), Concept(target="dog")]
    context = FitContext(backbone=backbone_of(sd1()))
    task = TrainingTask(context=context, requests=concepts, trained=lambda name: True)
    assert preserved_prompts(task.concepts, "bare") == ["", "house"]


def test_wrong_input_is_named() -> None:
    backbone = backbone_of(sd1())
    with pytest.raises(InputError, match="esd: expected at least one concept"):
        ESD().fit([], FitContext(backbone=backbone))
    with pytest.raises(InputError, match=r"esd.lr"):
        make_eraser("esd", lr=0.0)
    with pytest.raises(InputError, match=r"esd.variant"):
        make_eraser("esd", variant="y")


def test_defaults_are_those_of_the_paper() -> None:
    assert ESD() == ESD(
        release="paper",
        variant="x",
        negative_guidance=1.0,
        start_guidance=3.0,
        sample_steps=50,
        steps=1000,
        lr=1e-5,
        batch_size=1,
        trajectory_uses=1,
        prompts="bare",
        rank=None,
        preserve_scale=0.0,
    )
