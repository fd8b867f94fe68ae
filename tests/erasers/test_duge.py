"""DUGE (reconstructed): the tests of its specification, section 9, on small models of the real classes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL.Image import Image

from erasure.backbones import Backbone, backbone_of
from erasure.backbones.attention import AttentionCapture, cross_attention_layers, layer_pixels
from erasure.concept import Concept
from erasure.edits import LowRankChange
from erasure.erasers import make_eraser
from erasure.erasers.duge import DUGE
from erasure.errors import InputError
from erasure.ledger import Ledger
from erasure.prompts import GENERIC
from erasure.runs.configs import read_config
from erasure.training.context import FitContext, History
from erasure.training.matching import LayerReading, image_prompt, prompt_turns
from erasure.training.replay import calibrated, noised, reading_loss
from erasure.training.replay_memory import free_of, memory_prompts, remembered
from erasure.training.student import Student
from tests.erasers.test_esd import Untrained
from tests.tiny import FAMILIES, sd1

CAT = Concept(target="cat", preserve=("dog", "house"), aliases=("kitten",))
BOAT = Concept(target="boat", preserve=("dog",))
CONFIGS = Path(__file__).parents[2] / "configs"
SPECIFIED = {
    k: v for k, v in read_config(CONFIGS / "duge" / "specified-tinyworld.yaml")["eraser"].items() if k != "name"
}
QUICK = DUGE(**{**SPECIFIED, **DUGE.quick, "probe_every": 0})


@pytest.fixture(params=sorted(FAMILIES))
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return backbone_of(FAMILIES[request.param]())


@pytest.fixture
def small() -> Backbone:
    return backbone_of(sd1())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_latents(backbone: Backbone, n: int = 2) -> Any:
    return noised(backbone, torch.randn(n, *backbone.latent_shape(), generator=generator()), generator(1))[:2]


class Sees:
    """A judge with a rule for every concept."""

    name = "rule"

    def __init__(self, rule: Callable[[Sequence[Image]], list[bool]]) -> None:
        self._rule = rule

    def knows(self, concept: str) -> bool:
        return True

    def probabilities(self, images: Sequence[Image], concept: str) -> torch.Tensor:
        return torch.tensor(self._rule(images)).float()

    def shows(self, images: Sequence[Image], concept: str) -> list[bool]:
        return self._rule(images)

    def features(self, images: Sequence[Image]) -> torch.Tensor:
        return torch.zeros(len(images), 1)


def trained(backbone: Backbone, settings: DUGE = QUICK) -> dict[str, torch.nn.Parameter]:
    return backbone.parameters(settings._trained(backbone).__contains__)


def student_of(backbone: Backbone, settings: DUGE = QUICK) -> Student:
    return Student(
        backbone,
        settings._trained(backbone).__contains__,
        settings.rank if settings.trained == "lora" else None,
        generator(),
    )


def look_at(backbone: Backbone, match: Any = "maps") -> LayerReading:
    return LayerReading(backbone=backbone, match=match, layers=list(cross_attention_layers(backbone)))


def deltas(edit: Any, backbone: Backbone) -> dict[str, torch.Tensor]:
    weights = backbone.parameters(edit.changes.__contains__)
    return {name: change.of(weights[name].detach()) for name, change in edit.changes.items()}


@pytest.mark.parametrize("match", ["maps", "outputs", "noise"])
def test_equal_models_with_the_empty_prompt_have_no_loss_and_no_gradient(match: Any, backbone: Backbone) -> None:
    latents, timestep = some_latents(backbone)
    empty, look = backbone.unconditional().expand(2), look_at(backbone, match)
    student = student_of(backbone)
    with torch.no_grad():
        reference = look.read(latents, timestep, empty)
    loss = student(look.distance, latents, timestep, empty, reference)
    assert loss.item() == 0
    gradients = torch.autograd.grad(loss, student.trained, allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)
    assert not reference  # each layer's maps are dropped once they are compared


def test_maps_are_distributions_over_all_tokens(backbone: Backbone) -> None:
    latents, timestep = some_latents(backbone)
    layers = list(cross_attention_layers(backbone))
    with torch.no_grad():
        maps = look_at(backbone).read(latents, timestep, backbone.encode(["a cat", "a dog"]))
    sizes = layer_pixels(backbone)
    assert list(maps) == list(sizes)  # in the order of execution
    assert set(maps) == set(layers)
    for layer, found in maps.items():
        assert found.shape[0] == 2
        assert found.shape[2:] == (sizes[layer], 77)
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:3]), rtol=0, atol=1e-5)


def test_watching_changes_nothing(small: Backbone) -> None:
    latents, timestep = some_latents(small)
    states = small.encode(["a cat", "a dog"])
    with torch.no_grad():
        plain = small.predict(latents, timestep, states)
        with AttentionCapture(backbone=small, reduce=lambda _, maps: maps, implementation="softmax"):
            watched = small.predict(latents, timestep, states)
    assert torch.equal(plain, watched)


def test_the_loss_on_maps_reaches_queries_and_keys_and_not_what_comes_after_the_last_map(small: Backbone) -> None:
    student = student_of(small)
    value = QUICK._erasing([CAT], FitContext(backbone=small))(student, 0, generator())
    gradients = dict(
        zip(student.weights(), torch.autograd.grad(value, student.trained, allow_unused=True), strict=True)
    )
    reached = {name for name, gradient in gradients.items() if gradient is not None and gradient.any()}
    assert all(".attn2." in name for name in gradients)
    assert all(name in reached for name in gradients if "to_q" in name or "to_k" in name)
    last = next(reversed(look_at(small).read(*some_latents(small), small.encode(["a"] * 2))))
    assert not any(name.startswith((f"{last}.to_v", f"{last}.to_out")) for name in reached)


def test_what_is_trained(small: Backbone) -> None:
    every = set(small.parameters(lambda _: True))
    assert {n for n in every if n in QUICK._trained(small)} == {n for n in every if ".attn2." in n}
    kv = {n for n in every if n in replace(QUICK, trained="kv")._trained(small)}
    assert kv == set(small.sites(reads="text"))
    edit = replace(QUICK, trained="lora", rank=2).fit([CAT], FitContext(backbone=small))
    assert all(isinstance(change, LowRankChange) and change.down.shape[0] == 2 for change in edit.changes.values())


def test_regularisation_starts_at_zero_and_freezes_the_model_when_it_is_all(small: Backbone) -> None:
    memory = QUICK._memory([CAT], FitContext(backbone=small))
    for kind in ("l2-sp", "l1-sp", "ewc"):
        settings = replace(QUICK, regularisation=kind, fisher_images=2)
        loss = settings._regularising(memory, FitContext(backbone=small))(student_of(small), 0, generator())
        assert loss.item() == 0
    moved = [
        sum(
            d.square().sum()
            for d in deltas(
                replace(QUICK, reg_scale=scale, steps=12).fit([CAT], FitContext(backbone=small)), small
            ).values()
        )
        for scale in (0.0, 1e9)
    ]
    assert moved[1] < moved[0] / 3


def test_weights_anchored_to_the_base_are_far_from_it_after_an_earlier_removal(small: Backbone) -> None:
    memory = QUICK._memory([CAT], FitContext(backbone=small))
    name = next(iter(trained(small)))
    history = History(originals={name: trained(small)[name].detach() + 1})
    student = student_of(small)
    for ref, expected in (("prev", 0.0), ("base", None)):
        loss = replace(QUICK, ref_weights=ref)._regularising(memory, FitContext(backbone=small, history=history))(
            student, 0, generator()
        )
        scalars = sum(weight.numel() for weight in student.trained)
        wanted = history.originals[name].numel() / scalars if expected is None else expected
        assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_prior_preservation_is_the_training_loss_and_distilled_starts_at_zero(backbone: Backbone) -> None:
    settings = replace(QUICK, prompt_dropout=0.0)
    memory = settings._memory([CAT], FitContext(backbone=backbone))
    with torch.no_grad():
        found = settings._preserving(memory, FitContext(backbone=backbone), distill=False)(Untrained(), 0, generator(3))
        distilled = settings._preserving(memory, FitContext(backbone=backbone), distill=True)
        assert distilled(Untrained(), 0, generator(3)).item() == 0
        draws = generator(3)
        rows = [int(torch.randint(len(memory), (), generator=draws)) for _ in range(settings.batch_size)]
        [torch.rand((), generator=draws) for _ in rows]
        clean = memory.latents[rows].float()
        noisy, timestep, noise = noised(backbone, clean, draws)
        predicted = backbone.predict(noisy, timestep, backbone.encode([memory.prompts[row] for row in rows]))
    wanted = backbone.schedule.target(clean, noise, timestep)
    torch.testing.assert_close(found, (predicted - wanted).square().mean())


def test_a_fisher_is_positive_and_of_mean_one(small: Backbone) -> None:
    settings = replace(QUICK, fisher_images=3)
    fisher = settings._fisher(settings._memory([CAT], FitContext(backbone=small)), FitContext(backbone=small))
    values = torch.cat([part.flatten() for part in fisher.values()])
    assert set(fisher) == set(trained(small, settings))
    assert values.min() >= 0
    torch.testing.assert_close(values.mean(), torch.tensor(1.0))


def test_without_the_unlearning_loss_the_target_is_nobodys_business(small: Backbone) -> None:
    edit = replace(QUICK, unlearn_scale=0.0, prior_scale=0.0, weight_decay=0.0).fit([CAT], FitContext(backbone=small))
    assert all(not delta.any() for delta in deltas(edit, small).values())


def test_the_first_weight_is_calibrated(small: Backbone) -> None:
    settings = replace(QUICK, unlearn_scale=None, calibration=2.0)
    context = FitContext(backbone=small)
    memory = settings._memory([CAT], context)
    erasing, preserving = (
        settings._erasing([CAT], context),
        settings._preserving(memory, context, distill=settings.distill),
    )
    student = student_of(small)

    def length(loss: Any, seed: int) -> float:
        total = torch.zeros(())
        for at in range(32):
            gradients = torch.autograd.grad(loss(student, 0, generator(seed + at)), student.trained, allow_unused=True)
            total += torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt()
        return float(total)

    scaled = calibrated(erasing, preserving, settings.unlearn_scale, ratio=settings.calibration)
    scaled(student, 0, generator())  # finds the weight
    assert length(scaled, 100) / length(preserving, 100) == pytest.approx(2.0, rel=0.3)


def test_stopping_and_going_on_gives_the_same_weights_as_one_run(small: Backbone, tmp_path: Path) -> None:
    pipe = small.pipe
    whole, parts = (Ledger.open_or_create(tmp_path / name, pipe, "tiny") for name in ("whole", "parts"))
    for concept in (CAT, BOAT):
        whole.remove(pipe, QUICK, [concept])
        parts.remove(pipe, QUICK, [concept])
        parts = Ledger.open(tmp_path / "parts")
        for file in (tmp_path / "parts" / "memory").iterdir():
            file.unlink()  # made again, it is the same
    one, other = deltas(whole.edit(), small), deltas(parts.edit(), small)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert len(list((tmp_path / "whole" / "memory").iterdir())) == 3  # the memory once, pictures of two targets


def two_removals(settings: DUGE, folder: Path) -> list[dict[str, torch.Tensor]]:
    """Return the changes after a first and after a second removal."""
    backbone, changes = backbone_of(sd1()), []
    ledger = Ledger.open_or_create(folder, backbone.pipe, "tiny")
    for concept in (CAT, BOAT):
        ledger.remove(backbone.pipe, settings, [concept])
        changes.append(deltas(ledger.edit(), backbone))
    return changes


@pytest.fixture(scope="module")
def plain_removals(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    return two_removals(QUICK, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("change", [{"ref_attention": "base"}, {"ref_weights": "base"}, {"revisit": 1.0}])
def test_switches_that_look_back_change_the_second_removal_alone(
    change: dict[str, Any], plain_removals: list[dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    first, second = plain_removals
    first_switched, second_switched = two_removals(replace(QUICK, **change), tmp_path)
    assert all(torch.equal(first[name], first_switched[name]) for name in first)
    assert any(not torch.equal(second[name], second_switched[name]) for name in second)


def test_the_memory_is_half_near_and_names_nothing_removed(small: Backbone) -> None:
    prompts = memory_prompts(small, [CAT], 40)
    assert len(prompts) == 40
    assert sum(prompt in ("a photo of a dog", "a photo of a house") for prompt in prompts) >= 20
    assert not any("cat" in prompt or "kitten" in prompt for prompt in prompts)
    assert len(GENERIC) >= 30
    assert all(
        prompt.removeprefix("a photo of ") in GENERIC for prompt in memory_prompts(small, [Concept(target="x")], 8)
    )


def test_the_memory_loses_what_would_teach_the_target_again(small: Backbone) -> None:
    made = remembered(FitContext(backbone=small), ["a dog", "a kitten", "a house"], sampling=QUICK._sampling, seed=0)
    assert made.latents.dtype == torch.float16
    by_name = free_of(FitContext(backbone=small), made, [CAT], max_similarity=1.0)
    assert by_name.prompts == ("a dog", "a house")
    seeing = FitContext(backbone=small, judge=Sees(lambda images: [True, False]))
    by_picture = free_of(seeing, made, [CAT], max_similarity=1.0)
    assert by_picture.prompts == ("a house",)
    assert not len(free_of(FitContext(backbone=small), made, [CAT], max_similarity=-1.0))
    with pytest.raises(InputError, match="Raise max_similarity"):
        replace(QUICK, max_similarity=-1.0)._memory([CAT], FitContext(backbone=small))


def test_the_memory_is_of_the_original_model(small: Backbone) -> None:
    name = next(name for name in trained(small) if name.endswith("to_out.0.bias"))
    parameter = trained(small)[name]
    before = remembered(FitContext(backbone=small), ["a dog"], sampling=QUICK._sampling, seed=0)
    history = History(originals={name: parameter.detach().clone()})
    parameter.data = parameter.data + 1
    edited = parameter.detach().clone()
    again = remembered(FitContext(backbone=small, history=history), ["a dog"], sampling=QUICK._sampling, seed=0)
    changed = remembered(FitContext(backbone=small), ["a dog"], sampling=QUICK._sampling, seed=0)
    assert torch.equal(before.latents, again.latents)
    assert not torch.equal(before.latents, changed.latents)
    assert torch.equal(parameter, edited)


def test_a_damaged_memory_is_named(small: Backbone, tmp_path: Path) -> None:
    history = History(memory=tmp_path)
    remembered(FitContext(backbone=small, history=history), ["a dog"], sampling=QUICK._sampling, seed=0)
    [file] = tmp_path.iterdir()
    file.write_bytes(b"x")
    with pytest.raises(InputError, match=r"got a damaged file\. Delete it"):
        remembered(FitContext(backbone=small, history=history), ["a dog"], sampling=QUICK._sampling, seed=0)


def test_it_ends_when_the_target_is_seen_no_more(small: Backbone) -> None:
    settings = replace(QUICK, steps=6, probe_every=2, probe_images=4)
    steps: list[Any] = []
    settings.fit(
        [CAT],
        FitContext(backbone=small, judge=Sees(lambda images: [False] * len(images)), on_progress=steps.append),
    )
    assert steps[-1].done == steps[-1].total == 2
    steps.clear()
    settings.fit(
        [CAT],
        FitContext(
            backbone=small,
            judge=Sees(lambda images: [len(images) == 1] * len(images)),
            on_progress=steps.append,
        ),
    )
    assert steps[-1].done == steps[-1].total == 6


def test_layers_above_the_largest_size_are_left_out(small: Backbone) -> None:
    with pytest.raises(InputError, match=r"max_pixels: expected at least"):
        replace(QUICK, max_pixels=1).fit([CAT], FitContext(backbone=small))
    biggest = max(layer_pixels(small).values())
    plain, same = (
        deltas(s.fit([CAT], FitContext(backbone=small)), small) for s in (QUICK, replace(QUICK, max_pixels=biggest))
    )
    assert all(torch.equal(plain[name], same[name]) for name in plain)


def test_settings_out_of_range() -> None:
    with pytest.raises(InputError, match=r"duge\.ref_attention: expected 'prev' or 'base'"):
        make_eraser("duge", ref_attention="first")


@pytest.mark.parametrize("match", ["outputs", "noise"])
def test_the_extensions_reach_values_and_the_output_projection_of_every_layer(match: Any, small: Backbone) -> None:
    student = student_of(small)
    value = replace(QUICK, match=match)._erasing([CAT], FitContext(backbone=small))(student, 0, generator())
    gradients = torch.autograd.grad(value, student.trained, allow_unused=True)
    assert all(gradient is not None and gradient.any() for gradient in gradients)


def test_what_stands_in_a_targets_place_is_its_context(small: Backbone) -> None:
    pairs = dict(prompt_turns(CAT))
    assert pairs["a cat on a table"] == "on a table"
    assert pairs["cat"] == ""
    assert {name for prompt in pairs for name in CAT.names if name in prompt} == {"cat", "kitten"}
    assert len(pairs) == 2 * len({blank for _, blank in prompt_turns(CAT)} | {1})
    settings = replace(QUICK, towards="blank", target_images=3)
    target = settings._target(CAT, FitContext(backbone=small))
    assert len(target.latents) == 3
    assert len(target.prompts) == len(target.blanks) == len(pairs)
    torch.testing.assert_close(target.blanks.states[0], small.unconditional().states[0])
    assert image_prompt(CAT, 1, paired=True) == next(iter(list(pairs)[1:]))
    plain = QUICK._target(CAT, FitContext(backbone=small))
    assert len(plain.blanks) == 1
    assert image_prompt(CAT, 1, paired=False) == "a photo of a cat"


def test_overshooting_goes_on_beyond_what_is_aimed_at(small: Backbone) -> None:
    settings = replace(QUICK, match="noise", towards="blank", batch_size=1, target_images=1)
    with torch.no_grad():
        near, far = (
            replace(settings, overshoot=o)._erasing([CAT], FitContext(backbone=small))(Untrained(), 0, generator())
            for o in (0.0, 1.0)
        )
    assert far.item() == pytest.approx(4 * near.item(), rel=1e-4)  # twice the way, squared
    with pytest.raises(InputError, match=r"duge\.overshoot: expected 0 where maps are matched, got 1\.0"):
        replace(QUICK, overshoot=1.0)
    assert DUGE(match="maps").overshoot == 0.0


def test_overshooting_an_earlier_target_does_not_lead_back_to_it(small: Backbone) -> None:
    """The way is the original's, whatever earlier removals made of it: here they made the model deaf to all text."""
    settings = replace(QUICK, match="noise", towards="blank", batch_size=1, target_images=1)
    deaf = {name: weight for name, weight in trained(small, settings).items() if "to_v" in name}
    history = History(originals={name: weight.detach().clone() for name, weight in deaf.items()}, targets=(CAT,))
    with torch.no_grad():
        way = replace(settings, overshoot=0.0)._erasing([CAT], FitContext(backbone=small))(Untrained(), 0, generator())
        loss = replace(settings, overshoot=1.0)._erasing([CAT], FitContext(backbone=small, history=history))
        for weight in deaf.values():
            weight.zero_()
        assert loss(Untrained(), 0, generator()).item() == pytest.approx(way.item(), rel=1e-4)


