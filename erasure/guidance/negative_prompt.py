"""Negative prompt: the concept's prediction in the place of the unconditional one.

It has no paper of its own: it is classifier-free guidance (arXiv:2207.12598) with another base,
e = e_s + w (e_p - e_s).
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..backbones import backbone_of
from ..backbones.base import Ability
from ..registry import Exactness
from .base import NamedPrompts
from .denoising import Denoising
from .steps import Latents, around_each_step
from .texts import TextGuidance, check_guided, joined_names, predicted, text_arguments


@dataclass(frozen=True, kw_only=True)
class NegativePromptGuidance(TextGuidance):
    """The names, joined by ", ", in the place of the empty prompt or of the call's negative prompt.

    Names that do not fit into one text make several, and the unconditional prediction is the mean of theirs.
    """

    name: ClassVar[str] = "negative-prompt"
    source: ClassVar[str] = "arXiv:2207.12598"
    exactness: ClassVar[Exactness] = "published"
    every_prompt: ClassVar[bool] = True
    flow: ClassVar[Ability | None] = "guidance"

    @contextmanager
    def applied_to(self, pipe: DiffusionPipeline) -> Generator[DiffusionPipeline]:
        with self.prompts(pipe) as named:
            run = _UnconditionalRows(self, pipe, named)
            with around_each_step(pipe, rows=lambda: len(named()), before=run.before, after=run.after, flow=self.flow):
                yield pipe


class _UnconditionalRows:
    """The unconditional rows of one pipeline's loops."""

    def __init__(self, settings: NegativePromptGuidance, pipe: DiffusionPipeline, named: NamedPrompts) -> None:
        self.settings, self.named = settings, named
        self.first, *self.others = joined_names(backbone_of(pipe), settings.concepts)

    def before(self, call: Denoising) -> Latents:
        """Replace the text of the unconditional rows by the first of the names'."""
        check_guided(call, self.settings.name)
        n, rows = len(call.latents), self.settings.acted_on(self.named)

        def replaced(whole: Tensor, state: Tensor) -> Tensor:
            acted = rows.to(whole.device).view(-1, *[1] * (whole.ndim - 1))
            return torch.cat([torch.where(acted, state.to(whole), whole[:n]), whole[n:]])

        call.replace_arguments(**text_arguments(call.batch_arguments, self.first, replaced))
        return call.latents

    @torch.no_grad()
    def after(self, call: Denoising, output: Tensor) -> Tensor:
        """Take the mean over the texts."""
        if not self.others:
            return output
        n = len(call.latents)
        parts = [output[:n], *(predicted(call, states.expand(n)) for states in self.others)]
        acted = self.settings.acted_on(self.named).to(output.device)[:, None, None, None]
        return torch.cat([torch.where(acted, torch.stack(parts).mean(0), output[:n]), output[n:]])
