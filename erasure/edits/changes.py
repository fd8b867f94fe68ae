"""Changes of single weights: dense, low-rank, by a map that all projections share, to be solved for, or a sum."""
# pyright: reportUnnecessaryIsInstance=false
# A caller without a type checker gets one line too.

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..arguments import checks_arguments
from ..backbones.conditioning import POOLED, TEXT
from ..backbones.loaded import is_finite
from ..closed_form.joint import joined_rows
from ..closed_form.problem import Rows, TextMap
from ..closed_form.solve import solve
from ..errors import InputError
from ..typed_torch import vector_norm

LARGEST = 65504.0
"""Largest norm of a change: the largest number of float16, in which models are stored and run."""


@checks_arguments
@dataclass(frozen=True, kw_only=True, eq=False)
class DenseChange:
    """The change of one weight, entry by entry.

    Attributes:
        delta: New weight minus old weight.
    """

    delta: Float[Tensor, "..."]

    @cached_property
    def norm(self) -> float:
        """Norm of the change."""
        return float(vector_norm(self.delta))

    def of(self, weight: Tensor) -> Tensor:
        """Return the difference of the new weight and `weight`, in float64."""
        return self.delta.to(weight.device, torch.float64)

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the low-rank factors (up, down) of the difference in float64, or None if it has none."""
        return None

    def scaled(self, factor: float) -> "DenseChange":
        """Return the change multiplied by `factor`."""
        return DenseChange(delta=self.delta * factor)


@checks_arguments
@dataclass(frozen=True, kw_only=True, eq=False)
class LowRankChange:
    """A change `up @ down` of one linear layer or convolution; the axes of a kernel after the first count as one.

    Attributes:
        up: Left factor.
        down: Right factor.
    """

    up: Float[Tensor, "out rank"]
    down: Float[Tensor, "rank in"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "up", restorable(self.up))
        object.__setattr__(self, "down", restorable(self.down))

    @cached_property
    def norm(self) -> float:
        """Norm of the change."""
        return _product_norm(self.up.double(), self.down.double().T)

    def of(self, weight: Tensor) -> Tensor:
        """Return the difference of the new weight and `weight`, in float64."""
        product = self.up.to(weight.device, torch.float64) @ self.down.to(weight.device, torch.float64)
        return product.reshape(weight.shape)

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the low-rank factors (up, down) of the difference in float64."""
        return self.up.double(), self.down.double()

    def scaled(self, factor: float) -> "LowRankChange":
        """Return the change multiplied by `factor`."""
        return LowRankChange(up=self.up * factor, down=self.down)


@checks_arguments
@dataclass(frozen=True, kw_only=True, eq=False)
class MapChange:
    """A change `W M - W` by a linear map of text states that several projections share; stored once for all of them.

    Attributes:
        map: The map M.
        space: The text stream whose states it maps. A weight that reads sentence vectors may have further columns
            behind theirs, which stay.
    """

    map: TextMap
    space: str = TEXT

    def __post_init__(self) -> None:
        u, v = restorable(self.map.u), None if self.map.v is None else restorable(self.map.v)
        if u is not self.map.u or v is not self.map.v:
            object.__setattr__(self, "map", TextMap(u=u, v=v))

    @cached_property
    def norm(self) -> float:
        """|M - I|_F."""
        u, v = self.map.u, self.map.v
        return float(vector_norm(u)) if v is None else _product_norm(u, v)

    def of(self, weight: Tensor) -> Tensor:
        """Return the difference of the new weight and `weight`, in float64."""
        return self.map.change_of(weight, leading=self.space == POOLED)

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the low-rank factors (up, down) of the difference in float64, or None if the map has none."""
        return self.map.factors_of(weight, leading=self.space == POOLED)

    def scaled(self, factor: float) -> "MapChange":
        """Return the change multiplied by `factor`."""
        return MapChange(map=self.map.scaled(factor), space=self.space)


@checks_arguments
@dataclass(frozen=True, kw_only=True, eq=False)
class SolvedChange:
    """The change by the map that solves the rows of its edit; the solution is computed on first use.

    Rows take less space than the map, and a ledger, which solves many removals at once, needs no single map.

    Attributes:
        rows: The least-squares problem.
        size: |M - I|_F when the edit was stored, which a later solve is checked against; None before it is stored.
    """

    rows: Rows
    size: float | None = None

    @cached_property
    def as_map(self) -> MapChange:
        """The change with its map."""
        return MapChange(map=solve(joined_rows([self.rows])), space=self.space)

    @property
    def space(self) -> str:
        """The text stream whose states are mapped."""
        return self.rows.space

    @cached_property
    def norm(self) -> float:
        """|M - I|_F of the solution."""
        return float(vector_norm(self.as_map.map.minus_identity()))

    def of(self, weight: Tensor) -> Tensor:
        """Return the difference of the new weight and `weight`, in float64."""
        return self.as_map.of(weight)

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the low-rank factors (up, down) of the difference in float64, or None if the map has none."""
        return self.as_map.factors(weight)

    def scaled(self, factor: float) -> MapChange:
        """Return the change multiplied by `factor`."""
        return self.as_map.scaled(factor)


