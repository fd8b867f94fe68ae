"""The inner attack of adversarial training: a search for vectors that find a concept in the model under training.

Soft prompts are free states in the place of the text encoder's, so no prompt and no new word can reach further; their
search is that of the probe `soft-prompt`. Other methods search for a few vectors inside a prompt. Erasers that train
against either share this file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

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
        growth: Factor of a life to the one before it, >= 1: the search gets stronger as the training goes on.
        spread: Standard deviation of the noise on a start, in units of that of its states, >= 0: restarts that differ.
        archive: Finished soft prompts that the training goes on against, >= 0; the oldest leave first.
        lr: Learning rate of Adam, > 0.
        batch_size: Images an update, dealt out to the prompts in turn, > 0.
        strides: Steps that move the states which a row reads for that row alone, >= 0. A few prompts can be known by
            heart; these are others in each row.
        stride: Length of such a step, along the sign of the gradient, in units of the states' standard deviation, > 0.
    """

    name: ClassVar[str] = "inner-attack"

    prompts: Annotated[int, Field(ge=0)] = 4
    every: Annotated[int, Field(ge=1)] = 2
    updates: Annotated[int, Field(ge=1)] = 1
    life: Annotated[int, Field(ge=1)] = 40
    growth: Annotated[float, Field(ge=1)] = 1.0
    spread: Annotated[float, Field(ge=0)] = 0.0
    archive: Annotated[int, Field(ge=0)] = 0
    lr: Annotated[float, Field(gt=0)] = 0.05
    batch_size: Annotated[int, Field(ge=1)] = 8
    strides: Annotated[int, Field(ge=0)] = 0
    stride: Annotated[float, Field(gt=0)] = 0.1

    def moved(self, read: Conditioning, loss: Callable[[Conditioning], Float[Tensor, " n"]]) -> Conditioning:
        """Return prompts after their strides, each against the loss of its own row, without gradient."""
        states = read.states.detach()
        length = self.stride * states.float().std()
        for _ in range(self.strides):
            states = states.requires_grad_()
            with torch.enable_grad():
                [gradient] = torch.autograd.grad(loss(read.with_states(states)).sum(), states)
            states = (states - length.to(states) * gradient.sign()).detach()
        return read.with_states(states)


class Search:
    """Vectors that Adam moves against a loss of the model under training, whose weights get no gradient.

    Args:
        start: The vectors as they start.
        lr: Learning rate, > 0.
        weight_decay: Weight decay, >= 0.
        clear_gradients: Whether an update follows its own gradient; else the sum of all so far.
    """

    def __init__(self, start: Tensor, *, lr: float, weight_decay: float = 0.0, clear_gradients: bool = True) -> None:
        self.vectors = start.detach().float().clone().requires_grad_()
        self._optimiser = torch.optim.Adam([self.vectors], lr=lr, weight_decay=weight_decay)
        self._clear_gradients = clear_gradients

    def move(self, gradient: Tensor) -> None:
        """Make one update."""
        before = self.vectors.grad
        self.vectors.grad = gradient if self._clear_gradients or before is None else before + gradient
        self._optimiser.step()


def descend(searches: Sequence[Search], loss: Float[Tensor, ""]) -> None:
    """Make one update of several searches against a loss of all of them."""
    # Not backward, which would add to the gradient of the weights.
    gradients = torch.autograd.grad(loss, [search.vectors for search in searches])
    for search, gradient in zip(searches, gradients, strict=True):
        search.move(gradient)


