"""Guidance of the latents by a loss on cross-attention maps: what A-STAR and Attend-and-Excite share.

Before the denoiser's step the latents are moved against the gradient of a loss on the maps of the named concepts:
z' = z - alpha_i grad L(z). The step itself is the pipeline's own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor, nn

from ..backbones.loaded import denoiser_of
from ..losses.attention import soft_iou
from .denoising import Denoising
from .map_reading import ConceptMaps, MapReading, Named
from .steps import Latents, around_each_step

Schedule = Literal["sqrt", "constant", "half"]

# Keeps small gradients of a float16 denoiser from becoming zero on their way back.
_LOSS_SCALE = 2.0**10


@dataclass(frozen=True, kw_only=True)
class GuidedStep:
    """Record of one guided step, for logs and figures.

    Attributes:
        step: Index of the step in the schedule, from 0.
        timestep: Timestep of the scheduler.
        loss: The whole loss of each image before the update.
        last_loss: The same where it was last looked at: before the last update of a step that is refined.
        terms: Each term of it by name, for each image.
        overlap: The soft IoU of each image's concepts before the update, mean over pairs; 0 for a single concept.
        moved: Length of each image's update, as a share of the norm of its latents.
        updates: Number of updates of each image.
        maps: Each image's concept maps before the update, (concepts, height, width), after normalisation.
    """

    step: int
    timestep: float
    loss: list[float]
    last_loss: list[float]
    terms: dict[str, list[float]]
    overlap: list[float]
    moved: list[float]
    updates: list[int]
    maps: list[Tensor] = field(repr=False)


Masks = Mapping[int, Float[Tensor, "h w"]]
OnGuided = Callable[[GuidedStep], None]
Terms = dict[str, Float[Tensor, ""]]


@dataclass(frozen=True, kw_only=True)
class AttentionGuidance(MapReading, ABC):
    """Move of the latents so that concepts' attention maps have a low loss.

    Attributes:
        alpha: Size of the update: latents lose alpha_i times the gradient of their loss.
        schedule: Decay of alpha over the steps: "sqrt" from alpha to alpha times the square root of a half,
            "constant", or "half": constant over the first half, then linearly to 0.
        steps_range: The part of the schedule that is guided, as shares of it from 0 to 1.
        clip: Longest update, as a share of the latents' norm; None does not clip.
        refine_at: Steps of the schedule at which the update is repeated until the loss is low enough.
        refine_updates: The most updates of such a step.
    """

    alpha: float = 20.0
    schedule: Schedule = "sqrt"
    steps_range: tuple[float, float] = (0.0, 1.0)
    clip: float | None = None
    refine_at: tuple[int, ...] = ()
    refine_updates: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("alpha", self.alpha >= 0, "a number of at least 0", "0 switches the guidance off")
        self.require("clip", self.clip is None or self.clip > 0, "a number > 0 or None", "None does not clip")
        self.require("refine_updates", self.refine_updates >= 1, "at least 1", "leave refine_at empty not to refine")
        self.require_shares("steps_range")

    @abstractmethod
    def terms(self, maps: ConceptMaps, masks: Masks, named: Named) -> Terms:
        """Return the loss of one image by its terms.

        Args:
            maps: One for each concept.
            masks: The regions that they held at the step before, or that the user gave, by the concept's place; empty
                where there are none.
            named: The concepts.
        """

    def masks(self, maps: ConceptMaps, step: int) -> Masks:
        """Return the regions to keep from this step to the next; none where the loss uses none."""
        return {}

    @abstractmethod
    def low_enough(self, terms: Terms, before: Terms | None, concepts: int, step: int) -> bool:
        """Return True if a refined step's loss is low enough; `before` has the terms before the last update."""

    @property
    def most_updates(self) -> int:
        """The most updates of a refined step."""
        return self.refine_updates

    def updates_again(self, low: Sequence[bool]) -> bool:
        """Return True if a refined step updates an image after the last of these evaluations of its loss.

        Args:
            low: Whether the loss was low enough, for each evaluation in the step.
        """
        return len(low) == 1 or not low[-1]

    @contextmanager
    def guiding(
        self,
        pipe: DiffusionPipeline,
        named: Callable[[], Sequence[Named]],
        *,
        on_guided: OnGuided | None = None,
    ) -> Generator[None]:
        """Guide the pipeline's loop for the length of a `with`; no weight is changed and none gets a gradient.

        Args:
            pipe: A diffusers pipeline with a UNet, or one of flow matching whose maps guide.
            named: Says where the concepts of each image's prompt are; asked at every step.
            on_guided: Called after each guided step.
        """
        if self.alpha == 0:
            yield
            return
        denoiser = denoiser_of(pipe)
        run = _Run(self, denoiser, named, on_guided)
        required = {parameter: parameter.requires_grad for parameter in denoiser.parameters()}
        try:
            for parameter in required:
                parameter.requires_grad_(False)
            with around_each_step(pipe, rows=run.rows, before=run.update, needs="map guidance"):
                yield
        finally:
            for parameter, was in required.items():
                parameter.requires_grad_(was)

    def alpha_at(self, step: int, total: int) -> float:
        """Return the size of the update at a step of a schedule; 0 outside of the guided part."""
        if not within(self.steps_range, step, total):
            return 0.0
        done = step / max(total - 1, 1)
        match self.schedule:
            case "sqrt":
                return self.alpha * (1 - done / 2) ** 0.5
            case "constant":
                return self.alpha
            case "half":
                return self.alpha * min(1.0, 2 * (1 - done))


