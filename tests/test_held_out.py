"""The measure does not ask in the eraser's sentences: no list of an eraser has a context of a held-out phrasing."""

import random
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import get_args

import pytest

from erasure import UCE, erase, load_model, sample
from erasure.closed_form.sentences import FRAMES
from erasure.concept import Concept, Kind
from erasure.eval.benchmarks.tinyworld import TinyWorld
from erasure.eval.protocols.phrasings import held_out_sentences
from erasure.eval.protocols.plans import plan_known, plan_named
from erasure.profile import profile_of
from erasure.prompts import CLASS_TEMPLATES, GENERIC, has_context, preserved_templates, templates
from erasure.runs.schema import MeasureSettings
from erasure.tinyworld import vocabulary, world

KINDS: tuple[Kind, ...] = get_args(Kind)
TEMPLATES = [*CLASS_TEMPLATES, *(template for kind in KINDS for template in preserved_templates(kind))]
GRAMMAR = {*("a", "an", "the", "of", "in", "on", "at", "by", "with", "and", "beside", "under", "near", "from", "to")}
MEDIA = {"photo", "picture", "image", "drawing", "painting", "art", "style"}
"""Words of any caption about an image as an image: a frame, and no context."""


def words(texts: Iterable[str]) -> set[str]:
    return {word.lower() for text in texts for word in re.findall(r"[\w'-]+", text)} - GRAMMAR


def eraser_lists() -> list[str]:
    """Return every sentence and thing that an eraser holds beside the names of a request."""
    files = Path(str(resources.files("erasure.configs"))).rglob("*.csv")
    return [*TEMPLATES, *GENERIC, *FRAMES, *(file.read_text(encoding="utf-8") for file in files)]


def test_no_list_of_an_eraser_shares_a_context_with_a_held_out_phrasing() -> None:
    held_out = words([*profile_of("tinyworld").held_out, *vocabulary.WEAPON_HINTS_HELD_OUT])
    assert {"seaside", "stars", "rabbit", "duel"} <= held_out
    assert not held_out & words(eraser_lists())


def test_sentences_of_the_measure_share_no_context_with_the_templates() -> None:
    for kind in KINDS:
        contexts = words(held_out_sentences(kind)) - MEDIA
        assert len(contexts) >= 7
        assert not contexts & words(eraser_lists())
        assert all(sentence.count("{}") == 1 for sentence in held_out_sentences(kind))


def test_templates_are_general() -> None:
    """No context is a word of the tiny world's captions, in which its concepts are asked for."""
    rng = random.Random(0)
    captions = [world.caption(world.sample_picture(rng), rng) for _ in range(3000)]
    known = words([*captions, *vocabulary.OBJECTS, *vocabulary.COLOURS, *vocabulary.FAMILIES])
    assert "beach" in known
    assert words(TEMPLATES) & known <= MEDIA


@pytest.mark.parametrize(
    ("name", "least"), [("cat", 0.3), ("Biscuit", 0.3), ("gun", 0.3), ("neon", 0.2), ("beach", 0.2)]
)
def test_many_prompts_of_a_measure_are_in_held_out_phrasings_and_many_are_not(name: str, least: float) -> None:
    profile = profile_of("tinyworld")
    probes = [p for p in plan_known(profile, [name], MeasureSettings(per_concept=200)).probes if p.role == "removed"]
    assert least < sum(probe.held_out for probe in probes) / len(probes) < 0.7
    seen = next(probe.prompt for probe in probes if not probe.held_out)
    assert not has_context(seen, [name, *profile.aliases(name)], profile.held_out)


def test_a_name_is_no_context() -> None:
    assert has_context("a cat and a Rabbit", ["cat"], ["rabbit"])
    assert not has_context("a photo of a rabbit on the beach", ["rabbit", "bunny"], ["rabbit", "at the seaside"])
    assert not has_context("a carton of milk", [], ["cart"])


def test_the_benchmark_says_which_of_its_items_are_held_out() -> None:
    benchmark = TinyWorld(removed=("cat", "gun"), total=200)
    by_part = {held: [item for item in benchmark.items if benchmark.held_out(item) is held] for held in (True, False)}
    assert {item.wording for item in by_part[True]} == {"explicit", "synonym", "combined", "implicit"}
    assert any("at the seaside" in item.prompt for item in by_part[True])
    held_out = words(profile_of("tinyworld").held_out)
    assert not held_out & words(item.prompt for item in by_part[False])


def test_a_model_of_which_nothing_is_known_is_asked_in_other_sentences() -> None:
    concepts = [Concept(target="Van Gogh", kind="style", preserve=("Monet",)), Concept(target="gun", kind="unsafe")]
    plan = plan_named(concepts, MeasureSettings())
    assert all(probe.held_out for probe in plan.probes)
    bare = {re.sub("Van Gogh|Monet|gun", "{}", probe.prompt) for probe in plan.probes}
    assert not bare & {template for kind in KINDS for template in templates(kind)}


def test_the_defaults_of_uce_erase_the_example_of_the_demo() -> None:
    pipe = load_model("tinyworld")
    profile = profile_of("tinyworld")
    (request,) = profile.completed([{"target": "cat"}])
    concept = Concept.from_json(request)
    judge = profile.judge("cpu")
    assert judge is not None
    with erase(pipe, concept, eraser=UCE(**profile.settings("uce"))).applied_to(pipe):
        images = sample(pipe, ["a cat on the beach"] * 4, range(4))
    assert int((judge.probabilities(images, "cat") < 0.5).sum()) >= 3
