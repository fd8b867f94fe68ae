"""SLD, Safe Latent Diffusion (Schramowski et al., CVPR 2023, arXiv:2211.05105).

With the predictions e_0 (unconditional), e_p (prompt), e_s (the names), element by element:

    mu = min(1, k |e_p - e_s|) where e_p - e_s < threshold, else 0
    g = mu (e_s - e_0) + momentum_scale nu
    nu <- momentum nu + (1 - momentum) g
    e = e_0 + w (e_p - e_0 - g), from the step `warmup`

so e_p - g in the place of e_p is SLD under any guidance scale w.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Interval
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from ..backbones import backbone_of
from ..backbones.base import Ability
from ..backbones.schedule import Flow
from ..registry import Exactness
from .base import NamedPrompts
from .denoising import Denoising
from .steps import around_each_step
from .texts import TextGuidance, along, joined_names, predicted

# An output that counts for less noise is of pure noise, of which nothing is known.
_LEAST = 1e-6


@dataclass(frozen=True, kw_only=True)
class SafeLatentDiffusion(TextGuidance):
    """Push of the prompt's prediction away from that for the names, where the two are close.

    Predictions of v and velocities are compared as noise, which the settings are calibrated on; pure noise stays as it
    is. Names that do not fit into one text make several, and g is the mean of theirs.

    Attributes:
        scale: Factor of the difference in mu (k), >= 0.
        threshold: Difference from which on an element is left alone (lambda).
        momentum_scale: Share of the momentum in g, >= 0.
        momentum: Share of the old momentum in the new one, in [0, 1).
        warmup: Number of steps in which only the momentum is collected, >= 0.
    """

    name: ClassVar[str] = "sld"
    source: ClassVar[str] = "arXiv:2211.05105, code a42923c"
    exactness: ClassVar[Exactness] = "published"
    every_prompt: ClassVar[bool] = True
    needs: ClassVar[Ability] = "guidance"
    quick: ClassVar[Mapping[str, Any]] = {"warmup": 0}

    scale: Annotated[float, Ge(0)] = 1000.0
    threshold: float = 0.01
    momentum_scale: Annotated[float, Ge(0)] = 0.3
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.4
    warmup: Annotated[int, Ge(0)] = 10

    @contextmanager
    def applied_to(self, pipe: DiffusionPipeline) -> Generator[DiffusionPipeline]:
        with self.prompts(pipe) as named:
            run = _Pushing(self, pipe, named)
            with around_each_step(pipe, rows=lambda: len(named()), after=run.after, needs=self.needs, guided=self.name):
                yield pipe

    def force(
        self, free: Tensor, prompted: Tensor, unwanted: Sequence[Tensor], momentum: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return g and the next momentum from noise predictions: e_0, e_p, and e_s of each text."""
        away = torch.zeros_like(prompted)
        for each in unwanted:
            difference = prompted - each
            size = (self.scale * difference.abs()).clamp(max=1)
            away += torch.where(difference < self.threshold, size, 0) * (each - free) / len(unwanted)
        away += self.momentum_scale * momentum
        return away, self.momentum * momentum + (1 - self.momentum) * away


class _Pushing:
    """The momentum of one pipeline's loops."""

    def __init__(self, settings: SafeLatentDiffusion, pipe: DiffusionPipeline, named: NamedPrompts) -> None:
        self.settings, self.named = settings, named
        self.backbone = backbone_of(pipe)
        self.texts = joined_names(settings.concepts, self.backbone.encode)
        self.momentum: Tensor | None = None

    @torch.no_grad()
    def after(self, call: Denoising, output: Tensor) -> Tensor:
        """Take g off the prompts' predictions."""
        free, prompted = (half.float() for half in call.halves(output))
        if call.first or self.momentum is None:
            self.momentum = torch.zeros_like(prompted)
        # The latents' part of a prediction of v is the same for every text: it drops out of all differences.
        factor = self._noise_in(call).to(prompted)
        unwanted = [factor * predicted(call, states.expand(call.images)).float() for states in self.texts]
        away, self.momentum = self.settings.force(factor * free, factor * prompted, unwanted, self.momentum)
        if call.step < self.settings.warmup:
            return output
        acted = along(self.settings.acted_on(self.named), output)
        force = away / factor if factor.abs() >= _LEAST else torch.zeros_like(away)
        changed = output.clone()
        call.halves(changed)[1].copy_(torch.where(acted, prompted - force, prompted))
        return changed

    def _noise_in(self, call: Denoising) -> Float[Tensor, ""]:
        """Return the noise that an output of 1 stands for, beside that of the latents."""
        schedule, timestep = self.backbone.schedule, call.timestep.reshape(-1)[:1]
        one = torch.ones(1, 1, 1, 1, device=self.backbone.device)
        level = timestep if isinstance(schedule, Flow) else timestep.long()
        return self.backbone.loop.sign * schedule.noise_of(one, torch.zeros_like(one), level).reshape(())
