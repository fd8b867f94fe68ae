"""The inner attack of adversarial training: soft prompts that find a concept in the model under training.

They are free states in the place of the text encoder's, so no prompt and no new word can reach further. The search is
that of the probe `soft-prompt`; erasers that train against it share this file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ..backbones.base import Backbone
from ..backbones.conditioning import Conditioning, concatenate
from ..registry import Settings
from ..sampling import noise
from .finetune import below
from .student import Student


@dataclass(frozen=True, kw_only=True)
class InnerAttack(Settings):
    """Settings of the search for soft prompts during a training.

    Attributes:
        prompts: Number of soft prompts that stand beside one another, >= 0; 0 makes no attack.
        every: Training steps from one visit to the next, > 0.
        updates: Updates of all soft prompts a visit, > 0.
        life: Updates after which a soft prompt starts anew, > 0. They start at different ages, so the training meets
            weak and strong ones at all times.
        lr: Learning rate of Adam, > 0.
        batch_size: Images an update, dealt out to the prompts in turn, > 0.
    """

    name: ClassVar[str] = "inner-attack"

    prompts: Annotated[int, Field(ge=0)] = 4
    every: Annotated[int, Field(ge=1)] = 2
    updates: Annotated[int, Field(ge=1)] = 1
    life: Annotated[int, Field(ge=1)] = 40
    lr: Annotated[float, Field(gt=0)] = 0.05
    batch_size: Annotated[int, Field(ge=1)] = 8


class SoftPrompts:
    """Soft prompts under search, which minimise the student's denoising loss on images of a concept.

    Args:
        settings: Settings of the search; at least one prompt.
        backbone: Model.
        clean: Images of the concept as clean latents.
        starts: Encoded prompts, one of which each soft prompt starts from.
    """

    def __init__(
        self, settings: InnerAttack, backbone: Backbone, clean: Float[Tensor, "n c h w"], starts: Conditioning
    ) -> None:
        self._settings, self._backbone, self._clean, self._starts = settings, backbone, clean, starts
        # Where a prompt's text is in its life at the beginning.
        self._ages = [settings.life * i // settings.prompts for i in range(settings.prompts)]
        self._states: list[Tensor] = []
        self._optimisers: list[torch.optim.Adam] = []
        self._texts: list[Conditioning] = []

    def advance(self, student: Student, step: int, generator: torch.Generator) -> None:
        """Update the prompts if the step is one of the search's; the first call draws their starts."""
        if not self._states:
            for _ in range(self._settings.prompts):
                self._begin(None, generator)
        if step % self._settings.every:
            return
        for _ in range(self._settings.updates):
            for i, age in enumerate(self._ages):
                if age >= self._settings.life:
                    self._begin(i, generator)
            self._update(student, generator)

    def read(self, prompts: Sequence[int]) -> Conditioning:
        """Return some of the soft prompts as a denoiser reads them, without gradient."""
        return self._conditioning([self._states[i].detach() for i in prompts], prompts)

    def __len__(self) -> int:
        return self._settings.prompts

    def _begin(self, i: int | None, generator: torch.Generator) -> None:
        """Start a prompt anew, or a further one."""
        text = self._starts.select([below(len(self._starts), generator)])
        states = text.states.detach().float().clone().requires_grad_()
        optimiser = torch.optim.Adam([states], lr=self._settings.lr)
        if i is None:
            self._states.append(states)
            self._optimisers.append(optimiser)
            self._texts.append(text)
        else:
            self._states[i], self._optimisers[i], self._texts[i], self._ages[i] = states, optimiser, text, 0

    def _update(self, student: Student, generator: torch.Generator) -> None:
        schedule, n = self._backbone.schedule, self._settings.batch_size
        clean = self._clean[[below(len(self._clean), generator) for _ in range(n)]]
        added = noise([generator] * n, self._backbone.latent_shape()).to(clean)
        timesteps = schedule.drawn(n, generator).to(clean.device)
        first = below(len(self), generator)
        prompts = [(first + row) % len(self) for row in range(n)]
        states = [self._states[i] for i in dict.fromkeys(prompts)]
        with torch.enable_grad():
            read = self._conditioning([self._states[i] for i in prompts], prompts)
            noisy = schedule.noised(clean, added, timesteps)
            predicted = student(self._backbone.predict, noisy, timesteps, read).float()
            loss = F.mse_loss(predicted, schedule.target(clean, added, timesteps))
            # Not backward, which would add to the gradient of the weights.
            gradients = torch.autograd.grad(loss, states)
        for i, gradient in zip(dict.fromkeys(prompts), gradients, strict=True):
            self._states[i].grad = gradient
            self._optimisers[i].step()
            self._ages[i] += 1

    def _conditioning(self, states: Sequence[Tensor], prompts: Sequence[int]) -> Conditioning:
        texts = concatenate([self._texts[i] for i in prompts])
        return texts.with_states(torch.cat(list(states)).to(texts.states))