@pytest.mark.parametrize("match", ["outputs", "noise"])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("of", ["prev", "base"])
def test_what_is_aimed_at_is_the_same_in_fewer_passes(match: Any, again: bool, of: Any, small: Backbone) -> None:
    """The references of separate passes, each with its own prompt; as many as there are models that differ."""
    settings = replace(QUICK, match=match, towards="blank", overshoot=0.5, ref_attention=of)
    now = {name: weight.detach().clone() for name, weight in trained(small, settings).items()}
    history = History(originals=now, targets=(BOAT,)) if again else History()
    if again:
        for weight in trained(small, settings).values():
            weight.data.mul_(1.5)
    look, (noisy, timestep) = look_at(small, match), some_latents(small)
    read, blank = small.encode(["a cat", "a black cat"]), small.encode(["", "a house"])
    with torch.no_grad():
        context = FitContext(backbone=small, history=history)
        with context.original():
            wanted, away = (look.read(noisy, timestep, states) for states in (blank, read))
        reference = look.read(noisy, timestep, blank) if again and of == "prev" else wanted
    matching = replace(settings._matching(context), reading=look)
    calls: list[int] = []
    with small.denoiser.register_forward_pre_hook(lambda _, args: calls.append(len(args[0]))):
        found = matching.aims(noisy, timestep, read, blank)
    assert calls == ([4, 2] if again and of == "prev" else [4])
    assert found.keys() == reference.keys()
    for name, value in found.items():
        expected = reference[name] + 0.5 * (wanted[name] - away[name])
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_a_memory_for_each_request_is_near_that_request(small: Backbone) -> None:
    asked = {
        kind: replace(QUICK, memory_for=kind, memory_size=8)
        ._memory([BOAT], FitContext(backbone=small, history=History(targets=(CAT,))))
        .prompts
        for kind in ("first", "each")
    }
    assert any("house" in prompt for prompt in asked["first"])
    assert all(word in " ".join(asked["each"]) for word in ("dog",))
    assert len({prompt for prompt in asked["each"] if "dog" in prompt}) > 1  # in several contexts
    assert not any(word in prompt for prompt in asked["each"] for word in ("cat", "kitten", "boat"))


