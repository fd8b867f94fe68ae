"""TRCE: the tests of its specification, section 10, on small models of the real classes and random matrices."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from erasure import tinyworld
from erasure.backbones import Backbone, backbone_of
from erasure.backbones.sites import unet_role
from erasure.closed_form.caption_statistics import square_root, statistics
from erasure.closed_form.problem import Rows
from erasure.closed_form.sentences import FRAMES, SentencePair, SentenceReader
from erasure.closed_form.solve import solve
from erasure.concept import Concept
from erasure.edits import DenseChange, MapChange, WeightEdit
from erasure.erasers import make_eraser
from erasure.erasers.trce import TRCE, published_eta, steered
from erasure.errors import InputError
from erasure.ledger import Ledger
from erasure.progress import Progress
from erasure.runs.lists import list_path, read_concepts
from erasure.runs.schema import parse
from erasure.sampling import noise, trajectory_latents
from erasure.training.context import FitContext
from erasure.training.steering import HingeCounter, Steering, SteeringPrompts, planned_latents
from erasure.training.student import Student
from erasure.training.teacher import Teacher
from tests.tiny import FAMILIES, WIDTH, sd1, sd2, sdxl, text_weights

GUN = Concept(target="gun", anchor="flower", kind="unsafe", preserve=("house",), aliases=("pistol",))
NAKED = Concept(target="nudity", anchor="a person wearing clothes", kind="unsafe")
TEXT = TRCE(stages="text", reg=1e-3)
QUICK = TRCE(**TRCE.quick)
CAPTIONS = ["a photo of a house", "a tree at night", "the beach", "a boat and a bird"]


@pytest.fixture(params=sorted(FAMILIES))
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return backbone_of(FAMILIES[request.param]())


@pytest.fixture
def small() -> Backbone:
    return backbone_of(sd1())


def some_rows(n: int = 6, dim: int = 12, *, eta: float = 0.01, reg: float = 0.0, seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    e, s, k = (torch.randn(m, dim, generator=generator, dtype=torch.float64) for m in (n, n, 3 * dim))
    kept = square_root(k.T @ k)
    return Rows(
        targets=e,
        anchors=s,
        weights=torch.full((n,), 1 / n, dtype=torch.float64),
        labels=tuple(f"term {at}" for at in range(n)),
        anchor_labels=("safe",) * n,
        sites=tuple(f"frame {at}|eot" for at in range(n)),
        preserve=kept,
        preserve_weights=torch.full((len(kept),), eta / len(k), dtype=torch.float64),
        preserve_labels=("",) * len(kept),
        preserve_sites=tuple(f"captions|{at}" for at in range(len(kept))),
        reg=reg,
    )


def edited(rows: Rows, out: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.randn(out, rows.targets.shape[1], generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return weight, weight @ solve(rows).matrix()


def residuals(rows: Rows) -> tuple[float, float]:
    weight, new = edited(rows)
    erase = (rows.weights[:, None].sqrt() * (rows.targets @ new.T - rows.anchors @ weight.T)).square().sum()
    keep = (rows.preserve @ (new - weight).T).square().sum()
    return erase.item(), keep.item()


def test_the_gradient_is_zero_at_the_optimum() -> None:
    rows = some_rows()
    weight, new = edited(rows)
    new.requires_grad_()
    erase = (rows.weights[:, None] * (rows.targets @ new.T - rows.anchors @ weight.T).square()).sum()
    keep = (rows.preserve_weights[:, None] * (rows.preserve @ (new - weight).T).square()).sum()
    [gradient] = torch.autograd.grad(erase + keep, new)
    scale = (rows.weights[:, None] * (rows.anchors @ weight.T)).T @ rows.targets
    assert gradient.norm() / scale.norm() < 1e-10


@pytest.mark.parametrize("reg", [0.0, 0.1])
def test_it_equals_least_squares_on_the_stacked_system(reg: float) -> None:
    rows = some_rows(reg=reg)
    weight, new = edited(rows)
    roots, kept = rows.weights.sqrt()[:, None], rows.preserve_weights.sqrt()[:, None]
    eye = reg**0.5 * torch.eye(rows.targets.shape[1], dtype=torch.float64)
    keys = torch.cat([roots * rows.targets, kept * rows.preserve, eye])
    values = torch.cat([roots * rows.anchors, kept * rows.preserve, eye]) @ weight.T
    expected = torch.linalg.lstsq(keys, values).solution.T
    assert (new - expected).norm() / expected.norm() < 1e-6


def test_nothing_changes_where_safe_is_malicious_or_weights_are_zero_and_little_with_much_to_preserve() -> None:
    rows = some_rows()
    for same in (replace(rows, anchors=rows.targets), replace(rows, weights=torch.zeros_like(rows.weights))):
        weight, new = edited(same)
        assert torch.equal(weight, new)
    weight, new = edited(some_rows(eta=1e9))
    assert (new - weight).norm() / weight.norm() < 1e-6


def test_with_little_to_preserve_independent_rows_are_met_exactly() -> None:
    erase, _ = residuals(some_rows(eta=1e-10))
    assert erase < 1e-12


def test_more_preservation_erases_less_and_preserves_more() -> None:
    found = [residuals(some_rows(n=30, eta=eta)) for eta in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)]
    assert [erase for erase, _ in found] == sorted(erase for erase, _ in found)
    assert [keep for _, keep in found] == sorted((keep for _, keep in found), reverse=True)


def test_order_and_duplicates_of_terms_change_nothing(small: Backbone) -> None:
    once = TEXT.fit([GUN, NAKED], FitContext(backbone=small))
    weight = next(iter(text_weights(small).values())).detach()
    name = next(iter(text_weights(small)))
    for other in ([NAKED, GUN], [GUN, NAKED, GUN]):
        change = TEXT.fit(other, FitContext(backbone=small)).changes[name].of(weight)
        assert torch.allclose(change, once.changes[name].of(weight), rtol=1e-9, atol=1e-12)


def test_the_two_roots_of_a_second_moment_agree() -> None:
    k = torch.randn(40, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    root = square_root(k.T @ k)
    assert torch.allclose(root.T @ root, k.T @ k, rtol=1e-12)
    flat = torch.outer(k[0], k[0])
    assert len(square_root(flat)) == 1


def test_stage_one_changes_keys_and_values_alone(backbone: Backbone) -> None:
    edit = TEXT.fit([GUN], FitContext(backbone=backbone))
    kv = set(backbone.sites(reads="text"))
    sentence_vector = {"unet.add_embedding.linear_1.weight"} if backbone.family == "sdxl" else set()
    assert set(edit.changes) == kv | sentence_vector
    assert edit.closed_form


def test_on_stable_diffusion_1_stage_one_touches_32_and_stage_two_96_tensors() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    sizes = {f"unet.{name}": parameter.numel() for name, parameter in unet.named_parameters()}
    kv = [size for name, size in sizes.items() if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]
    roles = {name: unet_role(name.removeprefix("unet.")) for name in sizes}
    trained = [size for name, size in sizes.items() if roles[name].startswith(("self", "cross.q"))]
    assert (len(kv), sum(kv)) == (32, 19_169_280)
    assert (len(trained), sum(trained)) == (96, 61_964_480)


def test_the_first_end_of_text_is_found_by_its_id_and_the_official_count_of_words_often_misses_it() -> None:
    backbone = backbone_of(sd1(vocabulary="clip"))
    concepts = [Concept.from_json(entry) for entry in read_concepts(list_path("nudity"))]
    pairs = TRCE()._pairs(concepts)
    assert len(pairs) == 300
    states = backbone.encode([pair.prompt for pair in pairs])
    end = backbone.pipe.tokenizer.eos_token_id
    for reader, mode in (
        (SentenceReader(backbone, pairs, TRCE(eot_index=mode)._weights), mode) for mode in ("ids", "words")
    ):
        found = [reader._end(pair.prompt) for pair in pairs]
        right = [ids[at] == end and ids[at - 1] != end for ids, at in zip(states.ids.tolist(), found, strict=True)]
        assert all(right) == (mode == "ids")
        if mode == "words":
            # a term of several tokens, or a hyphen in the sentence, moves the end on
            assert 0 < sum(right) < 300
            assert found == [len(pair.prompt.split()) + 1 for pair in pairs]


def test_by_token_ids_each_token_of_the_term_has_a_row(small: Backbone) -> None:
    settings = replace(TEXT, frames=("a photo of {} today",), weight_start=2.0, weight_last=3.0, weight_term=4.0)
    reader = SentenceReader(small, settings._pairs([GUN]), settings._weights)
    rows = reader.rows(statistics(small, CAPTIONS))
    states = small.encode(["a photo of gun today", "a photo of flower today"])
    here = [at for at, label in enumerate(rows.labels) if label == "gun"]
    by_place = {rows.sites[at].rpartition("|")[2]: at for at in here}
    letters = states.word_positions(0, "gun")
    assert set(by_place) == {"start", "eot", "last", *(f"term-{at}" for at in range(len(letters)))}
    places: dict[str, tuple[int, int, float]] = {
        "start": (0, 0, 2.0),
        "eot": (int(states.eot[0]), int(states.eot[1]), 1.0),
        "last": (76, 76, 3.0 * (77 - 5 - 2)),
        **{f"term-{at}": (position, 76, 4.0) for at, position in enumerate(letters)},
    }
    for place, (at, safe_at, weight) in places.items():
        row = by_place[place]
        assert torch.equal(rows.targets[row], states.states[0, at].double())
        assert torch.equal(rows.anchors[row], states.states[1, safe_at].double())
        assert rows.weights[row].item() == pytest.approx(weight / 2)  # two terms in one frame


def test_counted_in_words_stage_one_equals_the_official_arithmetic(tmp_path: Path) -> None:
    """W' = W (sum w e_s e_m^T / n + P) (sum w e_m e_m^T / n + P)^-1, P = p^2 S / 30000 + l I, at four places each.

    The official l is 0; states of a small model after layer normalisation lie in a subspace, so here it is not.
    Of a term, one place: the index of its first word plus one, whatever the number of its tokens.
    """
    pipe, scale, p = sd1(vocabulary="clip"), (0.5, 1.0, 0.01, 2.0), 30.0
    captions = [f"a {one} and the {two}" for one in ("boat", "dog", "lighthouse") for two in ("tree", "self-portrait")]
    (tmp_path / "captions.txt").write_text("\n".join(captions))
    frames = ("a photo of {} today", "{} during sunset/sunrise")
    weights = dict(zip(("weight_start", "weight_eot", "weight_last", "weight_term"), scale, strict=True))
    eraser = TRCE(
        stages="text",
        frames=frames,
        eot_index="words",
        eta=published_eta(p, captions=len(captions)),
        reg=0.1,
        captions=str(tmp_path / "captions.txt"),
        **weights,
    )
    terms = ["machine gun", "unexploded ordnance"]  # several tokens a word
    edit = eraser.fit(
        [Concept(target=t, anchor="a calm flower", kind="unsafe") for t in terms],
        FitContext(backbone=backbone_of(pipe)),
    )

    def states(sentence: str) -> torch.Tensor:
        ids = pipe.tokenizer(sentence, padding="max_length", max_length=77, return_tensors="pt").input_ids
        with torch.no_grad():
            return pipe.text_encoder(ids)[0][0].double()

    right, left = torch.zeros(WIDTH, WIDTH).double(), torch.zeros(WIDTH, WIDTH).double()
    for term in terms:
        for frame in frames:
            bad, good = frame.format(term), frame.format("a calm flower")
            words, e, safe = bad.split(), states(bad), states(good)
            places = (0, len(words) + 1, 76, words.index(term.split()[0]) + 1)
            safe_places = (0, len(good.split()) + 1, 76, 76)
            factors = (1, 1, 77 - len(words) - 2, 1)
            for i, j, w, factor in zip(places, safe_places, scale, factors, strict=True):
                right += w * factor * torch.outer(safe[j], e[i]) / 4
                left += w * factor * torch.outer(e[i], e[i]) / 4
    second = sum(states(caption).T @ states(caption) for caption in captions)
    kept = p * p * second / 30_000 + 0.1 * torch.eye(WIDTH).double()
    matrix = (right + kept) @ torch.linalg.inv(left + kept)
    for name, parameter in text_weights(backbone_of(pipe)).items():
        weight = parameter.detach().double()
        expected = weight @ matrix - weight
        # Text states are float32, and the inverse multiplies their rounding.
        assert (edit.changes[name].of(weight) - expected).abs().max() < 1e-6, name
        assert expected.abs().max() > 1e-2


def test_a_term_that_is_no_word_of_its_own_has_no_place_in_words(small: Backbone) -> None:
    settings = replace(TEXT, frames=("{}'s cover",), eot_index="words", weight_term=1.0)
    with pytest.raises(InputError, match='expected a sentence with the term as words of its own, got "gun\'s cover"'):
        settings.fit([GUN], FitContext(backbone=small))


def test_an_unseen_sentence_follows_and_unrelated_captions_stay() -> None:
    """On the tiny world's trained text encoder: a random one has nothing in common between sentences."""
    backbone = backbone_of(tinyworld.load())
    run = parse({"concepts": "weapons", "eraser": {"name": "trce", "stages": "text"}})
    assert isinstance(run.eraser, TRCE)
    mapped = solve(run.eraser.rows_of(run.concepts, FitContext(backbone=backbone))).matrix().float()
    pairs = [(f"a pixel art picture of a {word}", "a pixel art picture of a flower") for word in ("gun", "dagger")]
    before, safe = (backbone.encode([pair[at] for pair in pairs]) for at in (0, 1))
    kept = backbone.encode(["a photo of a castle", "two boats at the seaside", "a watercolor of a rabbit"]).states
    for parameter in text_weights(backbone).values():
        weight = parameter.detach()
        new = weight @ mapped
        ends = [part.states[torch.arange(2), part.eot] for part in (before, safe)]
        then, now = (cosines(ends[0] @ w.T, ends[1] @ weight.T) for w in (weight, new))
        assert now.mean() > then.mean() + 0.3 * (1 - then.mean())
        kept_cosines = cosines(kept @ new.T, kept @ weight.T)
        assert kept_cosines.mean() > 0.98


