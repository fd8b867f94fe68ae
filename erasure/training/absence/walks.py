"""States on the way of the target's own sampling, on which the student of `absent` is trained too.

A noised image of a concept is a state of the original's sampling. Where the target leaves it, states follow that are
half of the concept and half of something else, which no noised image is: only a walk along the target meets them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...backbones.schedule import NoiseSchedule, Timestep
from ...registry import Settings
from ..finetune import below

Share = Annotated[float, Field(ge=0, le=1)]
BaseOf = Callable[[int, Timestep, torch.Generator], int]
"""Returns the row of the prompt that the target of an image starts from at a timestep, drawn if there are several."""


@dataclass(frozen=True, kw_only=True)
class WalkSettings(Settings):
    """Settings of the walks.

    Attributes:
        share: Share of the rows on images of the concept that are states of walks; 0 makes no walks.
        number: Walks of each concept, > 0.
        steps: Steps of the sampler, > 1.
        latest: Share of the steps before which a walk starts, in [0, 1]: from a noised image of the concept, at any of
            these levels.
    """

    name: ClassVar[str] = "walks"

    share: Share = 0.0
    number: Annotated[int, Field(ge=1)] = 8
    steps: Annotated[int, Field(ge=2)] = 16
    latest: Share = 0.7


@dataclass(kw_only=True, eq=False)
class Walk:
    """One sampling along the target, which goes on by a step of the sampler whenever its target was computed.

    Attributes:
        schedule: Schedule of the model.
        timesteps: Timesteps of the sampler, the noisiest first.
        latest: Last place in it at which a walk starts.
        clean: Images of the concept as clean latents.
        base_of: Draws the prompt that the target starts from; it holds for the whole walk.
        image: Index of the image.
        base: Row of that prompt.
        latents: Latents.
        place: Place in the timesteps.
    """

    schedule: NoiseSchedule
    timesteps: Timestep
    latest: int
    clean: Float[Tensor, "n c h w"]
    base_of: BaseOf
    image: int = 0
    base: int = 0
    latents: Float[Tensor, "c h w"] = field(default_factory=lambda: torch.empty(0, 0, 0))
    place: int = -1

    @property
    def timestep(self) -> Timestep:
        """The timestep of the latents."""
        return self.timesteps[self.place]

    def begin(self, generator: torch.Generator) -> None:
        """Start from a noised image, unless the walk is on its way."""
        if self.place >= 0:
            return
        self.image = below(len(self.clean), generator)
        self.place = below(self.latest + 1, generator)
        image = self.clean[self.image : self.image + 1]
        added = torch.randn(image.shape, generator=generator).to(image)
        self.latents = self.schedule.noised(image, added, self.timestep)[0]
        self.base = self.base_of(self.image, self.timestep, generator)

    def go_on(self, prediction: Float[Tensor, "c h w"]) -> None:
        """Make one step of the sampler with the target's prediction; the last one ends the walk."""
        if self.place + 1 == len(self.timesteps):
            self.place = -1
            return
        following = self.timesteps[self.place + 1]
        self.latents = self.schedule.step(prediction[None], self.latents[None], self.timestep, following)[0]
        self.place += 1


def walks_of(
    settings: WalkSettings, schedule: NoiseSchedule, clean: Float[Tensor, "n c h w"], base_of: BaseOf
) -> Sequence[Walk]:
    """Return the walks of a concept, none of which has begun."""
    timesteps = schedule.timesteps(settings.steps).to(clean.device)
    latest = min(round(settings.latest * settings.steps), settings.steps - 1)
    return [
        Walk(schedule=schedule, timesteps=timesteps, latest=latest, clean=clean, base_of=base_of)
        for _ in range(settings.number)
    ]
