"""The type checks that every test runs under: what is wrong is refused, as by jaxtyping's own decorator."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import beartype
import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from erasure import progress
from erasure.closed_form.solve import ridge_edit
from tests.type_checks import checked

check = checked(typechecker=beartype.beartype)


def test_the_product_is_checked() -> None:
    with pytest.raises(TypeCheckError):
        progress.Progress(stage=1, done=0, total=1)
    with pytest.raises(TypeCheckError):
        ridge_edit(torch.zeros(2, 3), torch.zeros(4, 5), torch.zeros(4, 2), 1.0)  # keys as wide as the weight is not


def summed(numbers: list[int], scale: float = 1.0) -> float:
    return sum(numbers) * scale if scale else "nothing"


def product(left: Float[Tensor, "n k"], right: Float[Tensor, "k m"]) -> Float[Tensor, "n m"]:
    return left @ right if left.shape[0] > 1 else left


@pytest.mark.parametrize("arguments", [([1], "2"), (["1"], 2.0), ([1], 0.0)])
def test_arguments_and_results_are_of_their_type(arguments: Any) -> None:
    assert check(summed)([1, 2], scale=0.5) == 1.5
    with pytest.raises(TypeCheckError):
        check(summed)(*arguments)


@pytest.mark.parametrize("shapes", [((2, 3), (4, 5)), ((1, 3), (3, 5))])
def test_axes_agree(shapes: Any) -> None:
    assert check(product)(torch.ones(2, 3), torch.ones(3, 5)).shape == (2, 5)
    with pytest.raises(TypeCheckError):
        check(product)(*map(torch.ones, shapes))


def inner(offset: int) -> Callable[..., Any]:
    @check
    def shifted(values: Float[Tensor, " n"], *further: int, twice: bool = False, **named: str) -> Float[Tensor, " n"]:
        """Return values, shifted."""
        result = values + offset + sum(further)
        return result[:1] if named else result * (1 + twice)

    return shifted


def test_an_inner_function_is_the_one_defined_last_and_checked_each_time() -> None:
    for offset in (1, 2):
        shifted = inner(offset)
        assert shifted(torch.zeros(2), 3, twice=True).tolist() == [2 * (offset + 3)] * 2
        assert shifted.__doc__ == "Return values, shifted."
        for wrong in ({"twice": 1}, {"name": 1}, {"name": "short"}):
            with pytest.raises(TypeCheckError):
                shifted(torch.zeros(2), **wrong)
        with pytest.raises(TypeCheckError):
            shifted(torch.zeros(2, 2))
        with pytest.raises(TypeCheckError):
            shifted(torch.zeros(2), "3")


def annotated(kind: type) -> Callable[..., Any]:
    @check
    def same(value: kind) -> kind:  # pyright: ignore
        return value

    return same


def test_inner_functions_of_other_annotations_are_checked_by_their_own() -> None:
    for kind, value, other in ((int, 1, "1"), (str, "1", 1), (int, 1, "1")):
        assert annotated(kind)(value) == value
        with pytest.raises(TypeCheckError):
            annotated(kind)(other)


@check
@dataclass(frozen=True)
class Pair:
    name: str
    rows: Float[Tensor, "n k"]
    weights: Float[Tensor, " n"]


def test_fields_are_of_their_type_and_shape() -> None:
    Pair("a", torch.ones(2, 3), torch.ones(2))
    for wrong in ((1, torch.ones(2, 3), torch.ones(2)), ("a", torch.ones(2, 3), torch.ones(3))):
        with pytest.raises(TypeCheckError):
            Pair(*wrong)


@runtime_checkable
class Named(Protocol):
    @property
    def name(self) -> str: ...

    def rename(self, name: str) -> None: ...


class Defined:
    @property
    def name(self) -> str:
        raise AssertionError("a check reads no value")

    def rename(self, name: str) -> None: ...


class Assigned:
    def __init__(self, *, whole: bool) -> None:
        self.rename = print
        if whole:
            self.name = "a"


def test_a_protocol_is_met_by_its_members() -> None:
    @check
    def read(named: Named) -> bool:
        return True

    assert read(Defined())
    assert read(Assigned(whole=True))
    for wrong in (Assigned(whole=False), object(), "a"):
        with pytest.raises(TypeCheckError):
            read(wrong)
