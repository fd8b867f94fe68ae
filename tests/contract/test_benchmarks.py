"""Contract of the benchmarks: every registered one is held to it."""

import pytest

from erasure.errors import UnknownNameError
from erasure.eval.benchmarks import benchmark_class, benchmark_names
from tests import pieces


@pytest.mark.parametrize("name", benchmark_names())
def test_it_is_a_piece_that_states_its_origin_and_how_it_is_sampled(name: str) -> None:
    kind = benchmark_class(name)
    pieces.check(kind)
    assert kind.version >= 1
    assert all((kind.source, kind.licence, kind.seeds, kind.published_scheduler))
    assert kind.steps > 0
    assert kind.guidance_scale > 0


@pytest.mark.parametrize("name", benchmark_names())
def test_its_quick_items_are_whole_and_have_cases_of_their_own(name: str) -> None:
    kind = benchmark_class(name)
    if kind.lists and not kind.quick:
        return  # its prompts come from a file that only a reader has
    items = kind(**kind.quick).items
    assert items
    assert len({item.case for item in items}) == len(items)
    assert all(item.prompt == item.prompt.strip() != "" and item.seed >= 0 for item in items)
    assert kind(**kind.quick).items == items


def test_an_unknown_benchmark_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'imagenette'"):
        benchmark_class("imagenete")
