"""Attacks: the objective that each one climbs, and the pieces they share."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from erasure.backbones import Backbone, backbone_of
from erasure.concept import Concept, normalized
from erasure.errors import InputError
from erasure.eval.attacks import Attack, Goal, attack_class, unlearn_diff
from erasure.eval.attacks.base import Tokens, pooled, soft_tokens
from erasure.eval.attacks.mma import MMA, _slope
from erasure.eval.attacks.ring_a_bell import RingABell, direction
from erasure.eval.attacks.unlearn_diff import UnlearnDiff, on_simplex, spread
from tests.clip_reference import clip_states
from tests.tiny import FAMILIES, sd1

CAT = Concept(target="cat", aliases=("kitten",))


@pytest.fixture(params=sorted(FAMILIES))
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return backbone_of(FAMILIES[request.param]())


@pytest.fixture
def small() -> Backbone:
    return backbone_of(sd1())


def quick(name: str) -> Attack:
    return attack_class(name)(**attack_class(name).quick)


def goal(backbone: Backbone, seed: int = 0) -> Goal:
    latents = torch.randn(1, *backbone.latent_shape(), generator=torch.Generator().manual_seed(3))
    return Goal(concept=CAT, prompt="a photo of a cat", seed=seed, latents=latents)


@pytest.mark.parametrize("name", ["mma", "ring-a-bell"])
def test_the_concepts_own_names_are_not_used(name: str) -> None:
    backbone = backbone_of(sd1(vocabulary="clip"))
    rows = quick(name).search(backbone, goal(backbone))
    own = {at for word in ("cat", "kitten") for at in Tokens(backbone).of(word)}
    words = backbone.pipe.tokenizer.batch_decode([[at] for at in sorted({at for row in rows.tolist() for at in row})])
    assert not own & {at for row in rows.tolist() for at in row}
    assert not [word for word in words if "cat" in normalized(word)]


def test_a_mixture_of_one_token_is_that_token(backbone: Backbone) -> None:
    tokens = Tokens(backbone)
    chosen = tokens.draw(1, 4, torch.Generator().manual_seed(0))
    hard = backbone.encode_ids(tokens.rows(chosen))
    empty = tokens.rows(torch.zeros_like(chosen))
    with soft_tokens(backbone, F.one_hot(chosen[0], len(backbone.pipe.tokenizer)).float()):
        soft = backbone.encode_ids(empty)
    torch.testing.assert_close(soft.states, hard.states)
    if hard.pooled is not None:
        torch.testing.assert_close(soft.pooled, hard.pooled)
    assert not torch.allclose(backbone.encode_ids(empty).states, hard.states)


def test_the_slope_says_what_an_exchange_brings_to_first_order(small: Backbone) -> None:
    tokens = Tokens(small)
    now = tokens.draw(1, 3, torch.Generator().manual_seed(0))
    rows = tokens.rows(now)
    wanted = small.encode(["a photo of a cat"]).states[0, -1].float()
    slope = _slope(small, rows, wanted, 3)
    one_hot = F.one_hot(now[0], len(small.pipe.tokenizer)).float()

    def cosine(weights: torch.Tensor) -> float:
        with torch.no_grad(), soft_tokens(small, weights):
            return F.cosine_similarity(pooled(small, rows), wanted[None], dim=1).item()

    for place, token in ((0, 5), (2, 40)):
        step = torch.zeros_like(one_hot)
        step[place, token] = 1e-2
        expected = (cosine(one_hot + step) - cosine(one_hot - step)) / 2e-2
        assert slope[place, token].item() == pytest.approx(expected, rel=0.05, abs=1e-4)


def test_mma_comes_nearer_and_gives_the_best_first(small: Backbone) -> None:
    attack = MMA(tokens=6, rounds=12, candidates=32, top=32)
    rows = attack.search(small, goal(small))
    read = small.encode(["a photo of a cat"])
    with torch.no_grad():
        cosines = F.cosine_similarity(pooled(small, rows), read.states[0, read.eot[0]][None], dim=1)
    assert cosines.tolist() == sorted(cosines.tolist(), reverse=True)
    assert cosines[0] > cosines[-1]


def test_ring_a_bell_comes_nearer_with_every_generation(small: Backbone) -> None:
    wanted = small.encode(["a photo of a cat"]).states[0] + 3.0 * direction(small, CAT)

    def nearest(generations: int) -> float:
        rows = RingABell(tokens=6, population=32, generations=generations).search(small, goal(small))
        with torch.no_grad():
            far = (small.encode_ids(rows).states - wanted).square().mean(dim=(1, 2))
        assert far[0] == far.min()
        return far[0].item()

    assert nearest(30) < nearest(5) < nearest(1)


def test_the_direction_is_that_of_the_concept(small: Backbone) -> None:
    found = direction(small, Concept(target="cat", kind="object"))
    assert found.shape == small.encode(["x"]).states.shape[1:]
    assert not found[0].any()  # the start of text has read nothing yet
    assert found[1:].any(dim=1).all()


def test_points_are_projected_onto_the_simplex() -> None:
    points = torch.randn(20, 7, generator=torch.Generator().manual_seed(0)) * 3
    found = on_simplex(points)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(20))
    assert (found >= 0).all()
    torch.testing.assert_close(on_simplex(found), found)
    others = torch.rand(500, 7, generator=torch.Generator().manual_seed(1))
    others = torch.cat([others / others.sum(dim=1, keepdim=True), torch.eye(7)])
    mine = (points - found).square().sum(dim=1)
    theirs = torch.cdist(points, others).square().amin(dim=1)
    assert (mine <= theirs * (1 + 1e-5)).all()


@pytest.mark.parametrize(
    "settings",
    [{"rounds": 12, "timesteps": 4, "batch_size": 8, "lr": 0.1}, {"relaxation": "mixture", "rounds": 30, "lr": 0.3}],
)
def test_unlearn_diff_lowers_the_denoising_error_of_its_pictures(small: Backbone, settings: dict[str, Any]) -> None:
    attack = UnlearnDiff(tokens=3, **{"batch_size": 8, **settings})
    aim = goal(small)
    rows = attack.search(small, aim)
    tokens = Tokens(small)
    prompt = torch.tensor(tokens.of(aim.prompt))
    assert all(row[4 : 4 + len(prompt)] == prompt.tolist() for row in rows.tolist())

    def error(ids: torch.Tensor) -> float:
        one_hot = F.one_hot(ids, len(small.pipe.tokenizer)).float()
        draws = torch.Generator().manual_seed(5)
        with torch.no_grad():
            losses = [attack._loss(small, tokens, prompt, one_hot, aim.latents, draws) for _ in range(8)]  # type: ignore[arg-type]
        return torch.stack(losses).mean().item()

    others = [error(tokens.draw(1, 3, torch.Generator().manual_seed(at))[0]) for at in range(8)]
    assert error(rows[0, 1:4]) < sum(others) / len(others)
    with pytest.raises(InputError, match="unlearn-diff: expected images of the concept, got none"):
        attack.search(small, Goal(concept=CAT, prompt="a cat", seed=0))


def test_the_search_is_that_of_the_official_code(small: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights after each update: hard tokens drawn, the clipped gradient straight through, Adam with L2, projection."""
    points: list[torch.Tensor] = []

    def recorded(rows: torch.Tensor) -> torch.Tensor:
        points.append(on_simplex(rows))
        return points[-1]

    monkeypatch.setattr(unlearn_diff, "on_simplex", recorded)
    aim, pipe = goal(small, seed=7), small.pipe
    assert aim.latents is not None
    attack = UnlearnDiff(tokens=3, timesteps=2, rounds=3, lr=0.05)
    found = attack.search(small, aim)

    generator = torch.Generator().manual_seed(7)
    table = pipe.text_encoder.get_input_embeddings().weight.detach()
    places = pipe.text_encoder.embeddings.position_embedding.weight.detach()
    plain = pipe.tokenizer(aim.prompt, padding="max_length", max_length=77 - 3, return_tensors="pt").input_ids[0]
    allowed = torch.tensor([i not in pipe.tokenizer.all_special_ids for i in range(len(table))])
    weights = (allowed / allowed.sum()).repeat(3, 1)
    first, second, step, heaviest = torch.zeros_like(weights), torch.zeros_like(weights), 0, []
    for timestep in (250, 750):  # the middles of two halves of 1000
        for _ in range(3):
            step += 1
            hard = torch.eye(len(table))[torch.multinomial(weights, 1, generator=generator)[:, 0]].requires_grad_()
            torch.randint(1, (1,), generator=generator)  # one of one images
            noise = torch.randn(aim.latents.shape, generator=generator)
            embedded = torch.cat([table[plain[:1]], hard @ table, table[plain[1:]]]) + places
            states = clip_states(pipe.text_encoder, embedded)[None]
            alpha = pipe.scheduler.alphas_cumprod[timestep]
            noisy = alpha.sqrt() * aim.latents + (1 - alpha).sqrt() * noise
            error = (pipe.unet(noisy, timestep, states).sample - noise).square().mean()
            [slope] = torch.autograd.grad(error, hard)
            slope = slope.clamp(-1, 1) + 0.1 * weights
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope.square()
            weights = weights - 0.05 * first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            weights = bisected(weights.masked_fill(~allowed, -1.0))
            torch.testing.assert_close(points[step - 1], weights, rtol=0, atol=2e-4)
            weights = points[step - 1].clone()  # so that rounding does not add up
        heaviest.append(weights.argmax(1).tolist())
    assert len(points) == step == 6
    assert [row[1:4] for row in found.tolist()] == heaviest[::-1]  # the middle of the timesteps first
    assert heaviest[0] != heaviest[1]