class _Run:
    """One loop's guidance: what it remembers from step to step."""

    def __init__(
        self,
        settings: AttentionGuidance,
        denoiser: nn.Module,
        named: Callable[[], Sequence[Named]],
        on_guided: OnGuided | None,
    ) -> None:
        self.settings = settings
        self.denoiser = denoiser
        self.named = named
        self.on_guided = on_guided
        self.masks: list[Masks] = []
        self.capture = settings.capture(denoiser)

    def rows(self) -> int:
        """Return the number of images; 0 where none of their prompts names a concept."""
        named = self.named()
        return len(named) if any(len(row.positions) for row in named) else 0

    def update(self, call: Denoising) -> Latents:
        """Return the latents that the step goes on with."""
        settings = self.settings
        if call.first or len(self.masks) != len(call.latents):
            self.masks = [{}] * len(call.latents)
        if (alpha := settings.alpha_at(call.step, call.total)) == 0:
            return call.latents
        named, refined = self.named(), call.step in settings.refine_at
        low: list[list[bool]] = [[] for _ in named]
        latents, updates = call.latents, torch.zeros(len(named), dtype=torch.long)
        first: tuple[list[Tensor | None], list[Terms]] | None = None
        maps, terms = list[Tensor | None](), list[Terms]()
        moving = torch.tensor([len(row.positions) > 0 for row in named])
        for _ in range(settings.most_updates if refined else 1):
            before, (maps, terms, gradient) = terms, self._gradient(call, latents, named)
            first = first or (maps, terms)
            for i in moving.nonzero()[:, 0].tolist() if refined else ():
                then, words = before[i] if before else None, len(named[i].positions)
                low[i].append(settings.low_enough(terms[i], then, words, call.step))
                moving[i] = settings.updates_again(low[i])
            if not moving.any():
                break
            # An image that is done stays, so that its updates are those that it has alone.
            changing = moving.to(latents.device)[:, None, None, None]
            latents = torch.where(changing, self._moved(latents, alpha * gradient), latents)
            updates += moving
        self.masks = [{} if image_maps is None else settings.masks(image_maps, call.step) for image_maps in maps]
        if self.on_guided is not None and first is not None:
            self.on_guided(_guided(call, *first, terms, latents, updates.tolist()))
        return latents

    def _gradient(
        self, call: Denoising, latents: Latents, named: Sequence[Named]
    ) -> tuple[list[Tensor | None], list[Terms], Latents]:
        """Return each image's concept maps without gradient, the terms of its loss, and the gradient of the sum."""
        with torch.enable_grad():
            leaf = latents.detach().float().requires_grad_()
            maps = [
                self.settings.concept_maps(attention, row) if row.positions else None
                for attention, row in zip(self._attention(call, leaf), named, strict=True)
            ]
            terms: list[Terms] = [
                {}
                if image_maps is None
                else self.settings.terms(image_maps, self._masks_of(image_index, row, image_maps), row)
                for image_index, (image_maps, row) in enumerate(zip(maps, named, strict=True))
            ]
            # The images do not meet in the denoiser: the gradient of the sum is that of each.
            total = torch.stack([value for row in terms for value in row.values()]).sum()
            (gradient,) = torch.autograd.grad(total * _LOSS_SCALE, leaf)
        detached = [{name: value.detach() for name, value in row.items()} for row in terms]
        return (
            [None if image_maps is None else image_maps.detach() for image_maps in maps],
            detached,
            gradient / _LOSS_SCALE,
        )

    def _attention(self, call: Denoising, latents: Latents) -> Float[Tensor, "batch tokens rows columns"]:
        maps = self.capture.read_from(lambda: call.predict(latents))
        return self.settings.attention(self.capture, maps, latents, self.denoiser)

    def _masks_of(self, image_index: int, named: Named, maps: ConceptMaps) -> Masks:
        """Return the regions of the step before, those that the user gave in their place."""
        return {**self.masks[image_index], **{place: _resized(mask, maps) for place, mask in named.layout.items()}}

    def _moved(self, latents: Latents, change: Latents) -> Latents:
        if self.settings.clip is not None:
            norms, longest = _norms(change), self.settings.clip * _norms(latents)
            change = change * (longest / norms.clamp(min=1e-12)).clamp(max=1)[:, None, None, None]
        return (latents.float() - change).to(latents.dtype)