@dataclass(frozen=True, kw_only=True)
class VectorAttack(Settings):
    """Settings of the search for a few vectors inside a prompt, at each step of a training.

    Attributes:
        vectors: Number of vectors, >= 0; 0 makes no attack.
        updates: Updates a training step, > 0.
        lr: Learning rate of Adam, > 0.
        weight_decay: Weight decay of Adam, >= 0.
        start: Entries at the start: "uniform" in [0, 1), or "normal" around the mean of the vectors that the model
            reads at such a place.
        spread: Standard deviation of a "normal" start, in units of that of those vectors, >= 0.
        renewed: Whether each training step starts anew; else the vectors go on from the last one.
        clear_gradients: Whether an update follows its own gradient; else the sum of all so far.
    """

    name: ClassVar[str] = "vector-attack"

    vectors: Annotated[int, Field(ge=0)] = 16
    updates: Annotated[int, Field(ge=1)] = 50
    lr: Annotated[float, Field(gt=0)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    start: Literal["uniform", "normal"] = "normal"
    spread: Annotated[float, Field(ge=0)] = 0.1
    renewed: bool = False
    clear_gradients: bool = True

    def begun(self, around: Float[Tensor, "n dim"], generator: torch.Generator) -> Search:
        """Return a search at its start.

        Args:
            around: Vectors that the model reads at such a place.
            generator: Generator of the start.
        """
        known = around.detach().float()
        shape = (self.vectors, known.shape[1])
        if self.start == "uniform":
            start = torch.rand(shape, generator=generator).to(known)
        else:
            drawn = torch.randn(shape, generator=generator).to(known)
            start = known.mean(0) + self.spread * known.std(0) * drawn
        return Search(start, lr=self.lr, weight_decay=self.weight_decay, clear_gradients=self.clear_gradients)


class RunningAttack:
    """The search of a training: it goes on from step to step, or starts anew at each.

    Args:
        settings: Settings of the search.
        around: Vectors that the model reads at the place of those under search.
    """

    def __init__(self, settings: VectorAttack, around: Float[Tensor, "n dim"]) -> None:
        self._settings, self._around = settings, around
        self._search: Search | None = None

    def moved(
        self, loss: Callable[[Float[Tensor, "k dim"]], Float[Tensor, ""]], generator: torch.Generator
    ) -> Float[Tensor, "k dim"]:
        """Return the vectors after the updates of a training step, without gradient."""
        if self._search is None or self._settings.renewed:
            self._search = self._settings.begun(self._around, generator)
        search = self._search
        for _ in range(self._settings.updates if self._settings.vectors else 0):
            with torch.enable_grad():
                descend([search], loss(search.vectors))
        return search.vectors.detach()


def inserted(read: Conditioning, vectors: Float[Tensor, "k dim"], firsts: Sequence[int]) -> Conditioning:
    """Return prompts whose states from the given positions on are the vectors, with gradient by them.

    Vectors that would stand beyond the last state stand before it.
    """
    if not len(vectors):
        return read
    states = read.states.clone()
    length, k = states.shape[1], len(vectors)
    places = torch.tensor([min(first, length - k) for first in firsts])[:, None] + torch.arange(k)
    states[torch.arange(len(read))[:, None], places] = vectors.to(states)
    return read.with_states(states)


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
        self._lives = [float(settings.life)] * settings.prompts
        self._searches: list[Search] = []
        self._texts: list[Conditioning] = []
        self._archive: list[Conditioning] = []

    def begin(self, generator: torch.Generator) -> None:
        """Draw the prompts' starts, unless that was done."""
        while len(self._searches) < self._settings.prompts:
            text, search = self._started(generator)
            self._searches.append(search)
            self._texts.append(text)

    def advance(self, student: Student, step: int, generator: torch.Generator) -> None:
        """Update the prompts if the step is one of the search's; the first call draws their starts."""
        self.begin(generator)
        if step % self._settings.every:
            return
        for _ in range(self._settings.updates):
            for i, age in enumerate(self._ages):
                if age >= self._lives[i]:
                    self._renew(i, generator)
            self._update(student, generator)

    def read(self, prompts: Sequence[int]) -> Conditioning:
        """Return some of the soft prompts as a denoiser reads them, without gradient."""
        return concatenate([self._detached(i) for i in prompts])

    def __len__(self) -> int:
        """Return the number of prompts under search and in the archive, which come last."""
        return self._settings.prompts + len(self._archive)

    def _detached(self, i: int) -> Conditioning:
        if i >= self._settings.prompts:
            return self._archive[i - self._settings.prompts]
        return self._conditioning([self._searches[i].vectors.detach()], [i])

    def _started(self, generator: torch.Generator) -> tuple[Conditioning, Search]:
        """Return the text of a new prompt, and its search."""
        text = self._starts.select([below(len(self._starts), generator)])
        start = text.states
        if self._settings.spread:
            drawn = torch.randn(start.shape, generator=generator).to(start)
            start = start + self._settings.spread * start.std() * drawn
        return text, Search(start, lr=self._settings.lr)

    def _renew(self, i: int, generator: torch.Generator) -> None:
        """Start a prompt anew; the archive takes what it was."""
        settings = self._settings
        if settings.archive:
            self._archive = [*self._archive, self._detached(i)][-settings.archive :]
        self._texts[i], self._searches[i] = self._started(generator)
        self._ages[i], self._lives[i] = 0, self._lives[i] * settings.growth

    def _update(self, student: Student, generator: torch.Generator) -> None:
        schedule, n = self._backbone.schedule, self._settings.batch_size
        clean = self._clean[[below(len(self._clean), generator) for _ in range(n)]]
        added = noise([generator] * n, self._backbone.latent_shape()).to(clean)
        timesteps = schedule.drawn(n, generator).to(clean.device)
        running = self._settings.prompts
        first = below(running, generator)
        prompts = [(first + row) % running for row in range(n)]
        with torch.enable_grad():
            read = self._conditioning([self._searches[i].vectors for i in prompts], prompts)
            noisy = schedule.noised(clean, added, timesteps)
            predicted = student(self._backbone.predict, noisy, timesteps, read).float()
            loss = F.mse_loss(predicted, schedule.target(clean, added, timesteps))
            descend([self._searches[i] for i in dict.fromkeys(prompts)], loss)
        for i in dict.fromkeys(prompts):
            self._ages[i] += 1

    def _conditioning(self, states: Sequence[Tensor], prompts: Sequence[int]) -> Conditioning:
        texts = concatenate([self._texts[i] for i in prompts])
        return texts.with_states(torch.cat(list(states)).to(texts.states))
