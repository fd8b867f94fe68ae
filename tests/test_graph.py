"""ConceptGraph: similarity of concepts by view, and the nearest of some."""

import pytest
import torch
from torch.nn import functional as F

from erasure.backbones import backbone_of
from erasure.graph import ConceptGraph, PromptEncoder, View, text_similarity
from tests import tiny

NAMES = ["cat", "dog", "a cat", "tree", "rocket"]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("view", ["text", "likeness"])
def test_the_nearest_are_sorted_and_hold_no_target(family: str, view: View) -> None:
    backbone = backbone_of(tiny.FAMILIES[family]())
    assert isinstance(backbone, PromptEncoder)
    graph = ConceptGraph.of(backbone, ["Cat", *NAMES, "dog"], views=(view,))
    assert graph.names == ("Cat", *NAMES)
    near = graph.nearest(["Cat"], 4, view=view)
    assert {name for name, _ in near} == {"dog", "a cat", "tree", "rocket"}
    values = [value for _, value in near]
    assert values == sorted(values, reverse=True)
    assert all(-1 - 1e-6 <= value <= 1 + 1e-6 for value in values)
    assert graph.nearest(["Cat"], 1, view=view) == near[:1]
    assert graph.nearest([], 3, view=view) == graph.nearest(NAMES, 3, view=view) == []


def test_of_several_targets_the_nearer_one_counts() -> None:
    graph = ConceptGraph.of(backbone_of(tiny.sd1(vocabulary="clip")), NAMES)
    apart = [dict(graph.nearest([target])) for target in ("cat", "dog")]
    assert dict(graph.nearest(["cat", "dog"])) == {name: max(one[name] for one in apart) for name in NAMES[2:]}


def test_a_name_that_reads_the_same_is_the_nearest() -> None:
    graph = ConceptGraph.of(
        backbone_of(tiny.sd1(vocabulary="clip")), ["cat", "tree", "CAT ,", "rocket"], views=("likeness",)
    )
    assert graph.nearest(["cat"], view="likeness")[0][0] == "CAT ,"


@pytest.mark.parametrize("view", ["text", "likeness"])
def test_a_view_is_symmetric_with_one_on_its_diagonal(view: View) -> None:
    matrix = ConceptGraph.of(backbone_of(tiny.sd1()), NAMES, views=(view,)).views[view]
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(matrix.diagonal(), torch.ones_like(matrix.diagonal()))


def test_text_similarity_is_the_cosine_at_the_end_of_text() -> None:
    backbone = backbone_of(tiny.sd1())
    one, other = (backbone.encode([name]) for name in ("a cat", "a dog"))
    expected = F.cosine_similarity(one.states[0, one.eot[0]], other.states[0, other.eot[0]], dim=0)
    torch.testing.assert_close(text_similarity(backbone, ["a cat"], ["a dog"])[0, 0], expected, atol=1e-5, rtol=1e-5)


def test_a_graph_of_nothing_has_no_neighbours() -> None:
    assert ConceptGraph.of(backbone_of(tiny.sd1()), []).nearest([]) == []
