"""The student: the weights under training, beside the pipeline's own."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# diffusers' and torch's checkpointing have types in part.

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple, ParamSpec, TypeVar, cast

import torch
from diffusers import ModelMixin
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from ..backbones.base import Backbone
from ..edits import DenseChange, LowRankChange
from ..errors import InputError
from ..registry import Settings

P = ParamSpec("P")
R = TypeVar("R")
Part = Literal["weight", "up", "down", "rows"]


class Leaf(NamedTuple):
    """Address of one tensor that the optimiser moves.

    Attributes:
        name: Full parameter name.
        part: The whole weight, a factor of its patch, or its last rows.
    """

    name: str
    part: Part


class Student:
    """The weights under training, dense or as low-rank patches of the pipeline's."""

    def __init__(
        self,
        backbone: Backbone,
        which: Callable[[str], bool],
        rank: int | None,
        generator: torch.Generator,
        last_rows: Mapping[str, int] | None = None,
    ) -> None:
        last_rows = last_rows or {}
        self._originals = {
            name: parameter
            for name, parameter in backbone.parameters(lambda name: which(name) or name in last_rows).items()
            if rank is None or parameter.ndim > 1  # a vector has no low rank
        }
        if not self._originals:
            raise InputError("finetune.which: expected parameters to train, got none. Choose names that the model has.")
        largest = max((min(each.flatten(1).shape) for each in self._originals.values() if each.ndim > 1), default=0)
        if rank is not None and rank > largest:
            raise InputError(
                f"finetune.rank: expected at most {largest}, the full rank of the weights to train, got {rank}."
                " Lower it, or leave it out to train full weights."
            )
        self._dense: dict[str, Tensor] = {}
        self._ups: dict[str, Tensor] = {}
        self._downs: dict[str, Tensor] = {}
        self._tails: dict[str, Tensor] = {}
        for name, original in self._originals.items():
            if name in last_rows:
                self._tails[name] = original[-last_rows[name] :].detach().float().clone().requires_grad_()
            elif rank is None:
                self._dense[name] = original.detach().float().clone().requires_grad_()
            else:
                rows, columns = original.flatten(1).shape
                down = torch.randn(rank, columns, generator=generator) / rank  # as LoRA: the patch starts at zero
                self._downs[name] = down.to(original.device).requires_grad_()
                self._ups[name] = torch.zeros(rows, rank, device=original.device, requires_grad=True)
        self._offsets: Mapping[Leaf, Tensor] = {}
        self._scope = _Scope(backbone, self._originals)

    def __call__(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Return `function(*args, **kwargs)` computed while the pipeline's models have the student's weights."""
        return functional_call(self._scope, self.weights(), (function, args, kwargs))

    def by(self, model: Literal["student", "frozen"], function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Return `function(*args, **kwargs)` computed with the student's weights or with those in force."""
        return function(*args, **kwargs) if model == "frozen" else self(function, *args, **kwargs)

    def recomputed(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the value of a call whose activations are computed again in the backward pass, not kept for it.

        For sums of many passes, whose activations together would not fit into memory.
        """
        return cast("R", checkpoint(self, function, *args, use_reentrant=False, **kwargs))

    @property
    def leaves(self) -> dict[Leaf, Tensor]:
        """The tensors that the optimiser moves, float32: weights, factors of patches, then last rows."""
        return {
            **{Leaf(name, "weight"): leaf for name, leaf in self._dense.items()},
            **{Leaf(name, "up"): leaf for name, leaf in self._ups.items()},
            **{Leaf(name, "down"): leaf for name, leaf in self._downs.items()},
            **{Leaf(name, "rows"): leaf for name, leaf in self._tails.items()},
        }

    @property
    def trained(self) -> list[Tensor]:
        """The tensors that the optimiser moves, in the order of `leaves`."""
        return list(self.leaves.values())

    @torch.no_grad()
    def displace(
        self,
        start: Callable[[Tensor, torch.Generator], Tensor],
        generator: torch.Generator,
        limits: Iterable[Callable[[Mapping[Leaf, Tensor]], Mapping[Leaf, Tensor]]] = (),
    ) -> None:
        """Move each whole weight by the offset at which it starts, within the limits.

        Raises:
            InputError: Patches are trained, which start at zero.
        """
        if self._ups:
            raise InputError("shape.reset: expected whole weights to train, got patches. Leave rank out.")
        offsets: Mapping[Leaf, Tensor] = {
            Leaf(name, "weight"): start(self._originals[name], generator) for name in self._dense
        }
        for limit in limits:
            offsets = limit(offsets)
        for leaf, offset in offsets.items():
            self._dense[leaf.name] += offset

    @torch.no_grad()
    def pull_back(self, share: float) -> None:
        """Move each change back by a share of itself: a patch by its left factor, last rows to those of the model."""
        for name, weight in self._dense.items():
            weight.lerp_(self._originals[name].float(), share)
        for name, rows in self._tails.items():
            rows.lerp_(self._originals[name][-len(rows) :].float(), share)
        for up in self._ups.values():
            up.mul_(1 - share)

    @contextmanager
    def moved(self, offsets: Mapping[Leaf, Tensor]) -> Generator[None]:
        """Run the model with `leaf + offset` for the length of a `with`; no leaf changes.

        A gradient by the leaves is that at the moved weights. A backward pass belongs inside the `with` as well.
        """
        before, self._offsets = self._offsets, offsets
        try:
            yield
        finally:
            self._offsets = before

    def weights(self) -> dict[str, Tensor]:
        """Return the weights by full parameter name, with gradient, in the dtype of the model."""
        dense = {name: self._moved(name, "weight").to(self._originals[name].dtype) for name in self._dense}
        patched = {
            name: (original.float() + self._patch(name).view_as(original)).to(original.dtype)
            for name, original in self._originals.items()
            if name in self._ups
        }
        grown = {
            name: torch.cat(
                [self._originals[name][: -len(tail)], self._moved(name, "rows").to(self._originals[name].dtype)]
            )
            for name, tail in self._tails.items()
        }
        return dense | patched | grown

    def shifts(self) -> dict[str, Float[Tensor, "..."]]:
        """Return the change of each weight, by full parameter name, float32 with gradient.

        A parameter that is trained in its last rows has the change of those rows alone.
        """
        return {name: self._shift(name, original) for name, original in self._originals.items()}

    def _shift(self, name: str, original: Tensor) -> Tensor:
        if name in self._dense:
            return self._moved(name, "weight") - original.float()
        if name in self._tails:
            return self._moved(name, "rows") - original[-len(self._tails[name]) :].float()
        return self._patch(name).view_as(original)

    def _patch(self, name: str) -> Float[Tensor, "out in"]:
        return self._moved(name, "up") @ self._moved(name, "down")

    def _moved(self, name: str, part: Part) -> Tensor:
        """Return a leaf with its offset."""
        leaf = {"weight": self._dense, "up": self._ups, "down": self._downs, "rows": self._tails}[part][name]
        offset = self._offsets.get(Leaf(name, part))
        return leaf if offset is None else leaf + offset

    def changes(self) -> dict[str, DenseChange | LowRankChange]:
        """Return the learned changes, by full parameter name, as float32 on the CPU; see `shifts` for last rows."""
        return {
            name: (
                LowRankChange(up=self._ups[name].detach().cpu(), down=self._downs[name].detach().cpu())
                if name in self._ups
                else DenseChange(delta=self._shift(name, original).detach().cpu())
            )
            for name, original in self._originals.items()
        }


@dataclass(frozen=True, kw_only=True)
class Reset(Settings):
    """Distil-and-reset: a student that is no longer a copy of its reference learns its predictions again.

    Each matrix and kernel W under training starts at

        (1 - share) W + share sigma N,   sigma = standard deviation of the entries of W, N standard normal,

    vectors (biases, factors of norms) start as they are. What the student has learned back at the end is what the
    losses asked for; a concept that none of them showed it is not there to be uncovered by a short fine-tuning. The
    cost is a longer training, and an edit that changes every weight.

    After UNDO (arXiv:2506.06278), which blends a language model that has unlearned before it distils.
    Differs from the paper: the teacher is the reference, and the objective takes the concept off its predictions; noise
    has each layer's own size.

    Attributes:
        share: Share of noise in each layer, in (0, 1]; 0.1 to 0.6 is the range from cheap to robust.
    """

    name: ClassVar[str] = "reset"

    share: Annotated[float, Field(gt=0, le=1)] = 0.3

    def offset(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return the start of a weight less the weight itself, in float32."""
        if weight.ndim < 2:
            return torch.zeros_like(weight, dtype=torch.float32)
        weight = weight.detach().float()
        drawn = torch.randn(weight.shape, generator=generator).to(weight)
        return self.share * (weight.std(correction=0) * drawn - weight)


@contextmanager
def at_rest(backbone: Backbone) -> Generator[None]:
    """Keep the pipeline's modules from collecting gradients and from dropping out; restore both on exit."""
    roots = [part for part in backbone.pipe.components.values() if isinstance(part, nn.Module)]
    modules = {module: module.training for root in roots for module in root.modules()}
    parameters = {parameter: parameter.requires_grad for root in roots for parameter in root.parameters()}
    try:
        for module in modules:
            module.training = False
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modules.items():
            module.training = training
        for parameter, required in parameters.items():
            parameter.requires_grad_(required)


@contextmanager
def checkpointed(backbone: Backbone) -> Generator[None]:
    """Have the blocks of the denoiser computed again in the backward pass, for the length of a `with`."""
    denoiser = cast("ModelMixin", backbone.denoiser)
    before = denoiser.is_gradient_checkpointing
    denoiser.enable_gradient_checkpointing()
    try:
        yield
    finally:
        if not before:
            denoiser.disable_gradient_checkpointing()


class _Scope(nn.Module):
    """Models under the first part of their parameters' full names; its forward runs any function."""

    def __init__(self, backbone: Backbone, names: Iterable[str]) -> None:
        super().__init__()
        for component in dict.fromkeys(name.partition(".")[0] for name in names):
            self.add_module(component, backbone.component(component))

    def forward(self, function: Callable[..., R], args: tuple[object, ...], kwargs: dict[str, object]) -> R:
        return function(*args, **kwargs)