def _guided(
    call: Denoising,
    maps: Sequence[Tensor | None],
    terms: Sequence[Terms],
    last: Sequence[Terms],
    latents: Latents,
    updates: list[int],
) -> GuidedStep:
    names = list(dict.fromkeys(name for row in terms for name in row))
    known_maps = [torch.empty(0, 1, 1) if row is None else row for row in maps]
    return GuidedStep(
        step=call.step,
        timestep=float(call.timestep.reshape(-1)[0]),
        loss=[float(sum(row.values())) for row in terms],
        last_loss=[float(sum(row.values())) for row in last],
        terms={name: [float(row.get(name, 0.0)) for row in terms] for name in names},
        overlap=[mean_overlap(row) for row in known_maps],
        moved=(_norms(latents - call.latents) / _norms(call.latents)).tolist(),
        updates=updates,
        maps=[row.cpu() for row in known_maps],
    )


def mean_overlap(maps: ConceptMaps) -> float:
    """Return the soft IoU of the concepts, mean over pairs; 0 where there is no pair."""
    pairs = [(one, other) for one in range(len(maps)) for other in range(one)]
    return float(sum(soft_iou(maps[one], maps[other]) for one, other in pairs)) / len(pairs) if pairs else 0.0


def within(shares: tuple[float, float], step: int, total: int) -> bool:
    """Return True if a step is in the part of a schedule between two shares of it."""
    start, end = shares
    return start * total <= step < end * total


def _norms(latents: Latents) -> Float[Tensor, " n"]:
    return latents.float().flatten(1).norm(dim=1)


def _resized(mask: Float[Tensor, "height width"], maps: ConceptMaps) -> Float[Tensor, "h w"]:
    """Return a mask at the size of the maps, where at least half of a pixel is covered."""
    size = maps.shape[-2:]
    covered = nn.functional.adaptive_avg_pool2d(mask[None, None].to(maps), (size[0], size[1]))[0, 0]
    return (covered >= 0.5).to(maps.dtype)