@checks_arguments
@dataclass(frozen=True, kw_only=True, eq=False)
class SumChange:
    """The sum of several changes of one weight, each computed from the weight of the base.

    Attributes:
        parts: The changes.
    """

    parts: tuple["Change", ...]

    @property
    def norm(self) -> float:
        """Sum of the norms of the parts."""
        return sum(part.norm for part in self.parts)

    def of(self, weight: Tensor) -> Tensor:
        """Return the difference of the new weight and `weight`, in float64."""
        total = self.parts[0].of(weight)
        for part in self.parts[1:]:
            total = total + part.of(weight)
        return total

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the low-rank factors (up, down) of the difference in float64, or None if a part has none."""
        pairs = [pair for part in self.parts if (pair := part.factors(weight)) is not None]
        if len(pairs) < len(self.parts):
            return None
        return torch.cat([up for up, _ in pairs], dim=1), torch.cat([down for _, down in pairs])

    def scaled(self, factor: float) -> "SumChange":
        """Return the change multiplied by `factor`."""
        return SumChange(parts=tuple(part.scaled(factor) for part in self.parts))


def single_changes(change: "Change") -> tuple["Change", ...]:
    """Return the changes that a sum consists of, sums within it taken apart; any other change is its own."""
    if not isinstance(change, SumChange):
        return (change,)
    return tuple(single for part in change.parts for single in single_changes(part))


def restorable(factor: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Return the factor in a layout that a file can restore: rows or columns one after another.

    The rounding of a matrix product depends on the layout of its factors in memory.
    """
    return factor if factor.is_contiguous() or factor.T.is_contiguous() else factor.contiguous()


Change = DenseChange | LowRankChange | MapChange | SolvedChange | SumChange


def check_size(changes: Mapping[str, Change], where: str) -> None:
    """Refuse what is no change, and changes that are not finite or absurdly large.

    A solution that was stored is judged by its norm in the file, without solving again.

    Args:
        changes: By parameter name.
        where: Origin of the changes, for the error.

    Raises:
        InputError: A norm is not a number up to `LARGEST`.
    """
    seen: set[int] = set()
    for name, change in changes.items():
        if id(change) in seen:  # many weights share one
            continue
        if not isinstance(change, Change):
            raise InputError(f"edit.changes: expected a change of {name!r}, got {change!r}. See `erasure.edits`.")
        seen.add(id(change))
        stored = change.size if isinstance(change, SolvedChange) else None
        norm = change.norm if stored is None else stored
        if not 0 <= norm <= LARGEST:  # a nan is not
            raise InputError(
                f"{where}: expected a change of {name!r} that is finite and of a norm up to {LARGEST:.0f}, got one of"
                f" {norm:.3g}. Use milder settings, or mend the weights that it is from."
            )


def _product_norm(left: Tensor, right: Tensor) -> float:
    """Return |left right^T|_F without the product."""
    squared = ((left.T @ left) * (right.T @ right)).sum()
    return float(squared.clamp(min=0.0).sqrt())  # rounding may leave a small negative number


@contextmanager
def exchanged(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> Generator[None]:
    """Give parameters other weights for the length of a `with`; on exit the original tensors are put back."""
    originals = {name: parameter.data for name, parameter in parameters.items()}
    waiting = dict(weights)
    del weights  # so that a model that is moved to another device inside does not leave them behind
    try:
        for name, parameter in parameters.items():
            parameter.data = waiting.pop(name).to(parameter.device, parameter.dtype)
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = originals[name].to(parameter.device, parameter.dtype)


def edited_weights(weights: Mapping[str, Tensor], changes: Mapping[str, Change]) -> dict[str, Tensor]:
    """Return the changed weights; computed in float64 and rounded once, so undoing never needs to subtract.

    Raises:
        InputError: A change has another shape than its weight, or an edited weight is not finite.
    """
    # All results are allocated before the work in float64: the memory that it frees is contiguous then and is reused.
    edited = {name: torch.empty_like(weight) for name, weight in weights.items()}
    for name, weight in weights.items():
        edited[name].copy_(_exactly_edited(name, weight, changes[name]))
        if not is_finite(edited[name]):
            raise InputError(
                f"edit: expected finite weights, got inf or nan in the edited {name!r} as"
                f" {str(weight.dtype).removeprefix('torch.')}. Check the model's weights, or load it in float32."
            )
    return edited


def on_float64_device(weight: Tensor) -> Tensor:
    """Return the weight on a device that has float64, which Apple's GPUs do not."""
    return weight.cpu() if weight.device.type == "mps" else weight


def _exactly_edited(name: str, weight: Tensor, change: Change) -> Tensor:
    """Return the changed weight in float64."""
    exact = on_float64_device(weight).to(torch.float64, copy=True)
    try:
        delta = change.of(exact)
    except RuntimeError as error:
        raise InputError(f"edit: expected a change that fits {name!r} {tuple(weight.shape)}, got {error}.") from error
    if delta.shape != weight.shape:
        raise InputError(
            f"edit: expected a change of {name!r} with shape {tuple(weight.shape)}, got {tuple(delta.shape)}."
        )
    exact += delta  # in place: a further copy of so much memory costs measurable time
    return exact
