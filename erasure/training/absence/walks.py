"""States on the way of a sampling, on which the student of `absent` is trained too.

A noised image of a concept is a state of the original's sampling. Where the target leaves it, states follow that are
half of the concept and half of something else, which no noised image is: only a walk along the target meets them. And
the states to which a soft prompt leads the student are neither images of the concept nor of what stays: only a walk of
the student meets those.
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
        number: Walks of each concept along the target, and as many along the student, > 0.
        steps: Steps of the sampler, > 1.
        latest: Share of the steps before which a walk starts, in [0, 1]: from a noised image of the concept, at any of
            these levels.
        soft: Share of the rows that a soft prompt reads which are states of the student's own sampling with it, from
            noise on; 0 makes no such walks.
    """

    name: ClassVar[str] = "walks"

    share: Share = 0.0
    number: Annotated[int, Field(ge=1)] = 8
    steps: Annotated[int, Field(ge=2)] = 16
    latest: Share = 0.7
    soft: Share = 0.0


@dataclass(kw_only=True, eq=False)
class Walk:
    """One sampling along the target or the student, which makes a step whenever a loss has a row of it.

    Attributes:
        schedule: Schedule of the model.
        timesteps: Timesteps of the sampler, the noisiest first.
        latest: Last place in it at which a walk along the target starts.
        clean: Images of the concept as clean latents.
        base_of: Draws the prompt that the target starts from; it holds for the whole walk.
        is_student: Whether it goes along the student, from noise on.
        image: Index of the image.
        base: Row of that prompt.
        read: Row of the prompt that the student reads on the whole walk, if it is the student's.
        latents: Latents.
        place: Place in the timesteps.
    """

    schedule: NoiseSchedule
    timesteps: Timestep
    latest: int
    clean: Float[Tensor, "n c h w"]
    base_of: BaseOf
    is_student: bool = False
    image: int = 0
    base: int = 0
    read: int = 0
    latents: Float[Tensor, "c h w"] = field(default_factory=lambda: torch.empty(0, 0, 0))
    place: int = -1

    @property
    def timestep(self) -> Timestep:
        """The timestep of the latents."""
        return self.timesteps[self.place]

    def begin(self, read: int, generator: torch.Generator) -> None:
        """Start from a noised image, or from noise if it is the student's, unless the walk is on its way.

        Args:
            read: Row of the prompt that the student reads from here on, if the walk is the student's.
            generator: Source of the random numbers.
        """
        if self.place >= 0:
            return
        self.read = read
        self.image = below(len(self.clean), generator)
        self.place = 0 if self.is_student else below(self.latest + 1, generator)
        image = self.clean[self.image : self.image + 1]
        added = torch.randn(image.shape, generator=generator).to(image)
        self.latents = added[0] if self.is_student else self.schedule.noised(image, added, self.timestep)[0]
        self.base = self.base_of(self.image, self.timestep, generator)

    def go_on(self, prediction: Float[Tensor, "c h w"]) -> None:
        """Make one step of the sampler with a prediction; the last one ends the walk."""
        if self.place + 1 == len(self.timesteps):
            self.place = -1
            return
        following = self.timesteps[self.place + 1]
        self.latents = self.schedule.step(prediction[None], self.latents[None], self.timestep, following)[0]
        self.place += 1


def walks_of(
    settings: WalkSettings, schedule: NoiseSchedule, clean: Float[Tensor, "n c h w"], base_of: BaseOf
) -> Sequence[Walk]:
    """Return the walks of a concept along the target, then along the student, none of which has begun."""
    timesteps = schedule.timesteps(settings.steps).to(clean.device)
    latest = min(round(settings.latest * settings.steps), settings.steps - 1)
    numbers = {False: settings.number, True: settings.number if settings.soft else 0}
    return [
        Walk(
            schedule=schedule,
            timesteps=timesteps,
            latest=latest,
            clean=clean,
            base_of=base_of,
            is_student=is_student,
        )
        for is_student, number in numbers.items()
        for _ in range(number)
    ]
