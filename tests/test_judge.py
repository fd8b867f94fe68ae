"""Judges: one interface, held by the oracle and by CLIP as a zero-shot judge."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from erasure import tinyworld
from erasure.errors import UnknownNameError
from erasure.judge import HubClip, Judge, ReadOnce, ZeroShotJudge, among, shows_any, shows_each
from erasure.profile import profile_of
from erasure.tinyworld import vocabulary
from erasure.tinyworld.world import compose, draw
from tests import tiny
from tests.eval import world

WORLD = profile_of("tinyworld")
TEXTS = {"named": "an image of {}", "plain": "an image"}


def drawings(name: str, n: int = 8) -> list[Image.Image]:
    return [draw(compose([name], random.Random(i))) for i in range(n)]


def test_the_oracle_is_a_judge() -> None:
    judge = world.oracle()
    assert isinstance(judge, Judge)
    images = [Image.new("RGB", (64, 64))] * 2
    assert judge.features(images).shape[0] == 2
    for name in vocabulary.concepts():
        assert judge.knows(name)
        assert len(judge.shows(images, name)) == 2
        assert torch.equal(judge.probabilities(images, name), torch.from_numpy(judge.read(images).probability(name)))
    assert not judge.knows("zebra")
    with pytest.raises(UnknownNameError, match="oracle name 'zebra'"):
        judge.shows(images, "zebra")


@pytest.mark.parametrize("judge", WORLD.judges(), ids=["oracle", "open_clip"])
def test_both_judges_of_the_tiny_world_know_drawings(judge: Judge) -> None:
    assert isinstance(judge, Judge)
    guns, houses = drawings("gun"), drawings("house")
    assert np.mean(shows_any(judge, guns, ["pistol", "knife"])) >= 0.75  # a synonym is known too
    assert np.mean(shows_any(judge, houses, ["gun", "knife"])) <= 0.25
    assert judge.probabilities(guns, "gun").mean() > judge.probabilities(houses, "gun").mean()
    assert judge.knows("gun")
    assert not judge.knows("zebra")


def test_the_first_judge_decides() -> None:
    assert WORLD.judge() is WORLD.judges()[0] is tinyworld.load_oracle("cpu")


def test_images_are_read_once_for_several_concepts() -> None:
    passes = []
    read = ReadOnce(lambda images: passes.append(len(images)) or len(passes))
    images = drawings("cat", 3)
    assert read(images) == read(list(images)) == 1
    assert read(images[:2]) == 2
    assert read([image.copy() for image in images[:2]]) == 3


@pytest.fixture(scope="module")
def clip_judge() -> ZeroShotJudge:
    """Return a judge of CLIP's own classes with random weights."""
    return ZeroShotJudge("CLIP", HubClip(tiny.clip), among(("Van Gogh", "Monet"), **TEXTS))


def test_clip_chooses_between_the_concepts_and_nothing_in_particular(clip_judge) -> None:
    assert isinstance(clip_judge, Judge)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (48, 40, 3), np.uint8)) for _ in range(20)]
    assert clip_judge.features(images).shape == (20, 8)
    votes = np.array(clip_judge.shows(images, "Van Gogh")).astype(int) + clip_judge.shows(images, "Monet")
    assert set(votes.tolist()) <= {0, 1}
    shares = clip_judge.probabilities(images, "Van Gogh") + clip_judge.probabilities(images, "Monet")
    assert ((shares > 0) & (shares <= 1 + 1e-12)).all()
    assert len(clip_judge.shows(images, "Picasso")) == 20  # any text can be asked for


def test_features_are_those_of_the_whole_model(clip_judge) -> None:
    model, processor = tiny.clip()
    judge, images = (
        ZeroShotJudge("CLIP", HubClip(lambda: (model, processor)), among(("cat",), **TEXTS)),
        drawings("cat", 3),
    )
    texts = ["an image of cat", "an image"]
    inputs = processor(text=texts, images=images, return_tensors="pt", padding=True)
    with torch.inference_mode():
        output = model(**inputs)
    torch.testing.assert_close(judge.features(images), output.image_embeds)
    cosines = (output.image_embeds @ output.text_embeds.T).double()
    expected = (100 * cosines).softmax(1)[:, 0]
    torch.testing.assert_close(judge.probabilities(images, "cat"), expected, rtol=1e-4, atol=1e-6)


def test_each_image_is_asked_for_its_own_concept() -> None:
    judge, images = tinyworld.load_oracle(), [*drawings("gun", 4), *drawings("house", 4)]
    names = ["gun"] * 4 + ["gun"] * 4
    assert shows_each(judge, images, names) == judge.shows(images, "gun")
    assert shows_each(judge, images, []) == []
