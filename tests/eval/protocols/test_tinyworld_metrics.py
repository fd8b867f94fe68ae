"""Metrics that have a meaning on the tiny world: oracle distance, caption match, identity."""

import copy
import random

import numpy as np
import pytest
import torch

from erasure import tinyworld
from erasure.errors import InputError, UnknownNameError
from erasure.eval.features.weights import oracle_name, world_clip_name
from erasure.eval.metrics.caption_match import CaptionMatch, captions, text_match
from erasure.eval.metrics.identity import Identity, identity, mean_direction
from erasure.eval.metrics.oracle_distance import OracleDistance, oracle_distance, oracle_distance_map
from erasure.eval.stats.scores import Setup
from erasure.tinyworld.data import THINGS
from erasure.tinyworld.oracle import Oracle, OracleNet, Reading
from erasure.tinyworld.vocabulary import SCENES, STYLES
from erasure.tinyworld.world import compose, draw


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return tinyworld.load_oracle()


def _drawings(name: str, n: int, seed: int = 0, scene: str = "plain") -> np.ndarray:
    rng = random.Random(f"{name}:{seed}")
    return np.stack([np.asarray(draw(compose([name], rng, scene=scene))) for _ in range(n)])


def _reading(seen: dict[str, float], style: str = "photo", scene: str = "plain") -> Reading:
    things, styles, scenes = (np.zeros((1, len(x)), np.float32) for x in (THINGS, STYLES, SCENES))
    for name, probability in seen.items():
        things[0, THINGS.index(name)] = probability
    styles[0, STYLES.index(style)], scenes[0, SCENES.index(scene)] = 1, 1
    return Reading(things=things, style=styles, scene=scenes, features=np.zeros((1, 4), np.float32))


def test_distance_of_equal_orthogonal_and_opposite_features() -> None:
    one = torch.zeros(1, 2, 3, 3)
    one[:, 0] = 5.0
    orthogonal = one.flip(1)
    torch.testing.assert_close(oracle_distance([one], [2 * one]), torch.zeros(1))  # a longer vector is no other one
    torch.testing.assert_close(oracle_distance([one], [orthogonal]), torch.full((1,), 2.0))
    torch.testing.assert_close(oracle_distance([one, one], [-one, one]), torch.full((1,), 2.0))  # 4 and 0


def test_map_is_high_where_the_features_differ_and_its_mean_is_the_distance() -> None:
    one = torch.ones(1, 2, 4, 4)
    other = one.clone()
    other[:, 1, :, :2] = -1.0
    found = oracle_distance_map([one], [other], 4)
    assert found[0, :, 0].min() > 1.9
    assert found[0, :, 3].max() < 1e-6
    torch.testing.assert_close(found.mean((1, 2)), oracle_distance([one], [other]))


def test_distance_streams(oracle: Oracle) -> None:
    cats, dogs = _drawings("cat", 5), _drawings("dog", 5)
    whole, parts = OracleDistance(oracle=oracle), OracleDistance(oracle=oracle, batch_size=2)
    whole.update(cats, dogs)
    for at in (0, 4):  # a last batch of one
        parts.update(cats[at : at + 4], dogs[at : at + 4])
    assert whole.compute().n == parts.compute().n == 5
    assert whole.compute().value == pytest.approx(parts.compute().value, rel=1e-5)
    same = OracleDistance(oracle=oracle)
    same.update(cats, cats)
    assert same.compute().value == 0


def test_the_pixels_that_were_changed_stand_out(oracle: Oracle) -> None:
    cats = _drawings("cat", 4)
    changed = cats.copy()
    changed[:, :24, :24] = 255 - changed[:, :24, :24]
    maps = OracleDistance(oracle=oracle).maps(cats, changed)
    assert maps.shape == (4, 64, 64)
    assert maps[:, :20, :20].mean() > 3 * maps[:, 44:, 44:].mean()


