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
from .steps import around_each_step
from .texts import TextGuidance, along, joined_names, predicted


@dataclass(frozen=True, kw_only=True)
class NegativePromptGuidance(TextGuidance):
    """The names, joined by ", ", in the place of the empty prompt or of the call's negative prompt.

    Names that do not fit into one text make several, and the unconditional prediction is the mean of theirs.
    """

    name: ClassVar[str] = "negative-prompt"
    source: ClassVar[str] = "arXiv:2207.12598"
    exactness: ClassVar[Exactness] = "published"
    every_prompt: ClassVar[bool] = True
    needs: ClassVar[Ability] = "guidance"

    @contextmanager
    def applied_to(self, pipe: DiffusionPipeline) -> Generator[DiffusionPipeline]:
        with self.prompts(pipe) as named:
            run = _UnconditionalRows(self, pipe, named)
            after = run.after if run.others else None
            with around_each_step(
                pipe, rows=lambda: len(named()), before=run.before, after=after, needs=self.needs, guided=self.name
            ):
                yield pipe


class _UnconditionalRows:
    """The unconditional rows of one pipeline's loops."""

    def __init__(self, settings: NegativePromptGuidance, pipe: DiffusionPipeline, named: NamedPrompts) -> None:
        self.settings, self.named = settings, named
        self.first, *self.others = joined_names(settings.concepts, backbone_of(pipe).negative)

    def before(self, call: Denoising) -> None:
        """Replace the text of the unconditional predictions by the first of the names'."""
        call.replace_unconditional(self.first, self.settings.acted_on(self.named))

    @torch.no_grad()
    def after(self, call: Denoising, output: Tensor) -> Tensor:
        """Take the mean over the texts."""
        changed = output.clone()
        free, _ = call.halves(changed)
        parts = [free, *(predicted(call, states.expand(call.images)) for states in self.others)]
        acted = along(self.settings.acted_on(self.named), output)
        free.copy_(torch.where(acted, torch.stack(parts).mean(0), free))
        return changed
