"""The objective `absent`: predictions as if the concept had never been taught."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ...backbones.conditioning import Conditioning, concatenate
from ...concept import Concept
from ...errors import InputError
from ...registry import Exactness
from ...sampling import noise, scheduled_prediction
from ..absence.anchors import far_anchor
from ..absence.batches import ConceptImages, DrawnRow, Material, Shares
from ..absence.images import ImageSettings
from ..absence.walks import Walk, WalkSettings, walks_of
from ..context import TrainingTask
from ..finetune import Loss, below, uniform
from ..inner_attack import InnerAttack, SoftPrompts
from ..student import Student
from .base import Objective

Latents = Float[Tensor, "n c h w"]
Share = Annotated[float, Field(ge=0, le=1)]

_ODDS_LEVELS = 16
_LARGE = 50.0  # a logarithm whose exponential is beyond every largest odds


@dataclass(frozen=True, kw_only=True)
class AbsentWorld(Objective):
    """Distance to the predictions of a model of the world without the concept; it erases and preserves at once.

    A model that was never taught c draws from p(x | not c). The score of the mixture p(x_t | y') is the mean of the
    scores with c and without it, weighted by P = p(c | x_t, y') and 1 - P. So with odds = P / (1 - P), for a prompt y'
    that does not name c,

        eps_absent(x_t, y') = eps_0(x_t, y') - odds (eps_0(x_t, y' + c) - eps_0(x_t, y')).

    The odds are 0 on images that do not show c: there the target is the reference's own prediction. With more kept
    names n the same world is a mixture of what stays, which needs no division by 1 - P:

        eps_absent(x_t, y') = sum_n p(n | x_t, not c) eps_0(x_t, y' + n),

    of which each row takes one term, drawn from p(n | x_t, not c); the mean over draws has the same minimum. At the
    noisiest levels, before any evidence, the mixture is the prediction for y' itself but for the small share of c.

    Rows are noised images of the reference, of four kinds: (1) of c, read by their prompt; (2) of what stays, read by a
    prompt of c; (3) of c, read by anything else: nothing, kept prompts, random tokens, soft prompts of an inner
    attack; (4) of what stays, read as they are. The third kind takes off what the denoiser knows of images of c, so
    that no other way to ask for it remains. A row whose y' is not the prompt of its image takes c's direction from that
    prompt, without c and with it: the same content on both sides.

    Attributes:
        instead: Prediction that the target starts from on images of c: "others" draws a kept name from its posterior,
            "blank" takes the prompt without c. "anchor" is a replacement: prompts of c, and soft prompts, take the one
            about its anchor in every row, and what else reads images of c starts from itself. The eraser `absent`
            finds an anchor for a concept that names none; `tune` does not.
        soft_instead: Prediction that the target of a soft prompt starts from beside "anchor": that for the "anchor", or
            for the empty prompt ("blank"), from which half of the soft prompts start then. A soft prompt may be any
            text, so what it is taught is taught to the prompts of what stays a little, too: a style's anchor makes
            drawings of them.
        odds: "ramp" is `max_odds` in the noisier part and falls linearly to 0 at no noise, "constant" is `max_odds`,
            "estimated" comes from the denoising errors of the reference, on average over the images of c, and is at
            most `max_odds`: 0 where noise hides what an image is. A model that was never taught c still copies the
            pixels that it sees at low noise: exact odds would ask for the impossible.
        max_odds: Largest odds, >= 0; 0 takes nothing off. The exact target with 1 completes
            images of c; see docs/absent.md.
        ramp: Share of the timesteps, the least noisy ones, in which "ramp" falls, in (0, 1].
        images: Images of each concept, > 0.
        kept_images: Images of what stays, > 0.
        sample_steps: Steps of the sampling of these images, > 0.
        guidance_scale: Scale of its classifier-free guidance, >= 1.
        named: Share of rows of the first kind.
        crossed: Share of rows of the second kind.
        crossed_soft: Share of these that a soft prompt reads in the place of a prompt of c. What tells c at low
            noise, as a texture does, a soft prompt asks for on images that do not show it yet.
        otherwise: Share of rows of the third kind; what the three leave is the fourth.
        guided: Scale w of classifier-free guidance, >= 1, at which the student is compared on images of c whose target
            is that of the empty prompt too: e_0 + w (e - e_0) in the place of e, e_0 the student's own prediction for
            the empty prompt, without gradient, which has a row of its own. Sampling multiplies what is left of c in
            e - e_0 by w; this makes the loss see it so. With an anchor, e_0 is the same on both sides and only soft
            prompts are compared so: their error counts w times. 1 compares the predictions as they are.
        mixed: Share of rows of the fourth kind that read another prompt of what stays than that of their image, with
            the reference's prediction for it: many more prompts than there are images.
        attack: Search for the soft prompts of the third kind.
        walks: States on the way of the target's or the student's own sampling, in the place of noised images of c.
    """

    name: ClassVar[str] = "absent"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    quick: ClassVar[Mapping[str, Any]] = {"images": 2, "kept_images": 2, "sample_steps": 2}

    instead: Literal["others", "blank", "anchor"] = "others"
    soft_instead: Literal["anchor", "blank"] = "anchor"
    odds: Literal["ramp", "constant", "estimated"] = "ramp"
    max_odds: Annotated[float, Field(ge=0)] = 3.0
    ramp: Annotated[float, Field(gt=0, le=1)] = 0.3
    images: Annotated[int, Field(ge=1)] = 32
    kept_images: Annotated[int, Field(ge=1)] = 96
    sample_steps: Annotated[int, Field(ge=1)] = 16
    guidance_scale: Annotated[float, Field(ge=1)] = 4.0
    named: Share = 0.25
    crossed: Share = 0.15
    crossed_soft: Share = 0.0
    otherwise: Share = 0.3
    guided: Annotated[float, Field(ge=1)] = 1.0
    mixed: Share = 0.0
    attack: InnerAttack = field(default_factory=InnerAttack)
    walks: WalkSettings = field(default_factory=WalkSettings)

    def __post_init__(self) -> None:
        if (shares := self.named + self.crossed + self.otherwise) > 1 + 1e-9:
            raise InputError(f"absent.otherwise: expected shares of at most 1 together, got {shares:g}. Lower one.")

    def anchored(self, task: TrainingTask) -> Sequence[Concept]:
        """Return the requests, with "anchor" each with the anchor that it names, else with the one that is found."""
        if self.instead != "anchor":
            return task.requests
        images = ImageSettings(steps=self.sample_steps, guidance_scale=self.guidance_scale)
        return [
            request if request.anchor else replace(request, anchor=far_anchor(task, concept, images))
            for request, concept in zip(task.requests, task.concepts, strict=True)
        ]

    def loss(self, task: TrainingTask) -> Loss:
        bare = [concept.target for concept in task.concepts if not concept.anchor]
        if self.instead == "anchor" and bare:
            raise InputError(f"absent.instead: expected an anchor of {bare[0]!r}, got none. Give it one.")
        batches: list[_Batches] = []

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            if not batches:
                batches.append(_Batches(self, task))
            return batches[0].loss(student, step, generator)

        return loss


def absent_prediction(
    base: Latents, named: Latents, odds: Float[Tensor, " n"], without: Latents | None = None
) -> Latents:
    """Return the prediction without a concept, in any linear form.

    Args:
        base: Prediction for a prompt without the concept.
        named: Prediction for a prompt with it.
        odds: Odds of each image to show it, >= 0.
        without: Prediction for what `named` adds the concept to; None: `base`.
    """
    return base - odds.reshape(-1, 1, 1, 1) * (named - (base if without is None else without))


class _Batches:
    """Material, soft prompts and odds of one training."""

    def __init__(self, settings: AbsentWorld, task: TrainingTask) -> None:
        self._settings, self._task = settings, task
        images = ImageSettings(steps=settings.sample_steps, guidance_scale=settings.guidance_scale)
        self._material = material = Material(task, settings.images, settings.kept_images, images, settings.mixed > 0)
        self._shares = Shares(
            named=settings.named,
            crossed=settings.crossed,
            otherwise=settings.otherwise,
            crossed_soft=settings.crossed_soft,
            mixed=settings.mixed,
        )
        self._attacks = [
            SoftPrompts(settings.attack, task.backbone, concept.clean, material.prompts.select(self._starts(concept)))
            for concept in material.concepts
            if settings.attack.prompts
        ]
        drawn = settings.instead == "others"
        self._others = material.evidence([each.others for each in material.concepts]) if drawn else []
        self._log_odds = material.log_odds(_ODDS_LEVELS) if settings.odds == "estimated" else []
        self._walks = [
            walks_of(settings.walks, task.backbone.schedule, images.clean, partial(self._drawn_base, i))
            for i, images in enumerate(material.concepts)
        ]

    @property
    def _is_bare(self) -> bool:
        """Whether the target of a soft prompt starts from the empty prompt."""
        return self._settings.instead == "anchor" and self._settings.soft_instead == "blank"

    def loss(self, student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Return the loss of a step."""
        task, schedule = self._task, self._task.backbone.schedule
        for attack in self._attacks:
            attack.advance(student, step, generator)
        n = task.batch_size
        soft = [len(attack) for attack in self._attacks]
        rows = [self._anchored(self._material.drawn(i, n, self._shares, soft, generator)) for i in range(n)]
        free = [list(walks) for walks in self._walks]
        rows = [self._on_a_walk(row, free, generator) for row in rows]
        rows.sort(key=lambda row: row.read < 0)
        clean = torch.stack([row.clean for row in rows])
        timesteps = schedule.drawn(n, generator).to(clean.device)
        noisy = schedule.noised(clean, noise([generator] * n, task.backbone.latent_shape()).to(clean), timesteps)
        walks = {i: row.walk for i, row in enumerate(rows) if row.walk is not None}
        for i, walk in walks.items():
            noisy[i], timesteps[i] = walk.latents, walk.timestep
        expected, named = self._expected(rows, noisy, timesteps, generator)
        for i, walk in walks.items():
            if not walk.is_student:
                walk.go_on(expected[i])
        counted = [i for i, row in enumerate(rows) if self._settings.guided > 1 and self._counts_guided(row)]
        pairs = counted if self._settings.instead != "anchor" else []
        where = [*range(n), *pairs]
        here = self._attacked(student, self._read(rows), noisy, timesteps, named)
        read = concatenate([here, *[self._material.unprompted] * len(pairs)])
        predicted = student(scheduled_prediction, task.backbone, noisy[where], timesteps[where], read)
        self._go_on(student, predicted[:n], noisy, {i: walk for i, walk in walks.items() if walk.is_student})
        free = predicted[n:].detach() if pairs else expected[counted]  # guided from the target, the error counts alone
        return F.mse_loss(self._guided(predicted, free, counted), expected[where])

    def _attacked(
        self,
        student: Student,
        read: Conditioning,
        noisy: Latents,
        timesteps: Int[Tensor, " n"] | Float[Tensor, " n"],
        named: Mapping[int, Float[Tensor, "c h w"]],
    ) -> Conditioning:
        """Return the prompts, soft ones moved towards those that the student answers as the reference answers c.

        Args:
            student: Model under training.
            read: Prompts of the rows, soft ones last.
            noisy: States.
            timesteps: Their timesteps.
            named: Prediction of the reference for the prompt of c, by row, of the rows that read a soft prompt.
        """
        attack, rows = self._settings.attack, sorted(named)
        if not attack.strides or not rows:
            return read
        aim = torch.stack([named[i] for i in rows])

        def distance(prompts: Conditioning) -> Float[Tensor, " n"]:
            predicted = student(scheduled_prediction, self._task.backbone, noisy[rows], timesteps[rows], prompts)
            return (predicted - aim).square().flatten(1).mean(1)

        others = [i for i in range(len(read)) if i not in named]
        moved = attack.moved(read.select(rows), distance)
        return concatenate([*([read.select(others)] if others else []), moved])

    @torch.no_grad()
    def _go_on(self, student: Student, predicted: Latents, noisy: Latents, walks: Mapping[int, Walk]) -> None:
        """Make a step of the walks of the student, guided as the images of the material are."""
        if not walks:
            return
        rows = list(walks)
        timesteps = torch.stack([walk.timestep for walk in walks.values()])
        read = concatenate([self._material.unprompted] * len(rows))
        free = student(scheduled_prediction, self._task.backbone, noisy[rows], timesteps, read)
        guided = free + self._settings.guidance_scale * (predicted[rows] - free)
        for walk, prediction in zip(walks.values(), guided, strict=True):
            walk.go_on(prediction)

    def _anchored(self, row: DrawnRow) -> DrawnRow:
        """Let the target of what is no prompt of a concept, and reads an image of it, start from that itself."""
        if self._settings.instead != "anchor" or row.read == row.named or row.against is not None:
            return row
        if row.read < 0 and not self._is_bare:
            return row
        if row.concept is None:
            return replace(row, base=self._material.unconditional) if row.read < 0 else row
        return self._material.from_itself(row, row.concept, row.image)

    def _counts_guided(self, row: DrawnRow) -> bool:
        """Return True if a row on an image of a concept has the target of the concept's prompts, and reads a prompt."""
        if row.concept is None or row.read == self._material.unconditional:
            return False
        if self._settings.instead == "anchor":
            return row.read < 0
        return row.read < 0 or row.base in self._material.concepts[row.concept].blank

    def _guided(self, predicted: Latents, free: Float[Tensor, "k c h w"], counted: Sequence[int]) -> Latents:
        """Return predictions in which the counted ones are guided from others."""
        if not counted:
            return predicted
        guided = free + self._settings.guided * (predicted[counted] - free)
        return predicted.index_copy(0, torch.tensor(counted, device=predicted.device), guided)

    def _starts(self, images: ConceptImages) -> list[int]:
        """Return the prompts that soft ones start from: without the concept, half of them empty if that is taught."""
        if not self._is_bare:
            return list(dict.fromkeys(images.blank))
        texts = [row for row in dict.fromkeys(images.bare) if row != self._material.unconditional]
        return [*texts, *[self._material.unconditional] * max(1, len(texts))]

    def _read(self, rows: Sequence[DrawnRow]) -> Conditioning:
        texts = [row.read for row in rows if row.read >= 0]
        parts = [self._material.prompts.select(texts)] if texts else []
        for row in rows:
            if row.attack is not None:
                parts.append(self._attacks[row.attack].read([-1 - row.read]))
        return concatenate(parts)

    @torch.no_grad()
    def _expected(
        self,
        rows: Sequence[DrawnRow],
        noisy: Latents,
        timesteps: Int[Tensor, " n"] | Float[Tensor, " n"],
        generator: torch.Generator,
    ) -> tuple[Latents, dict[int, Float[Tensor, "c h w"]]]:
        """Return the target of each row, and of those that read a soft prompt the reference's prediction with c."""
        bases = [self._base(row, timesteps[i], generator) for i, row in enumerate(rows)]
        odds = torch.tensor([self._odds_of(row, timesteps[i]) for i, row in enumerate(rows)])
        strides = self._settings.attack.strides
        some = [i for i, value in enumerate(odds.tolist()) if value or (strides and rows[i].read < 0)]
        against = [bases[i] if (against := rows[i].against) is None else against for i in some]
        apart = [k for k, i in enumerate(some) if against[k] != bases[i]]
        texts = [*bases, *(rows[i].named for i in some), *(against[k] for k in apart)]
        every = [*range(len(rows)), *some, *(some[k] for k in apart)]
        read = self._material.known_prompts.select(texts)
        with self._task.reference():
            predicted = scheduled_prediction(self._task.backbone, noisy[every], timesteps[every], read)
        base, named, rest = predicted.split([len(rows), len(some), len(apart)])
        without = base[some]
        without[apart] = rest
        base[some] = absent_prediction(base[some], named, odds[some].to(base), without)
        return base, {i: one for i, one in zip(some, named, strict=True) if rows[i].read < 0}

    def _on_a_walk(self, row: DrawnRow, free: Sequence[list[Walk]], generator: torch.Generator) -> DrawnRow:
        """Put a share of the rows with the target of the concept's or of the empty prompt on walks that are free."""
        if row.concept is None:
            return row
        bare = row.against is not None and row.base == self._material.unconditional
        if not bare and row.base not in self._material.concepts[row.concept].blank:
            return row
        if self._settings.walks.soft and row.read < 0 and uniform(generator) < self._settings.walks.soft:
            walks = [walk for walk in free[row.concept] if walk.is_student]
        elif self._settings.walks.share and uniform(generator) < self._settings.walks.share:
            walks = [walk for walk in free[row.concept] if not walk.is_student]
        else:
            return row
        if not walks:
            return row
        images, walk = self._material.concepts[row.concept], walks[below(len(walks), generator)]
        free[row.concept].remove(walk)
        walk.begin(row.read, generator)
        if bare:
            row = self._material.from_itself(row, row.concept, walk.image)
            return replace(row, read=walk.read if walk.is_student else row.read, walk=walk)
        named, base = images.named[walk.image], images.blank[walk.image]
        read = named if row.read == row.named else row.read
        read = walk.read if walk.is_student else read
        return replace(row, read=read, base=base, named=named, image=walk.image, walk=walk)

    def _base(self, row: DrawnRow, timestep: Tensor, generator: torch.Generator) -> int:
        """Return the prompt that a row's target starts from."""
        if row.against is not None:
            return row.base
        if row.walk is not None:
            return row.walk.base
        if row.concept is None or row.base not in self._material.concepts[row.concept].blank:
            return row.base  # a kept prompt says what is there
        return self._drawn_base(row.concept, row.image, timestep, generator)

    def _drawn_base(self, concept: int, image: int, timestep: Tensor, generator: torch.Generator) -> int:
        """Return the prompt about a kept name drawn from its posterior, or the one without the concept."""
        images = self._material.concepts[concept]
        level = self._material.level_of(timestep)
        if not level or not self._others or not self._others[concept].shape[1]:
            # Without evidence the mean over all names is the blank's prediction.
            return images.blank[image]
        evidence = self._others[concept][image, :, level]
        name = torch.multinomial(evidence.softmax(0), 1, generator=generator)
        return int(images.others[image, name])

    def _odds_of(self, row: DrawnRow, timestep: Tensor) -> float:
        settings = self._settings
        if row.concept is None:
            return 0.0
        if settings.odds == "constant":
            return settings.max_odds
        if settings.odds == "ramp":
            share = float(timestep) / self._task.backbone.schedule.total
            return settings.max_odds * min(1.0, share / settings.ramp)
        rest = len(self._task.concepts[row.concept].preserve) or 1
        log_odds = float(np.interp(float(timestep), *self._log_odds[row.concept])) - math.log(rest)
        return min(settings.max_odds, math.exp(min(log_odds, _LARGE)))
