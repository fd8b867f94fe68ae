"""SPM's facilitated transport: patches scaled by how much a prompt is about their concept (arXiv:2312.16145).

With T the states of a text, all positions of it, and tokens its words':

    gamma_i = max(cos(T(P), T(c_i)), |tokens(P) and tokens(c_i)| / |tokens(c_i)|),  W(P) = W + sum_i gamma_i up_i down_i

The official code multiplies both factors by gamma and sums patches before their product.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones import backbone_of
from ..backbones.base import Ability
from ..backbones.conditioning import Conditioning
from ..errors import InputError
from ..registry import Exactness
from .base import AnyGuidance
from .denoising import Denoising
from .layers import changed_layers
from .texts import PerPrompt, TextGuidance


@dataclass(frozen=True, kw_only=True)
class SPMGuidance(TextGuidance):
    """Adds the patches of targets, each by the gate of the prompt, in both predictions of the guidance.

    Attributes:
        names: Names of each target; the gate is the widest of theirs.
        ups: Left factors of the patches by weight, [targets, out, rank].
        downs: Right factors by weight, [targets, rank, in].
    """

    name: ClassVar[str] = "spm"
    source: ClassVar[str] = "arXiv:2312.16145, code 3dd762e"
    exactness: ClassVar[Exactness] = "published"
    every_prompt: ClassVar[bool] = True
    needs: ClassVar[Ability] = "layer guidance"
    fitted: ClassVar[tuple[str, ...]] = ("ups", "downs")
    quick: ClassVar[Mapping[str, Any]] = {}

    names: tuple[tuple[str, ...], ...] = ()
    ups: Mapping[str, Tensor] = field(default_factory=dict, compare=False)
    downs: Mapping[str, Tensor] = field(default_factory=dict, compare=False)

    @contextmanager
    def applied_to(self, pipe: DiffusionPipeline) -> Generator[DiffusionPipeline]:
        with self.prompts(pipe) as named:
            if not self.ups:
                raise InputError(
                    "spm.ups: expected the patches of a fit, got none. Remove with the eraser spm and gate=transport,"
                    " whose edit has them."
                )
            backbone = backbone_of(pipe)
            concepts = [backbone.encode(list(names)) for names in self.names]
            gates = PerPrompt(self, named, lambda states: torch.tensor([gate(states, concept) for concept in concepts]))
            layers = {name: _layer(backbone.component, name) for name in self.ups}

            def change(name: str, call: Denoising, read: Tensor, output: Tensor) -> Tensor:
                none = torch.zeros(len(self.names))
                rows = torch.stack([none if each is None else each for each in gates()])
                scales = rows.repeat(len(output) // len(rows), 1).to(output)
                return output + self.patched(layers[name], name, read, scales)

            with changed_layers(pipe, layers, torch.no_grad()(change), rows=lambda: len(named()), needs=self.needs):
                yield pipe

    def patched(self, layer: nn.Module, name: str, read: Tensor, scales: Float[Tensor, "n targets"]) -> Tensor:
        """Return the patches' part of a layer's output.

        Args:
            layer: Linear or convolutional layer.
            name: Full name of its weight.
            read: Input of the layer.
            scales: Gate of each target, by image.
        """
        up, down = (each[name].to(read) for each in (self.ups, self.downs))
        rank = down.shape[1]
        gates = scales.repeat_interleave(rank, 1).to(read)
        right, left = down.flatten(0, 1), up.movedim(0, 1).flatten(1)
        if isinstance(layer, nn.Conv2d):
            n = layer.groups
            kernel = right.view(len(right), -1, *layer.kernel_size).repeat(n, 1, 1, 1)
            inner = F.conv2d(read, kernel, None, layer.stride, cast("Any", layer.padding), layer.dilation, n)
            return F.conv2d(inner * gates.repeat(1, n)[:, :, None, None], left[:, :, None, None], groups=n)
        inner = read @ right.T
        return (inner * gates.view(len(gates), *[1] * (inner.ndim - 2), -1)) @ left.T

    @classmethod
    def merged(cls: type[AnyGuidance], parts: Sequence[AnyGuidance]) -> tuple[AnyGuidance, ...]:
        """Return one guidance for all whose patches are of one rank and of the same weights, in the order of names."""
        groups: dict[object, list[SPMGuidance]] = {}
        for part in cast("Sequence[SPMGuidance]", parts):
            shapes = tuple((name, down.shape[1:]) for name, down in part.downs.items())
            groups.setdefault((part.only_named, shapes), []).append(part)
        return cast("tuple[AnyGuidance, ...]", tuple(_joined(members) for members in groups.values()))


def _joined(parts: Sequence[SPMGuidance]) -> SPMGuidance:
    parts = sorted(parts, key=lambda part: part.names)
    return replace(
        parts[0],
        concepts=tuple(dict.fromkeys(name for part in parts for name in part.concepts)),
        names=tuple(names for part in parts for names in part.names),
        ups={name: torch.cat([part.ups[name] for part in parts]) for name in parts[0].ups},
        downs={name: torch.cat([part.downs[name] for part in parts]) for name in parts[0].downs},
    )


def gate(prompt: Conditioning, names: Conditioning) -> float:
    """Return the gate of a prompt for a concept of some names, in [0, 1]."""
    states = prompt.states.flatten().double()
    tokens = _tokens(prompt, 0)
    gates = []
    for row in range(len(names)):
        cosine = float(F.cosine_similarity(states, names.states[row].flatten().double(), dim=0))
        words = _tokens(names, row)
        gates.append(max(cosine, len(tokens & words) / len(words)))
    return min(max(*gates, 0.0), 1.0)


def _tokens(texts: Conditioning, row: int) -> set[int]:
    """Return the ids of a text's words."""
    return {int(texts.ids[row, i]) for i, (start, end) in enumerate(texts.offsets[row]) if end > start}


def _layer(component: Any, name: str) -> nn.Module:
    part, _, path = name.rpartition(".")[0].partition(".")
    return component(part).get_submodule(path)
