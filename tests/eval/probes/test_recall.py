"""Recall: the search, its sign, and what it starts from."""

import torch

from erasure.backbones import backbone_of
from erasure.eval.probes import Models, Subject
from erasure.eval.probes.recall import Recall, Search
from erasure.profile import profile_of
from erasure.sampling import noise, scheduled_prediction
from tests.contract.test_probes import _Open, aim
from tests.eval.world import pipeline

AIM = aim(profile_of("tinyworld"))
MATERIAL = Recall().material(Models(original=lambda: _Open(pipeline())), AIM)
SUBJECT = Subject(pipe=pipeline(), aim=AIM, material=MATERIAL)


def searched(search: Search, *, mixes: int = 0, updates: int = 6) -> torch.Tensor:
    probe = Recall(timesteps=1, mixes=mixes, rate=5e-3)
    states = SUBJECT.backbone.encode(list(AIM.prompts))
    return probe.start(SUBJECT, MATERIAL["reference"], states, search, updates)


def distance(latents: torch.Tensor) -> float:
    """Return the distance of the predicted noise to the reference's, at the level of the search."""
    backbone = backbone_of(pipeline())
    states, [timestep] = backbone.encode(list(AIM.prompts)), backbone.schedule.timesteps(1)
    added = noise([torch.Generator().manual_seed(seed + 40_000_000) for seed in AIM.seeds], backbone.latent_shape())
    one, other = (
        scheduled_prediction(backbone, backbone.schedule.noised(each, added, timestep), timestep, states)
        for each in (latents, MATERIAL["reference"])
    )
    return float((one - other).square().mean())


@torch.no_grad()
def test_the_descent_lowers_the_error_and_the_released_sign_raises_it() -> None:
    still = searched("none")
    assert distance(searched("descent")) < distance(still) < distance(searched("ascent"))
    # Each update moves every entry by the rate, or leaves it.
    assert float((searched("descent") - still).abs().max()) <= 6 * 5e-3 + 1e-4


def test_without_a_search_the_start_is_noise_with_the_reference_mixed_in() -> None:
    reference = MATERIAL["reference"]
    added = noise([torch.Generator().manual_seed(seed + 40_000_000) for seed in AIM.seeds], (*reference.shape[1:],))  # type: ignore[arg-type]
    torch.testing.assert_close(searched("none"), 0.25 * reference + 0.75 * added)
    for updates in (3, 6):
        mixed = searched("none", mixes=5, updates=updates)
        torch.testing.assert_close(mixed, (0.25 + 5 * 0.05) * reference + 0.75 * added, msg="all mixes in any search")


def test_each_search_has_an_outcome_at_each_dose_but_none_has_one() -> None:
    outcomes = list(Recall(**Recall.quick).outcomes(SUBJECT))
    kinds = [(outcome.part, outcome.dose) for outcome in outcomes]
    assert kinds == [("descent", 1), ("descent", 2), ("ascent", 1), ("ascent", 2), ("none", 2)]
