"""EraseFlow's objective: trajectories of the anchor, given the target's prompt (arXiv:2511.00804)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...backbones.base import Backbone
from ...backbones.conditioning import Conditioning, concatenate
from ...registry import Exactness
from ...sampling import noise
from ...sampling.stochastic import Latents, Transition, stochastic_path
from ..context import TrainingTask
from ..draws.prompt_pairs import PromptForm, PromptPairs
from ..finetune import Loss
from ..student import Student
from .base import Objective

_AT_ONCE = 8  # latents of a pass
_Part = Callable[[int, slice], Float[Tensor, " n"]]
"""A step's part of a sum, of some of the paths."""


@dataclass(frozen=True, kw_only=True)
class AnchorPaths(Objective):
    """The probability of the anchor's trajectories, given the target's prompt.

    A stochastic sampler (`erasure.sampling.stochastic`) draws a path x_T, ..., x_1 under the anchor's prompt a. With
    the target's prompt c and the mean mu_0 of the frozen model,

        "balance":   L = (log_z + sum_t [log p(x_t-1 | x_t, c) - log q(x_t | x_t-1)] - log_beta)^2
        "matching":  L = sum_t |mu(x_t, c) - mu_0(x_t, a)|^2 / (2 d_t^2)

    over `transitions` of the path's steps: half of them the last, the others random among the earlier ones. mu and d_t
    are mean and deviation of p. The first is trajectory balance, one equation a path; the second the Kullback-Leibler
    divergence of the two chains' steps, whose only minimum is that both are equal.

    Differs from the code: log Z, which moves by less than 0.01 in its run, is a constant; the last step, to the image,
    has no density in our schedules and is left out; on flow models the sampler is the posterior of the same noising
    chain. A concept with the anchor "" has paths of the unconditional prompt.

    Attributes:
        form: "balance", as published, or "matching".
        density: Log densities and divergences are the "mean" over the entries of the latents, as in the code, or their
            "sum", as in the equations; `log_beta` is in the same unit.
        log_beta: Logarithm of the reward; None measures at the start the value at which the anchor's paths, given the
            anchor, have no residual.
        log_z: Logarithm of the normaliser.
        transitions: Steps of a path in one update, > 0.
        sample_steps: Steps of the sampler, > 1.
        path_guidance: Scale of classifier-free guidance of the paths, >= 1.
        density_guidance: Scale of that inside log p and mu, >= 1.
        fresh: Number of first updates that draw paths, > 0; later ones take the last path again.
        path_uses: Updates fed by one path, > 0.
        prompts: "bare" trains on the target's name, "templates" on the name and its aliases in the templates of the
            concept's kind.
        denoiser: Model of the paths: the "student", the model under training, or the "frozen" one.
    """

    name: ClassVar[str] = "anchor-paths"
    source: ClassVar[str] = "arXiv:2511.00804"
    exactness: ClassVar[Exactness] = "reconstructed"
    quick: ClassVar[Mapping[str, Any]] = {
        "sample_steps": 3,
        "transitions": 1,
        "form": "matching",
        "path_guidance": 1.0,
    }
    presets: ClassVar[Mapping[str, Mapping[Any, Mapping[str, Any]]]] = {"density": {"sum": {"log_beta": 83.0}}}

    form: Literal["balance", "matching"] = "balance"
    density: Literal["mean", "sum"] = "mean"
    log_beta: float | None = 2.5
    log_z: float = -0.1953
    transitions: Annotated[int, Field(ge=1)] = 20
    sample_steps: Annotated[int, Field(ge=2)] = 50
    path_guidance: Annotated[float, Field(ge=1)] = 5.0
    density_guidance: Annotated[float, Field(ge=1)] = 1.0
    fresh: Annotated[int, Field(ge=1)] = 20
    path_uses: Annotated[int, Field(ge=1)] = 1
    prompts: PromptForm = "bare"
    denoiser: Literal["student", "frozen"] = "student"

    def loss(self, task: TrainingTask) -> Loss:
        paths = _Paths(self, task)
        log_beta = [] if self.log_beta is None else [self.log_beta]

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            if self.form == "matching":
                return paths.divergence(student, step, generator)
            if not log_beta:
                log_beta.append(paths.balanced_log_beta(generator))
            return (self.log_z + paths.log_ratio(student, step, generator) - log_beta[0]).square().mean()

        return loss

    def places(self, generator: torch.Generator) -> list[int]:
        """Return the places of the steps of a path that an update takes, from 0, in order."""
        steps = self.sample_steps - 1
        count = min(self.transitions, steps)
        last = count // 2
        order = torch.randperm(steps - last, generator=generator)[: count - last].tolist()
        return sorted([*order, *range(steps - last, steps)])