def cosines(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(one, other, dim=-1).flatten()


def test_the_published_weight_of_preservation() -> None:
    assert published_eta(0.01) == pytest.approx(0.0077)
    assert published_eta(0.02) == pytest.approx(0.0308)
    assert published_eta(0.01, captions=617_000) == pytest.approx(0.158, rel=0.01)
    assert TRCE().eta == published_eta(0.01)


def test_a_sentence_vector_is_mapped_where_it_is_read() -> None:
    backbone = backbone_of(sdxl())
    edit = replace(TEXT, eta=0.0, reg=1e-9).fit([GUN], FitContext(backbone=backbone))
    name = "unet.add_embedding.linear_1.weight"
    weight = backbone.parameters(name.__eq__)[name].detach().double()
    new = weight + edit.changes[name].of(weight)
    bad, good = backbone.encode(["a snapshot of gun", "a snapshot of flower"]).pooled.double()  # type: ignore[union-attr]
    width = len(bad)
    assert torch.allclose(new[:, :width] @ bad, weight[:, :width] @ good, atol=1e-3)
    assert torch.equal(new[:, width:], weight[:, width:])


@pytest.mark.parametrize("build", [sd1, sd2, sdxl])
def test_stage_two_trains_self_attention_and_queries_alone(build: Any) -> None:
    backbone = backbone_of(build())
    edit = replace(QUICK, stages="visual").fit([GUN], FitContext(backbone=backbone))
    assert edit.changes
    assert all(".attn1." in name or name.endswith("attn2.to_q.weight") for name in edit.changes)
    assert set(edit.changes) == steered(backbone)
    moved = [name for name, change in edit.changes.items() if isinstance(change, DenseChange) and change.delta.any()]
    assert moved


def test_the_references_are_of_the_model_before_stage_one_and_the_regulariser_starts_at_zero(small: Backbone) -> None:
    """Before training the student is the model after stage 1: the null branch's hinge has its closed form."""
    found: list[Progress] = []
    settings = replace(QUICK, lr=1e-12, weight_decay=0.0)
    settings.fit([GUN], FitContext(backbone=small, on_progress=found.append))
    steps = [step for step in found if step.stage == "fit"]
    assert all(step.parts[1] == pytest.approx(0, abs=1e-9) for step in steps)
    assert all("hinges active: prompt" in step.note for step in steps)
    # stage 2 alone: the student is eps_0 itself, so that h(eps_0(0)) = (1+g)^2 (|s-0|^2 - |m-0|^2) / N + margin
    alone = replace(settings, stages="visual", epochs=1)
    plan = alone._plan(2, 0)
    prompts = ["a photo of gun", "a photo of pistol"]
    malicious, _ = planned_latents(prompts, plan, FitContext(backbone=small))
    pairs = [SentencePair.of("a photo of {}", name, GUN) for name in GUN.names]
    expected = []
    for number, (trajectory, place) in enumerate(plan.malicious):
        z = malicious[number : number + 1].float()
        t = small.schedule.timesteps(alone.sample_steps)[[place]]
        with torch.no_grad():
            m, s, null = (
                small.predict(z, t, states)
                for states in (
                    small.encode([pairs[trajectory].prompt]),
                    small.encode([pairs[trajectory].safe_prompt]),
                    small.unconditional(),
                )
            )
        g = alone.target_guidance
        free = (1 + g) ** 2 * ((s - null).square().mean() - (m - null).square().mean()) + alone.margin
        f_s, f_m = s + g * (s - null), m + g * (m - null)
        bound = (m - f_s).square().mean() - (m - f_m).square().mean() + alone.margin
        expected.append((max(0.0, free.item()) + max(0.0, bound.item())) / 2)
    seen: list[Progress] = []
    alone.fit([GUN], FitContext(backbone=small, on_progress=seen.append))
    losses = [step.parts[0] for step in seen if step.stage == "fit"]
    assert losses == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_references_found_ahead_are_those_of_each_step(small: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(QUICK, trajectories=4, epochs=2, batch_size=3, lr=1e-4)
    losses: list[list[float]] = []
    passes: list[int] = []
    for at_once in (1, 10):
        monkeypatch.setattr("erasure.training.steering._TAUGHT_AT_ONCE", at_once)
        rows: list[int] = []
        frozen = small.denoiser.register_forward_pre_hook(
            lambda _, args, rows=rows: rows.append(len(args[0])) if not torch.is_grad_enabled() else None
        )
        found: list[Progress] = []
        with frozen:
            settings.fit([GUN], FitContext(backbone=small, on_progress=found.append))
        passes.append(len(rows))
        losses.append([part for step in found if step.stage == "fit" for part in step.parts])
    assert passes[1] < passes[0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3, abs=1e-6)


def test_a_stretch_ahead_is_asked_for_once_and_ends_with_the_plan() -> None:
    asked: list[list[int]] = []

    def find(numbers: Any) -> torch.Tensor:
        asked.append(list(numbers))
        return torch.tensor(list(numbers)).double() ** 2

    ahead = Teacher(find, 8, 7)
    for numbers in ([0, 1, 2], [3, 4, 5], [6, 7], [6, 7], [0]):
        assert ahead(numbers).tolist() == [number**2 for number in numbers]
    assert asked == [[0, 1, 2, 3, 4, 5], [6, 7], [0, 1, 2, 3, 4, 5, 6]]


def test_latents_stand_at_their_timestep_of_the_trajectory(small: Backbone) -> None:
    plan = QUICK._plan(1, 3)
    malicious, null = planned_latents(["a photo of gun"], plan, FitContext(backbone=small))
    start = noise([torch.Generator().manual_seed(40_000_000)], small.latent_shape())
    [(_, place)] = plan.malicious
    whole = trajectory_latents(
        small,
        start,
        small.encode(["a photo of gun"]),
        small.unconditional(),
        steps=QUICK.sample_steps,
        guidance_scale=QUICK.trajectory_guidance,
        stops=[place],
    )
    assert torch.equal(malicious[0], whole[place][0].half())
    assert malicious.dtype == null.dtype == torch.float16
    assert len(null) == plan.steps * QUICK.preserve_batch
    assert all(place < QUICK.early_steps for _, place in plan.malicious)


def test_the_same_prompt_as_safe_and_malicious_has_the_loss_of_the_margin_and_no_gradient(small: Backbone) -> None:
    same = Concept(target="Gun", anchor="flower", kind="unsafe")
    settings = replace(QUICK, stages="visual", weight_decay=0.0, beta=2.0)
    pairs = settings._pairs([same])
    assert pairs
    plan = settings._plan(1, 0)
    latents, _ = planned_latents(["a photo of Gun"], plan, FitContext(backbone=small))
    states = small.encode(["a photo of Gun"])
    both = SteeringPrompts(malicious=states, safe=states, null=small.unconditional())
    steering = Steering(
        backbone=small,
        prompts=both,
        plan=plan,
        target_guidance=settings.target_guidance,
        margin=settings.margin,
        beta=settings.beta,
    )
    loss = steering.loss(latents, {}, HingeCounter())
    student = Student(small, steered(small).__contains__, None, torch.Generator())
    value = loss(student, 0, torch.Generator())
    assert value.item() == pytest.approx(2 * settings.margin, rel=1e-3)
    gradients = student(torch.autograd.grad, value, student.trained, allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)


def test_gradients_grow_without_bound_only_where_they_are_never_cleared(small: Backbone) -> None:
    moved = {}
    for forever in (False, True):
        settings = replace(QUICK, stages="visual", trajectories=6, lr=1e-4, accumulate_forever=forever)
        edit = settings.fit([GUN], FitContext(backbone=small))
        deltas = [change.delta for change in edit.changes.values() if isinstance(change, DenseChange)]
        moved[forever] = sum(delta.abs().sum().item() for delta in deltas)
    assert moved[True] > moved[False]


def test_an_entry_of_both_stages_is_solved_and_added_and_can_be_taken_back(small: Backbone, tmp_path: Any) -> None:
    pipe = small.pipe
    ledger = Ledger.open_or_create(tmp_path, pipe, "tiny")
    ledger.remove(pipe, QUICK, [GUN])
    ledger.remove(pipe, make_eraser("uce"), [Concept(target="cat")])
    assert [entry.solved for entry in ledger.entries] == [False, True]
    both = ledger.edit()
    alone = QUICK.fit([GUN], FitContext(backbone=small))
    [trained] = {
        name for name in both.changes if name.endswith("mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight")
    }
    weight = small.parameters(trained.__eq__)[trained].detach()
    assert torch.allclose(both.changes[trained].of(weight), alone.changes[trained].of(weight), atol=1e-6)
    kv = next(iter(text_weights(small)))
    assert isinstance(both.changes[kv], MapChange)
    assert ledger.verify(pipe) == []
    ledger.undo("2")
    assert ledger.approximate == ()
    weight = small.parameters(kv.__eq__)[kv].detach()
    assert torch.allclose(ledger.edit().changes[kv].of(weight), alone.changes[kv].of(weight), rtol=1e-9)
    reloaded = WeightEdit.load(alone.save(tmp_path / "edit.safetensors"))
    assert not reloaded.closed_form
    assert reloaded.rows is not None


@pytest.mark.parametrize(
    ("settings", "concept", "message"),
    [
        ({"frames": ("no place",)}, GUN, "expected a sentence with one {} for the term, got 'no place'"),
        (
            {"frames": ("my own {}",)},
            replace(GUN, anchor=""),
            "expected an anchor for 'gun' in the sentence 'my own {}'",
        ),
        ({}, replace(GUN, anchor="very " * 80 + "calm"), "expected sentences of at most 75 tokens, got"),
        ({"captions": "/nowhere.txt"}, GUN, "captions: expected a file to read, got '/nowhere.txt'"),
    ],
)
def test_wrong_input_is_named(settings: dict[str, Any], concept: Concept, message: str, small: Backbone) -> None:
    with pytest.raises(InputError, match=message.replace("{}", r"\{\}")):
        replace(TEXT, **settings).fit([concept], FitContext(backbone=small))


def test_sentences_without_an_anchor_say_the_same_without_the_term(small: Backbone) -> None:
    pairs = TEXT._pairs([Concept(target="gun", kind="unsafe")])
    assert [pair.safe_prompt for pair in pairs] == list(FRAMES.values())
    assert len(FRAMES) == 15
    assert TEXT.fit([Concept(target="cat")], FitContext(backbone=small)).changes
    assert small.encode(["x"]).states.shape[-1] == WIDTH
