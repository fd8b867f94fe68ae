"""AdaVD: the concept's direction off each token's value (Wang et al., CVPR 2025, arXiv:2412.06143).

With v the value of a token of the prompt and t that of the concept's last token, in each layer of cross-attention, less
the layer's bias, which every text has:

    v' = v - delta (<v, t> / <t, t>) t,  delta = strength sigmoid(slope (cos(v, t) - threshold))

Several concepts are made orthogonal by Gram-Schmidt, B = L T, and v' = v - sum_k (<b_k, v> / <b_k, b_k>) sum_i L_ki
delta_i t_i.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from annotated_types import Ge
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from ..backbones import backbone_of
from ..backbones.base import Ability, Backbone
from ..registry import Exactness
from .base import NamedPrompts
from .denoising import Denoising
from .layers import changed_layers
from .texts import TextGuidance

# A shift this small is none, so that a token far from the concepts keeps every bit.
_NONE = 1e-3
# A target of which less than this share of the square is new lies in the span of those before it.
_SPANNED = 1e-6


@dataclass(frozen=True, kw_only=True)
class AdaVDGuidance(TextGuidance):
    """Removal of concepts from the values of the prompt's tokens, more from those that point at them.

    Attributes:
        strength: Largest shift (s), >= 0: 1 projects a concept out, 2 mirrors it.
        slope: Steepness of the shift in the cosine (p), >= 0.
        threshold: Cosine at which the shift is half its largest (epsilon).
        shifted: Whether tokens are told apart by their cosine; else every token is shifted by 1.
        branches: Values that are compared and changed: those of the prompt ("conditional"), or those of the
            unconditional text beside them ("joint").
    """

    name: ClassVar[str] = "adavd"
    source: ClassVar[str] = "arXiv:2412.06143, code c2d2962"
    exactness: ClassVar[Exactness] = "published"
    every_prompt: ClassVar[bool] = True
    needs: ClassVar[Ability] = "layer guidance"
    quick: ClassVar[Mapping[str, Any]] = {"threshold": -1.0}

    strength: Annotated[float, Ge(0)] = 2.0
    slope: Annotated[float, Ge(0)] = 100.0
    threshold: float = 0.93
    shifted: bool = True
    branches: Literal["conditional", "joint"] = "conditional"

    @contextmanager
    def applied_to(self, pipe: DiffusionPipeline) -> Generator[DiffusionPipeline]:
        with self.prompts(pipe) as named:
            values = _Values(self, pipe, named)
            with changed_layers(pipe, values.layers, values.changed, rows=lambda: len(named()), needs=self.needs):
                yield pipe

    def without(
        self, values: Float[Tensor, "tokens dim"], targets: Float[Tensor, "tokens k dim"]
    ) -> Float[Tensor, "tokens dim"]:
        """Return values without the targets, which may differ by token."""
        return values - self.removed(values, targets)

    def removed(
        self, values: Float[Tensor, "tokens dim"], targets: Float[Tensor, "tokens k dim"]
    ) -> Float[Tensor, "tokens dim"]:
        """Return the part of values that is taken off them."""
        n, k = targets.shape[:2]
        if self.shifted:
            cosines = torch.cosine_similarity(values[:, None], targets, dim=-1)
            shifts = self.strength * torch.sigmoid(self.slope * (cosines - self.threshold))
            shifts = torch.where(shifts < _NONE, 0, shifts)
        else:
            shifts = torch.ones(n, k).to(values)
        removed = torch.zeros_like(values)
        bases: list[tuple[Tensor, Tensor, Tensor]] = []  # b_k, its square, its row of L
        for i in range(k):
            base, weights = targets[:, i], torch.zeros(n, k).to(values)
            weights[:, i] = 1
            for other, square, row in bases:
                share = (targets[:, i] * other).sum(-1, keepdim=True) / square
                base, weights = base - share * other, weights - share * row
            square = base.square().sum(-1, keepdim=True)
            spanned = square <= _SPANNED * targets[:, i].square().sum(-1, keepdim=True)
            base, square = torch.where(spanned, 0, base), torch.where(spanned, 1, square)
            bases.append((base, square, weights))
            share = (base * values).sum(-1, keepdim=True) / square
            removed += share * ((weights * shifts)[..., None] * targets).sum(1)
        return removed


class _Values:
    """The values of one pipeline's denoiser."""

    def __init__(self, settings: AdaVDGuidance, pipe: DiffusionPipeline, named: NamedPrompts) -> None:
        self.settings, self.named = settings, named
        backbone: Backbone = backbone_of(pipe)
        concepts = sorted(dict.fromkeys(settings.concepts))
        states = backbone.read(concepts)
        last = [states.word_positions(row, concept)[-1] for row, concept in enumerate(concepts)]
        self.concepts = states.states[range(len(concepts)), last].detach()
        weights = [name for name in backbone.sites({"cross.v"}) if name.endswith(".weight")]
        names = [name.removesuffix(".weight").partition(".")[2] for name in weights]
        self.layers = {name: backbone.denoiser.get_submodule(name) for name in names}

    @torch.no_grad()
    def changed(self, name: str, call: Denoising, read: Tensor, output: Tensor) -> Tensor:
        """Return a layer's values without the concepts, for the prompts of the loop."""
        n, joint = call.images, self.settings.branches == "joint" and call.guided
        layer, states = self.layers[name], self.named.states()
        assert states is not None  # noqa: S101 - of the rows
        bias = output.new_zeros(()).float() if layer.bias is None else cast("Tensor", layer.bias).float()
        targets = layer.forward(self.concepts.to(read)).float() - bias
        changed = output.clone()
        first = n if call.guided else 0
        for row, acted in enumerate(self.settings.acted_on(self.named).tolist()):
            if not acted:
                continue
            start = int(states.offsets[row][0] == (0, 0))  # behind a start of text
            values = call.conditional(output)[row, start:].float() - bias
            directions = targets.expand(len(values), -1, -1)
            if joint:
                free = output[row, start:].float() - bias
                directions = torch.cat([free[:, None].expand(-1, len(targets), -1), directions], -1)
                both = self.settings.removed(torch.cat([free, values], -1), directions)
                taken = {row: both[:, : free.shape[-1]], n + row: both[:, free.shape[-1] :]}
            else:
                taken = {first + row: self.settings.removed(values, directions)}
            for place, part in taken.items():
                changed[place, start:] = (changed[place, start:].float() - part).to(output)
        return changed