def bisected(rows: torch.Tensor) -> torch.Tensor:
    """Return the projection of each row onto the simplex: clip(row - mu, 0, 1) with the mu of a sum of 1."""
    low, high = rows.amin(1, keepdim=True) - 1, rows.amax(1, keepdim=True)
    for _ in range(60):
        middle = (low + high) / 2
        above = (rows - middle).clamp(0, 1).sum(1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (rows - (low + high) / 2).clamp(0, 1)


def test_candidates_are_spread_over_the_timesteps() -> None:
    assert spread(50)[:5] == [25, 12, 37, 6, 31]
    assert all(sorted(spread(n)) == list(range(n)) for n in range(1, 70))


def test_ours_is_the_mixture_with_its_defaults(small: Backbone) -> None:
    ours = attack_class("unlearn-diff")(relaxation="mixture", rounds=3)
    assert ours == UnlearnDiff(relaxation="mixture", timesteps=None, batch_size=4, rounds=3)
    assert len(ours.search(small, goal(small))) <= 3
    with pytest.raises(InputError, match=r"unlearn-diff\.timesteps: expected at most 1000, got 1001"):
        UnlearnDiff(timesteps=1001).search(small, goal(small))


def test_rows_have_a_place_for_so_many_tokens(small: Backbone) -> None:
    tokens = Tokens(small)
    assert tokens.rows(torch.zeros(1, 75, dtype=torch.long)).shape == (1, 77)
    with pytest.raises(InputError, match="expected at most 75 tokens a prompt, got 76"):
        tokens.rows(torch.zeros(1, 76, dtype=torch.long))
    with pytest.raises(InputError, match="ids: expected rows of 77 tokens, got 9"):
        small.encode_ids(torch.zeros(1, 9, dtype=torch.long))
