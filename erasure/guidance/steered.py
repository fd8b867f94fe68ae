"""Guidance along fitted directions in the outputs of cross-attention."""

from abc import abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, cast

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from ..backbones import backbone_of
from ..backbones.attention import layers_named
from ..errors import InputError
from .base import AnyGuidance
from .denoising import Denoising
from .layers import changed_layers, with_rows
from .texts import TextGuidance


@dataclass(frozen=True, kw_only=True)
class SteeredGuidance(TextGuidance):
    """Change of the outputs h of cross-attention layers, pixel by pixel, along a direction of each target.

    Attributes:
        targets: Target of each row of the tensors, in the order of the names.
        branches: Predictions that are changed: those for the prompts ("conditional"), or the unconditional ones too
            ("both").
        directions: Rows of the targets by layer, [targets, timesteps, channels]; zeros where a layer is left alone.
    """

    fitted: ClassVar[tuple[str, ...]] = ("directions",)
    every_prompt: ClassVar[bool] = True

    targets: tuple[str, ...] = ()
    branches: Literal["conditional", "both"] = "conditional"
    directions: Mapping[str, Tensor] = field(default_factory=dict, compare=False)

    @abstractmethod
    def steered(
        self, layer: str, output: Float[Tensor, "n pixels channels"], timestep: float
    ) -> Float[Tensor, "n pixels channels"]:
        """Return the output of a layer without the targets."""

    @contextmanager
    def applied_to(self, pipe: DiffusionPipeline) -> Generator[DiffusionPipeline]:
        with self.prompts(pipe) as named:
            if not self.directions:
                raise InputError(
                    f"{self.name}.directions: expected the directions of a fit, got none. Remove with the eraser"
                    f" {self.name}, whose edit has them."
                )

            def change(layer: str, call: Denoising, read: Tensor, output: Tensor) -> Tensor:
                rows, timestep = self.acted_on(named), float(call.timestep.reshape(-1)[0])
                return with_rows(
                    call,
                    output,
                    rows,
                    lambda part: self.steered(layer, part, timestep),
                    unconditional=self.branches == "both",
                )

            layers = layers_named(backbone_of(pipe), list(self.directions))
            with changed_layers(pipe, layers, torch.no_grad()(change), rows=lambda: len(named())):
                yield pipe

    @classmethod
    def merged(cls: type[AnyGuidance], parts: Sequence[AnyGuidance]) -> tuple[AnyGuidance, ...]:
        """Return one guidance for all that have the same settings, with the rows of all, by target."""
        groups: list[tuple[SteeredGuidance, list[SteeredGuidance]]] = []
        for part in cast("Sequence[SteeredGuidance]", parts):
            plain = replace(part, concepts=(), targets=())
            members = next((members for kind, members in groups if kind == plain), None)
            if members is None:
                groups.append((plain, [part]))
            else:
                members.append(part)
        return cast("tuple[AnyGuidance, ...]", tuple(_joined(members) for _, members in groups))


def _joined(parts: Sequence[SteeredGuidance]) -> SteeredGuidance:
    """Return one guidance with the rows of several; a target that two name has two rows."""
    rows = [(target, i, row) for i, part in enumerate(parts) for row, target in enumerate(part.targets)]
    rows.sort(key=lambda each: each[0])
    tensors = {}
    for name in parts[0].fitted:
        stored = [cast("Mapping[str, Tensor]", getattr(part, name)) for part in parts]
        layers = {layer: tensor for each in stored for layer, tensor in each.items()}
        tensors[name] = {
            layer: torch.stack([_row(stored[i], layer, row, tensor) for _, i, row in rows])
            for layer, tensor in layers.items()
        }
    return replace(
        parts[0],
        concepts=tuple(dict.fromkeys(name for part in parts for name in part.concepts)),
        targets=tuple(target for target, _, _ in rows),
        **tensors,
    )


def _row(stored: Mapping[str, Tensor], layer: str, row: int, like: Tensor) -> Tensor:
    """Return a target's row of a layer; zeros where its fit left the layer alone."""
    return stored[layer][row] if layer in stored else torch.zeros_like(like[0])
