"""Latents on the way from noise to images, sampled by the model that is in force."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..backbones.base import Backbone
from ..backbones.conditioning import Conditioning, concatenate
from ..backbones.schedule import Discrete, Timestep
from ..errors import InputError
from ..sampling import noise, trajectory_latents
from ..typed_torch import integers

Latents = Float[Tensor, "n c h w"]
Pairing = Literal["exact", "bin", "any"]

# Enough that no single trajectory is learned by heart, few enough to be sampled in a moment beside the training.
POOL_SIZE = 16
_STOPS, _SAMPLE_STEPS, _GUIDANCE_SCALE, _EARLY = 4, 20, 4.0, 0.6


@dataclass(frozen=True, kw_only=True, eq=False)
class TrajectoryPoints:
    """Noisy latents of trajectories, each with its timestep and prompt.

    Attributes:
        latents: Latents, float32 on the model's device.
        timesteps: Timestep of each.
        conditioning: Encoded prompt of each, a row for each latent.
    """

    latents: Latents
    timesteps: Int[Tensor, " n"] | Float[Tensor, " n"]
    conditioning: Conditioning

    def __len__(self) -> int:
        return len(self.latents)

    def batches(self, size: int) -> Iterator[slice]:
        """Yield the rows of one batch after another."""
        yield from (slice(start, start + size) for start in range(0, len(self), size))

    def select(self, rows: Sequence[int]) -> tuple[Latents, Timestep, Conditioning]:
        """Return the latents at `rows` with their timesteps and prompts, as `Backbone.predict` takes them."""
        return self.latents[list(rows)], self.timesteps[list(rows)], self.conditioning.select(list(rows))


def trajectory_points(backbone: Backbone, prompts: Sequence[str], generator: torch.Generator) -> TrajectoryPoints:
    """Return the latents at four random steps of a guided trajectory for each prompt, one step after another."""
    stops = integers(torch.randperm(_SAMPLE_STEPS, generator=generator)[:_STOPS])
    return _points_of(backbone, prompts, stops, generator)


def early_points(
    backbone: Backbone, prompts: Sequence[str], count: int, generator: torch.Generator
) -> TrajectoryPoints:
    """Return the latents at `count` steps of the first 60 % of a guided trajectory for each prompt."""
    most = int(_EARLY * _SAMPLE_STEPS)
    return _points_of(backbone, prompts, sorted({int(i * most / count) for i in range(count)}), generator)


def _points_of(
    backbone: Backbone, prompts: Sequence[str], stops: Sequence[int], generator: torch.Generator
) -> TrajectoryPoints:
    read = backbone.encode(list(prompts))
    latents = trajectory_latents(
        backbone,
        noise([generator] * len(prompts), backbone.latent_shape()),
        read,
        backbone.unconditional(),
        steps=_SAMPLE_STEPS,
        guidance_scale=_GUIDANCE_SCALE,
        stops=stops,
    )
    timesteps = backbone.schedule.timesteps(_SAMPLE_STEPS)
    return TrajectoryPoints(
        latents=torch.cat([latents[stop] for stop in stops]),
        timesteps=torch.cat([timesteps[stop].repeat(len(prompts)) for stop in stops]).to(backbone.device),
        conditioning=read.select(list(range(len(prompts))) * len(stops)),
    )


class PartialTrajectories:
    """Latents of fresh trajectories at random steps, a batch at a time.

    One partial denoising feeds several batches: it runs to the least noisy of as many steps, and leaves its latents at
    each.

    Args:
        backbone: Model.
        conditioning: Encoded prompts.
        draw: Returns the row of a random prompt; None: each is as likely.
        steps: Steps of the whole schedule, > 0.
        guidance_scale: Scale of classifier-free guidance.
        batch_size: Latents a batch, > 0.
        uses: Batches of one partial denoising, > 0, at as many random steps; `stops` says it where given.
        stops: Returns the steps at which one partial denoising leaves its latents, in the order of the batches.
        pairing: Timestep of the latents: "exact", the one that they are at; "any", a random one of the steps, for
            latents that are denoised to the end; or "bin", as in ESD's code of 2023. With n
            steps of T timesteps it draws a number k < n and a timestep from [k T / n, (k + 1) T / n). Its sampler takes
            the noise for latents of the second-noisiest step and stops two steps behind k: at the (k - 2)-th step
            from the end, and at timestep 0 for k < 2.

    Raises:
        InputError: "bin" for a model without discrete timesteps.
    """

    def __init__(
        self,
        backbone: Backbone,
        conditioning: Conditioning,
        draw: Callable[[torch.Generator], int] | None = None,
        *,
        steps: int,
        guidance_scale: float,
        batch_size: int,
        uses: int = 1,
        pairing: Pairing = "exact",
        stops: Callable[[torch.Generator], Sequence[int]] | None = None,
    ) -> None:
        self._backbone, self._conditioning, self._draw = backbone, conditioning, draw or self._any_row
        self._steps, self._guidance_scale, self._batch_size = steps, guidance_scale, batch_size
        self._uses = min(uses, steps)
        self._unconditional = backbone.unconditional()
        self._timesteps = backbone.schedule.timesteps(steps).to(backbone.device)
        self._pairing, self._stops = pairing, stops or self._random_stops
        if pairing == "bin" and not isinstance(backbone.schedule, Discrete):
            raise InputError(
                f"pairing: expected a model with discrete timesteps, got {backbone.family} with"
                f" {backbone.schedule.words}. Pair exactly."
            )
        self._ready: deque[tuple[Latents, Timestep, list[int]]] = deque()

    def next(self, generator: torch.Generator) -> tuple[Latents, Timestep, list[int]]:
        """Return latents, their timestep, and the row of each latent's prompt."""
        if not self._ready:
            self._ready.extend(self._sampled(generator))
        return self._ready.popleft()

    def _any_row(self, generator: torch.Generator) -> int:
        return int(torch.randint(len(self._conditioning), (), generator=generator))

    def _random_stops(self, generator: torch.Generator) -> list[int]:
        return integers(torch.randperm(self._steps, generator=generator)[: self._uses])

    def _sampled(self, generator: torch.Generator) -> list[tuple[Latents, Timestep, list[int]]]:
        rows = [self._draw(generator) for _ in range(self._batch_size)]
        drawn = list(self._stops(generator))
        # Timestep 0 is behind the last one.
        run = torch.cat([self._timesteps, torch.zeros_like(self._timesteps[:1])])
        stops = drawn
        if self._pairing == "bin":
            # Of the code's run, which begins a step late, the latents of bin k.
            run, stops = run[1:], [min(self._steps - k, self._steps - 1) for k in drawn]
        elif self._pairing == "any":
            stops = [self._steps] * len(drawn)
        latents = trajectory_latents(
            self._backbone,
            noise([generator] * self._batch_size, self._backbone.latent_shape()),
            self._conditioning.select(rows),
            self._unconditional,
            steps=self._steps,
            guidance_scale=self._guidance_scale,
            stops=stops,
            timesteps=run,
        )
        binned = self._pairing == "bin"
        timesteps = [self._within(k, generator) for k in drawn] if binned else self._timesteps[drawn]
        return [(latents[stop], timestep, rows) for stop, timestep in zip(stops, timesteps, strict=True)]

    def _within(self, k: int, generator: torch.Generator) -> Int[Tensor, ""]:
        """Return a random timestep of the k-th of as many bins as there are steps, from the least noisy."""
        total = self._backbone.schedule.total
        low, high = (round(edge * total / self._steps) for edge in (k, k + 1))
        return (low + torch.randint(high - low, (), generator=generator)).to(self._timesteps)


def encoded(backbone: Backbone, prompts: Sequence[str]) -> Conditioning:
    """Return the encoded prompts, "" being the model's own unconditional prompt."""
    distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompt for prompt in prompts if prompt))}
    parts = [backbone.unconditional(), *([backbone.encode(list(distinct))] if distinct else [])]
    return concatenate(parts).select([distinct[prompt] + 1 if prompt else 0 for prompt in prompts])
