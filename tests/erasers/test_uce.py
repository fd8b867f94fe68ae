"""UCE: the published rows, the rows of templates, and what both do."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erasure.backbones import backbone_of
from erasure.closed_form.problem import Rows
from erasure.closed_form.solve import ridge_edit
from erasure.concept import Concept
from erasure.erasers.uce import UCE
from erasure.errors import InputError
from erasure.prompts import fill, preserved_templates, templates
from erasure.training.context import FitContext
from tests import tiny

PIPE = tiny.sd1(vocabulary="clip")
BACKBONE: Any = backbone_of(PIPE)
REWRITE = UCE(rows="last-subject", strength=1.0, preserve_scale=1.0, empty_anchor="start")
PUBLISHED = UCE(rows="published", strength=1.0, preserve_scale=None, empty_anchor="start")


def state(prompt: str, position: int) -> torch.Tensor:
    return BACKBONE.encode([prompt]).states[0, position].double()


def end(prompt: str) -> int:
    return int(BACKBONE.encode([prompt]).eot.item())


def at(rows: Rows, label: str, site: str) -> int:
    found = [i for i, key in enumerate(zip(rows.labels, rows.sites, strict=True)) if key == (label, site)]
    assert len(found) == 1, (label, site, sorted(set(rows.sites)))
    return found[0]


def test_the_rows_of_the_rewrite_are_bare_names_at_their_last_token() -> None:
    concept = Concept(target="Van Gogh", anchor="art", preserve=("Monet",))
    rows = REWRITE.rows_of([concept], FitContext(backbone=BACKBONE))
    close(rows.targets, state("Van Gogh", end("Van Gogh") - 1)[None])
    close(rows.anchors, state("art", 1)[None])
    close(rows.preserve, state("Monet", end("Monet") - 1)[None])
    assert rows.weights.tolist() == rows.preserve_weights.tolist() == [1.0]


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("empty_anchor", "position"), [("start", 0), ("end", 1)])
@pytest.mark.parametrize("rows", ["last-subject", "published", "templates"])
def test_the_unconditional_anchor_is_the_state_of_the_empty_prompt(rows: Any, empty_anchor: Any, position: int) -> None:
    eraser = UCE(rows=rows, strength=1.0, empty_anchor=empty_anchor)
    found = eraser.rows_of([Concept(target="cat")], FitContext(backbone=BACKBONE))
    close(found.anchors[at(found, "cat", "{}|subject")], state("", position))


@pytest.mark.parametrize(
    ("target", "anchor", "preserve"),
    [("Van Gogh", "", ("Monet", "a dog")), ("cat", "fire hydrant", ()), ("fire hydrant", "cat", ("dog",))],
)
def test_the_published_edit_is_that_of_the_released_script(target: str, anchor: str, preserve: tuple[str, ...]) -> None:
    """Equation 7 layer by layer, on the states that the script of 2023 takes."""
    concept = Concept(target=target, anchor=anchor, preserve=preserve)
    edit = PUBLISHED.fit([concept], FitContext(backbone=BACKBONE))
    texts = [target, anchor, "", *preserve]
    read = BACKBONE.encode(texts)
    last = [int(end) - 1 for end in read.eot]  # of the empty prompt: the start of text
    length = tiny.POSITIONS - max(last[:2])
    moved, instead = (read.states[i, last[i] : last[i] + length].double() for i in range(2))
    kept = read.states[2:].double().flatten(0, 1)
    scale = max(0.1, 1 / (len(texts) - 2))
    keys = torch.cat([moved, scale**0.5 * kept])
    sources = torch.cat([instead, scale**0.5 * kept])
    for name, parameter in tiny.text_weights(BACKBONE).items():
        weight = parameter.detach().double()
        expected = ridge_edit(weight, keys, sources @ weight.T, 0.5)
        torch.testing.assert_close(weight + edit.changes[name].of(weight), expected, rtol=1e-5, atol=1e-7)


def test_the_largest_weight_of_a_state_that_two_requests_preserve_holds() -> None:
    few, many = Concept(target="cat", preserve=("dog",)), Concept(target="neon", preserve=("dog", "bird", "tree"))
    for concepts in ([few, many], [many, few]):
        rows = PUBLISHED.rows_of(concepts, FitContext(backbone=BACKBONE))
        weights = dict(zip(rows.preserve_labels, rows.preserve_weights.tolist(), strict=True))
        assert weights == {"": 0.5, "dog": 0.5, "bird": 0.25, "tree": 0.25}


def test_the_edit_of_the_rewrite_is_equation_7_layer_by_layer() -> None:
    concept = Concept(target="cat", anchor="dog", preserve=("bird", "tree"))
    eraser = UCE(rows="last-subject", erase_scale=2.0, preserve_scale=0.3, strength=1.0, reg=0.7)
    edit = eraser.fit([concept], FitContext(backbone=BACKBONE))
    target, anchor, *kept = (state(word, 1) for word in ("cat", "dog", "bird", "tree"))
    keys = torch.stack([2.0**0.5 * target, *(0.3**0.5 * one for one in kept)])
    sources = torch.stack([2.0**0.5 * anchor, *(0.3**0.5 * one for one in kept)])
    for name, parameter in tiny.text_weights(BACKBONE).items():
        weight = parameter.detach().double()
        expected = ridge_edit(weight, keys, sources @ weight.T, 0.7)
        torch.testing.assert_close(weight + edit.changes[name].of(weight), expected, rtol=1e-4, atol=1e-6)


def test_templates_pair_words_and_trailing_states_with_the_anchors() -> None:
    rows = UCE(trailing_states=1, strength=1.0).rows_of(
        [Concept(target="umbrella", anchor="fire hydrant")], FitContext(backbone=BACKBONE)
    )
    template = "a photo of a {} in a room"
    prompt, other = fill(template, "umbrella"), fill(template, "fire hydrant")
    assert prompt == "a photo of an umbrella in a room"
    subject, word, trailing = (
        at(rows, "umbrella", f"{template}|{where}") for where in ("subject", "word-1", "trailing-0")
    )
    close(rows.targets[subject], state(prompt, end(prompt) - 4))
    close(rows.anchors[subject], state(other, end(other) - 4))
    close(rows.targets[word], state(prompt, end(prompt) - 1))
    close(rows.anchors[word], state(other, end(other) - 1))
    close(rows.targets[trailing], state(prompt, end(prompt)))
    close(rows.anchors[trailing], state(other, end(other)))


def test_without_an_anchor_a_prompt_becomes_itself_without_the_name() -> None:
    rows = UCE(strength=1.0).rows_of([Concept(target="cat")], FitContext(backbone=BACKBONE))
    template, blank = "a photo of a {} in a room", "a photo in a room"
    prompt = fill(template, "cat")
    trailing, word = (at(rows, "cat", f"{template}|{where}") for where in ("trailing-0", "word-1"))
    close(rows.targets[trailing], state(prompt, end(prompt)))
    close(rows.anchors[trailing], state(blank, end(blank)))
    close(rows.anchors[word], state(blank, end(blank) - 1))
    # "style" of "neon style" has no counterpart in the empty prompt, and becomes what the name becomes.
    rows = UCE(strength=1.0).rows_of([Concept(target="neon", kind="style")], FitContext(backbone=BACKBONE))
    close(rows.anchors[at(rows, "neon", "{} style|word-1")], state("", 1))


@pytest.mark.parametrize("rows", ["last-subject", "published", "templates"])
def test_strength_scales_the_whole_edit(rows: Any) -> None:
    concept = Concept(target="cat", anchor="dog", preserve=("bird",))
    one, more = (
        UCE(rows=rows, strength=strength).fit([concept], FitContext(backbone=BACKBONE)) for strength in (1.0, 1.5)
    )
    name, parameter = next(iter(tiny.text_weights(BACKBONE).items()))
    weight = parameter.detach().double()
    change = one.changes[name].of(weight)
    torch.testing.assert_close(more.changes[name].of(weight), 1.5 * change, rtol=1e-6, atol=1e-9)
    assert change.norm() > 0


def test_each_prompt_weighs_as_much_as_a_published_row() -> None:
    concept = Concept(target="cat", aliases=("kitten",), preserve=("dog",), anchor="bird")
    rows = UCE(erase_scale=2.0, preserve_scale=0.5, anchor_scale=0.7, trailing=0.3).rows_of(
        [concept], FitContext(backbone=BACKBONE)
    )
    for template in templates("object"):
        here = [site.startswith(f"{template}|") for site in rows.sites]
        tail = [site.startswith(f"{template}|trailing") for site in rows.sites]
        assert rows.weights[torch.tensor(here)].sum().item() == pytest.approx(2 * 2.0)
        assert rows.weights[torch.tensor(tail)].sum().item() == pytest.approx(2 * 2.0 * 0.3)
    for name, scale in (("dog", 0.5), ("bird", 0.7)):
        mine = torch.tensor([label == name for label in rows.preserve_labels])
        assert rows.preserve_weights[mine].sum().item() == pytest.approx(scale * len(preserved_templates("object")))


def test_trailing_samples_of_the_templates_cover_the_range() -> None:
    states = BACKBONE.encode([fill(template, "cat") for template in templates("object")])
    rows = UCE().rows_of([Concept(target="cat")], FitContext(backbone=BACKBONE))
    tails = rows.targets[torch.tensor(["trailing" in site for site in rows.sites])]
    distances = torch.cdist(states.states.double().flatten(0, 1), tails).amin(dim=1) < 1e-5
    positions = distances.reshape(len(states), -1).nonzero()[:, 1]
    assert positions.min() <= 3
    assert positions.max() >= tiny.POSITIONS - 5
    assert positions.unique().diff().max() <= 12


def test_a_name_too_long_to_be_read_is_an_error() -> None:
    with pytest.raises(InputError, match="expected a name that the model's text encoder can read"):
        UCE().fit([Concept(target="very " * 100)], FitContext(backbone=BACKBONE))


@pytest.mark.parametrize("rows", ["last-subject", "templates"])
def test_targets_are_erased_and_preserved_prompts_stay(rows: Any) -> None:
    concept = Concept(target="cat", anchor="dog", preserve=("bird",))
    reg = 1e-6 if rows == "last-subject" else 1e-3
    eraser = UCE(rows=rows, strength=1.0, preserve_scale=1.0, trailing=0.75, reg=reg)
    edit = eraser.fit([concept], FitContext(backbone=BACKBONE))
    parameter = next(iter(tiny.text_weights(BACKBONE).values()))
    cat, dog, bird = (state(word, 1) for word in ("cat", "dog", "bird"))
    weight = parameter.detach().double()
    edited = weight + next(iter(edit.changes.values())).of(weight)
    away = (edited @ cat - weight @ dog).norm() / (weight @ cat - weight @ dog).norm()
    moved = (edited @ bird - weight @ bird).norm() / (weight @ bird - weight @ dog).norm()
    limit = 1e-3 if rows == "last-subject" else 0.7
    assert away < limit
    assert moved < limit


@settings(deadline=None, max_examples=8)
@given(order=st.permutations(range(3)), rows=st.sampled_from(["last-subject", "published", "templates"]))
def test_the_order_of_concepts_does_not_matter_to_the_last_bit(order: list[int], rows: Any) -> None:
    concepts = [
        Concept(target="cat", preserve=("bird", "dog")),
        Concept(target="dog", anchor="bird"),
        Concept(target="neon", kind="style", aliases=("neon light",)),
    ]
    one = UCE(rows=rows).fit(concepts, FitContext(backbone=BACKBONE))
    other = UCE(rows=rows).fit([concepts[i] for i in order], FitContext(backbone=BACKBONE))
    weight = next(iter(tiny.text_weights(BACKBONE).values())).detach()
    name = next(iter(one.changes))
    assert torch.equal(one.changes[name].of(weight), other.changes[name].of(weight))


def test_more_reg_changes_less() -> None:
    sizes = []
    for reg in (0.01, 1.0, 100.0):
        edit = UCE(reg=reg).fit([Concept(target="cat")], FitContext(backbone=BACKBONE))
        parameter = next(iter(tiny.text_weights(BACKBONE).values()))
        sizes.append(next(iter(edit.changes.values())).of(parameter.detach()).norm().item())
    assert sizes == sorted(sizes, reverse=True)


def test_a_scale_of_nothing_holds_nothing_in_place() -> None:
    concept = Concept(target="cat", anchor="dog", preserve=("bird",))
    for scales, labels in (
        ({"preserve_scale": 0.0}, {"dog", ""}),
        ({"anchor_scale": 0.0}, {"bird"}),
        ({"preserve_scale": 0.0, "anchor_scale": 0.0}, set()),
    ):
        rows = UCE(**scales).rows_of([concept], FitContext(backbone=BACKBONE))
        assert set(rows.preserve_labels) == labels


def test_class_phrases_hold_what_is_preserved_in_more_that_is_said_of_it() -> None:
    concept = Concept(target="Biscuit", anchor="dog", preserve=("cat",), kind="identity")
    plain, more = (UCE(class_phrases=held).rows_of([concept], FitContext(backbone=BACKBONE)) for held in (False, True))
    torch.testing.assert_close(plain.targets, more.targets)
    added = {site.partition("|")[0] for site in more.preserve_sites} - {
        site.partition("|")[0] for site in plain.preserve_sites
    }
    assert {"a small {}", "an old {}", "a {} standing"} <= added
    style = Concept(target="neon", preserve=("mosaic",), kind="style")
    assert len(UCE(class_phrases=True).rows_of([style], FitContext(backbone=BACKBONE)).preserve) == len(
        UCE().rows_of([style], FitContext(backbone=BACKBONE)).preserve
    )


def test_few_templates_have_trailing_states_that_weigh_as_much_as_those_of_all() -> None:
    context = FitContext(backbone=BACKBONE)
    few, every = (UCE(trailing_templates=number).rows_of([Concept(target="cat")], context) for number in (4, None))
    read, read_in_all = ({site.partition("|")[0] for site in rows.sites if "trailing" in site} for rows in (few, every))
    assert len(read) == 4
    assert read < read_in_all == set(templates("object"))
    behind, behind_in_all = (
        float(sum(w for w, site in zip(rows.weights, rows.sites, strict=True) if "trailing" in site))
        for rows in (few, every)
    )
    assert behind == pytest.approx(behind_in_all)
    assert float(few.weights.sum()) == pytest.approx(float(every.weights.sum()))
    words = {site for site in every.sites if "trailing" not in site}
    assert words == {site for site in few.sites if "trailing" not in site}


def test_names_differ_in_the_templates_whose_trailing_states_are_read() -> None:
    context = FitContext(backbone=BACKBONE)
    rows = UCE(trailing_templates=1).rows_of([Concept(target=name) for name in ("cat", "dog", "fish")], context)
    assert len({site.partition("|")[0] for site in rows.sites if "trailing" in site}) > 1