@pytest.mark.parametrize("settings", [{}, {"match": "outputs", "overshoot": 0.5}, {"match": "noise"}])
def test_gradients_agree_with_finite_differences(settings: dict[str, Any], small: Backbone) -> None:
    """Spec 9.11, in float64, for each of the three losses through a whole UNet."""
    for part in (small.pipe.unet, small.pipe.text_encoder):
        part.double()
    duge = replace(QUICK, prompt_dropout=0.0, **settings)
    memory = duge._memory([CAT], FitContext(backbone=small))
    names = list(trained(small, duge))
    weights = {name: trained(small, duge)[name].detach().clone() for name in names}
    base = {name: weight.clone() for name, weight in weights.items()}
    losses = {
        "unlearning": duge._erasing([CAT], FitContext(backbone=small)),
        "prior": duge._preserving(memory, FitContext(backbone=small), distill=duge.distill),
        "weights": duge._regularising(memory, FitContext(backbone=small)),
    }
    draws = generator(7)
    way = {name: torch.randn(weight.shape, generator=draws, dtype=torch.float64) for name, weight in weights.items()}
    for name, loss in losses.items():
        student = Double(small, base, weights, way)
        at = torch.zeros((), dtype=torch.float64, requires_grad=True)
        [slope] = torch.autograd.grad(student.at(at, loss), at)
        step = 1e-4
        with torch.no_grad():
            high, low = (student.at(torch.tensor(sign * step, dtype=torch.float64), loss) for sign in (1, -1))
        assert slope.item() == pytest.approx((high - low).item() / (2 * step), rel=1e-6), name