class _Paths:
    """Paths of the anchors of one training, and what the student says of them."""

    def __init__(self, settings: AnchorPaths, task: TrainingTask) -> None:
        self._settings, self._backbone, self._batch_size = settings, task.backbone, task.batch_size
        self._pairs = PromptPairs.of(task.backbone, task.concepts, settings.prompts)
        self._blank = task.backbone.unconditional()
        self._timesteps = task.backbone.schedule.timesteps(settings.sample_steps).to(task.backbone.device)
        self._path: list[Latents] = []
        self._rows: list[int] = []

    def log_ratio(self, student: Student, step: int, generator: torch.Generator) -> Float[Tensor, " n"]:
        """Return sum_t [log p - log q] of each path, given the target."""
        self._renew(student, step, generator)
        return self._log_ratio(student, self._pairs.targets, self._settings.places(generator))

    def divergence(self, student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Return the divergence of the student's steps, given the target, from the frozen model's, given the anchor."""
        self._renew(student, step, generator)
        targets, anchors = (each.select(self._rows) for each in (self._pairs.targets, self._pairs.anchors))

        def part(place: int, rows: slice) -> Float[Tensor, " n"]:
            x, transition = self._path[place][rows], self._transition(place)
            with torch.no_grad():
                goal = transition.mean(self._output(x, transition, _rows_of(anchors, rows)), x)
            mean = transition.mean(self._student_output(student, x, transition, _rows_of(targets, rows)), x)
            return ((mean - goal) / transition.spread).square().flatten(1).mean(1) / 2

        return self._summed(part, self._settings.places(generator)).mean()

    def balanced_log_beta(self, generator: torch.Generator) -> float:
        """Return the log beta at which paths of the model in force have no residual, given the anchor, in the mean."""
        start, rows = self._drawn(generator)
        self._path, self._rows = self._sampled(start, rows, generator), rows
        with torch.no_grad():
            ratio = self._log_ratio(None, self._pairs.anchors, self._settings.places(generator))
        self._path = []
        return self._settings.log_z + float(ratio.mean())

    def _renew(self, student: Student, step: int, generator: torch.Generator) -> None:
        """Draw paths where the update has its own."""
        settings = self._settings
        if self._path and (step >= settings.fresh or step % settings.path_uses):
            return
        start, rows = self._drawn(generator)
        self._path = student.by(settings.denoiser, self._sampled, start, rows, generator)
        self._rows = rows

    def _drawn(self, generator: torch.Generator) -> tuple[Latents, list[int]]:
        rows = [self._pairs.draw(generator) for _ in range(self._batch_size)]
        start = noise([generator] * self._batch_size, self._backbone.latent_shape())
        return start.to(self._backbone.device), rows

    def _sampled(self, start: Latents, rows: list[int], generator: torch.Generator) -> list[Latents]:
        """Return a path of each row's anchor by the model in force."""
        anchors = self._pairs.anchors.select(rows)

        def predict(x: Latents, timestep: Tensor) -> Latents:
            return guided_output(self._backbone, x, timestep, anchors, self._blank, self._settings.path_guidance)

        return stochastic_path(self._backbone.schedule, predict, start, self._timesteps, generator)

    def _log_ratio(self, student: Student | None, prompts: Conditioning, places: list[int]) -> Float[Tensor, " n"]:
        read = prompts.select(self._rows)

        def part(place: int, rows: slice) -> Float[Tensor, " n"]:
            x, reached, transition = self._path[place][rows], self._path[place + 1][rows], self._transition(place)
            arguments = x, transition, _rows_of(read, rows)
            output = self._output(*arguments) if student is None else self._student_output(student, *arguments)
            return transition.denoising(output, x, reached) - transition.noising(x, reached)

        return self._summed(part, places)

    def _summed(self, part: _Part, places: list[int]) -> Float[Tensor, " n"]:
        """Return a sum over places of the paths, a few paths at a time."""
        lots = [slice(start, start + _AT_ONCE) for start in range(0, self._batch_size, _AT_ONCE)]
        total = torch.cat([torch.stack([part(place, rows) for place in places]).sum(0) for rows in lots])
        return total * self._path[0][0].numel() if self._settings.density == "sum" else total

    def _transition(self, place: int) -> Transition:
        following = self._timesteps[place + 1]
        return Transition(schedule=self._backbone.schedule, timestep=self._timesteps[place], following=following)

    def _student_output(self, student: Student, x: Latents, transition: Transition, read: Conditioning) -> Latents:
        return student.recomputed(self._output, x, transition, read)

    def _output(self, x: Latents, transition: Transition, read: Conditioning) -> Latents:
        scale = self._settings.density_guidance
        return guided_output(self._backbone, x, transition.timestep, read, self._blank, scale)


def guided_output(
    backbone: Backbone, x: Latents, timestep: Tensor, read: Conditioning, blank: Conditioning, scale: float
) -> Latents:
    """Return the denoiser's output with classifier-free guidance, float32."""
    if scale == 1:
        return backbone.predict(x, timestep, read).float()
    both = concatenate([blank.expand(len(read)), read])
    free, bound = backbone.predict(torch.cat([x, x]), timestep, both).float().chunk(2)
    return free + scale * (bound - free)


def _rows_of(read: Conditioning, rows: slice) -> Conditioning:
    return read.select(range(len(read))[rows])