def test_pairs_are_asked_for(oracle: Oracle) -> None:
    with pytest.raises(InputError, match="expected pairs"):
        OracleDistance(oracle=oracle).update(_drawings("cat", 2), _drawings("cat", 3))


def test_captions_are_written_from_the_reading() -> None:
    assert captions(_reading({"cat": 0.9, "dog": 0.2}, scene="beach")) == ["a photo of a cat on the beach"]
    assert captions(_reading({"cat": 0.8, "umbrella": 0.9}, style="neon")) == [
        "a neon picture of an umbrella and a cat"
    ]
    assert captions(_reading({"dog": 0.9, "Biscuit": 0.8})) == ["a photo of Biscuit"]
    assert captions(_reading({})) == ["a photo of an empty scene on a plain background"]


def test_text_match_is_a_cosine() -> None:
    one = torch.tensor([[1.0, 0.0], [1.0, 1.0], [3.0, 0.0]])
    other = torch.tensor([[2.0, 0.0], [1.0, -1.0], [-1.0, 0.0]])
    torch.testing.assert_close(text_match(one, other), torch.tensor([100.0, 0.0, -100.0], dtype=torch.float64))


def test_caption_match_prefers_the_prompt_of_what_is_shown(oracle: Oracle) -> None:
    trees = _drawings("tree", 12)
    right, wrong = (CaptionMatch(oracle=oracle, judge=tinyworld.load_clip()) for _ in range(2))
    right.update(trees, ["a photo of a tree"] * 12)
    wrong.update(trees, ["a photo of a gun"] * 12)
    assert right.compute().value > wrong.compute().value + 5
    with pytest.raises(InputError, match="a prompt an image"):
        right.update(trees, ["a photo of a tree"])


def test_mean_direction_and_identity_of_known_vectors() -> None:
    reference = mean_direction(np.array([[2.0, 0.0], [0.0, 1.0]]))
    np.testing.assert_allclose(reference, [0.5**0.5] * 2)
    np.testing.assert_allclose(identity(np.array([[3.0, 3.0], [1.0, -1.0]]), reference), [1.0, 0.0], atol=1e-12)


def test_identity_tells_the_individual_from_its_class(oracle: Oracle) -> None:
    own, class_ = Identity(oracle=oracle, individual="Biscuit"), Identity(oracle=oracle, individual="Biscuit")
    own.update(_drawings("Biscuit", 16, seed=1))
    class_.update(_drawings("dog", 16, seed=1))
    assert own.compute().value > class_.compute().value + 0.2


def test_identity_of_an_unknown_individual() -> None:
    with pytest.raises(UnknownNameError, match="Biscuit"):
        Identity(oracle=tinyworld.load_oracle(), individual="Bisciut")


def test_the_protocol_tells_judges_apart_by_their_weights(oracle: Oracle) -> None:
    judge = tinyworld.load_clip()
    cats = _drawings("cat", 2)
    found = {
        "distance": OracleDistance(oracle=oracle, reference="drawings").update(cats, cats).compute().setup,
        "captions": CaptionMatch(oracle=oracle, judge=judge).update(cats, ["a cat"] * 2).compute().setup,
        "identity": Identity(oracle=oracle, individual="Mittens").update(cats).compute().setup,
    }
    assert [setup and setup.metric for setup in found.values()] == ["oracle_distance", "caption_match", "identity"]
    assert found["distance"] == Setup(metric="oracle_distance", backbone=oracle_name(oracle), reference="drawings")
    assert found["captions"] is not None
    assert found["captions"].backbone == f"{world_clip_name(judge)}, captions by {oracle_name(oracle)}"
    assert found["captions"].library.startswith("open_clip ")
    assert found["identity"] is not None
    assert found["identity"].reference == "48 drawings of Mittens, less as many of a cat"
    other = Oracle(OracleNet())
    assert oracle_name(other) != oracle_name(oracle)
    assert oracle_name(Oracle(copy.deepcopy(oracle.net))) == oracle_name(oracle)