class Double(Student):
    """A student in float64 on a line through weight space, a little way off the pipeline's own weights."""

    def __init__(self, backbone: Backbone, base: Any, weights: Any, way: Any) -> None:
        super().__init__(backbone, QUICK._trained(backbone).__contains__, None, generator())
        self.base, self.start, self.way = base, {n: w + 0.01 * way[n] for n, w in weights.items()}, way
        self.now: dict[str, torch.Tensor] = {}

    def at(self, along: torch.Tensor, loss: Any) -> torch.Tensor:
        self.now = {name: start + along * self.way[name] for name, start in self.start.items()}
        return loss(self, 0, generator(5))

    def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self._scope, self.now, (function, args, kwargs))

    def shifts(self) -> dict[str, torch.Tensor]:
        return {name: now - self.base[name] for name, now in self.now.items()}


def test_pictures_are_reported_before_the_fit_while_they_are_made(small: Backbone, tmp_path: Path) -> None:
    steps: list[Any] = []
    QUICK.fit([CAT], FitContext(backbone=small, history=History(memory=tmp_path), on_progress=steps.append))
    made = [step for step in steps if step.stage == "images"]
    assert [step.total for step in made] == [QUICK.memory_size, QUICK.target_images]
    assert all(step.done == step.total for step in made)
    steps.clear()
    QUICK.fit([CAT], FitContext(backbone=small, history=History(memory=tmp_path), on_progress=steps.append))
    assert {step.stage for step in steps} == {"fit"}  # they are there already


def test_readings_of_what_is_preserved_start_at_zero_and_reach_keys_and_values_alone(small: Backbone) -> None:
    loss = reading_loss([CAT], FitContext(backbone=small))
    student = student_of(small)
    value = loss(student, 0, generator())
    assert value.item() == 0
    with torch.no_grad():
        for leaf in student.trained:
            leaf.mul_(1.1)
    value = loss(student, 0, generator())
    assert value.item() == pytest.approx(0.1**2, rel=1e-4)  # all of it a tenth larger: relative and squared
    names = list(student.weights())
    gradients = torch.autograd.grad(value, student.trained, allow_unused=True)
    reached = {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
    assert reached == set(small.sites(reads="text"))


def test_readings_are_compared_with_those_of_the_original(small: Backbone) -> None:
    kv = {name: p for name, p in trained(small).items() if name.endswith(("to_k.weight", "to_v.weight"))}
    history = History(originals={name: p.detach() / 1.1 for name, p in kv.items()}, targets=(BOAT,))
    loss = reading_loss([CAT], FitContext(backbone=small, history=history))
    assert loss(student_of(small), 0, generator()).item() == pytest.approx(0.1**2, rel=1e-4)
