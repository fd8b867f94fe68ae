"""Noised images of concepts, made by the model before the first removal, with prompts that name the concept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ...backbones.base import Backbone
from ...backbones.conditioning import Conditioning
from ...backbones.schedule import NoiseSchedule, Timestep
from ...concept import Concept, Kind
from ...errors import InputError
from ...prompts import anchored, fill, templates
from ...sampling import SamplingSettings, scheduled_prediction
from ..context import FitContext, TrainingTask
from ..finetune import Loss, below
from ..replay_memory import remembered
from ..student import Student
from ..trajectories import encoded

Latents = Float[Tensor, "n c h w"]
Shown = Literal["target", "anchor"]
"""Content of images: the concept, or what its anchor makes of the same sentences."""

_IMAGE_SEED = 60_000_000


@dataclass(frozen=True, kw_only=True)
class ImagePrompt:
    """Prompt of an image.

    Attributes:
        concept: Concept of the image.
        word: Name of the concept in the prompt.
        template: Sentence with `{}` in the place of the word.
    """

    concept: Concept
    word: str
    template: str

    @property
    def named(self) -> str:
        """The prompt."""
        return fill(self.template, self.word)

    @property
    def anchor(self) -> str:
        """The prompt with the concept's anchor in the place of the concept."""
        return anchored(self.template, self.concept)

    @property
    def blank(self) -> str:
        """The prompt without the concept."""
        return anchored(self.template, Concept(target=self.concept.target, kind=self.concept.kind))


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisedDraw:
    """Noised images with their prompts.

    Attributes:
        latents: Noised latents x_t, float32.
        timesteps: Timestep of each.
        truth: Prediction that leads from x_t to the image: the noise eps of a discrete schedule, or the velocity.
        rows: Index of the image of each.
        prompts: Prompt of each.
        named: Encoded prompts that name the concept.
        anchors: The same with the anchor in the concept's place.
        mask: 1 where a latent shows the image, 0 in the padding around one that was shrunk; None without padding.
    """

    latents: Latents
    timesteps: Timestep
    truth: Latents
    rows: tuple[int, ...]
    prompts: tuple[ImagePrompt, ...]
    named: Conditioning
    anchors: Conditioning
    mask: Float[Tensor, "n 1 h w"] | None = None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class ShownImages:
    """Images before they are noised; see `NoisedDraw`.

    Attributes:
        clean: Clean latents, float32.
        named: Encoded prompts that name the concept.
        anchors: The same with the anchor in the concept's place.
        mask: Latents that show the image; None for all.
    """

    clean: Latents
    named: Conditioning
    anchors: Conditioning
    mask: Float[Tensor, "n 1 h w"] | None = None


class NoisedImages:
    """Images of concepts, noised anew at each draw.

    Args:
        context: Surroundings of the fit; its original weights make the images, its folder keeps them.
        concepts: Concepts of the images; each has as many.
        images: Images of each concept, > 0.
        image_steps: Sampling steps of an image, > 0.
        early: Share of the schedule that timesteps are drawn from, the noisiest part, in (0, 1].
        shows: Whether the images are of the prompts that name the concept, or of those with its anchor.

    Raises:
        InputError: There are no concepts.
    """

    def __init__(
        self,
        context: FitContext,
        concepts: Sequence[Concept],
        *,
        images: int,
        image_steps: int,
        early: float = 1.0,
        shows: Shown = "target",
    ) -> None:
        if not concepts:
            raise InputError("images: expected at least one concept, got none. Name what the images show.")
        self._backbone, self._early, self._each = context.backbone, early, images
        self.prompts = tuple(prompt for concept in concepts for prompt in image_prompts(concept, images))
        self.concepts = len(concepts)
        sampling = SamplingSettings.of(context.backbone.pipe, steps=image_steps, batch_size=8)
        texts = [prompt.named if shows == "target" else prompt.anchor for prompt in self.prompts]
        memory = remembered(context, texts, sampling=sampling, seed=_IMAGE_SEED)
        self.latents = memory.latents
        self._named = encoded(self._backbone, [prompt.named for prompt in self.prompts])
        self._anchors = encoded(self._backbone, [prompt.anchor for prompt in self.prompts])

    def draw(self, n: int, generator: torch.Generator, concept: int | None = None) -> NoisedDraw:
        """Return noised images, each of a random concept, or all of the one of index `concept`."""
        concepts = [below(self.concepts, generator) if concept is None else concept for _ in range(n)]
        return self.noised([each * self._each + below(self._each, generator) for each in concepts], generator)

    def noised(self, rows: Sequence[int], generator: torch.Generator) -> NoisedDraw:
        """Return some images with fresh noise."""
        schedule, device = self._backbone.schedule, self._backbone.device
        timesteps = early_timesteps(schedule, len(rows), self._early, generator).to(device)
        shown = self._shown(rows, generator)
        clean = shown.clean.to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        latents = schedule.noised(clean, noise, timesteps)
        return NoisedDraw(
            latents=latents,
            timesteps=timesteps,
            truth=schedule.prediction(schedule.target(clean, noise, timesteps), latents, timesteps),
            rows=tuple(rows),
            prompts=tuple(self.prompts[row] for row in rows),
            named=shown.named,
            anchors=shown.anchors,
            mask=shown.mask,
        )

    def _shown(self, rows: Sequence[int], generator: torch.Generator) -> "ShownImages":
        """Return the clean latents of some images with their prompts."""
        clean = self.latents[list(rows)].float()
        return ShownImages(clean=clean, named=self._named.select(rows), anchors=self._anchors.select(rows))


def image_prompts(concept: Concept, n: int) -> list[ImagePrompt]:
    """Return the prompts of n images of a concept; its names and the templates of its kind take turns."""
    names, sentences = concept.names, templates(concept.kind)
    turns = [(names[(i + i // len(sentences)) % len(names)], sentences[i % len(sentences)]) for i in range(n)]
    return [ImagePrompt(concept=concept, word=word, template=sentence) for word, sentence in turns]


def kept_concepts(concepts: Sequence[Concept]) -> list[Concept]:
    """Return each preserved name as a concept without an anchor."""
    kinds: dict[str, Kind] = {name: concept.kind for concept in concepts for name in concept.preserve}
    return [Concept(target=name, kind=kind) for name, kind in kinds.items()]


def early_timesteps(schedule: NoiseSchedule, n: int, early: float, generator: torch.Generator) -> Timestep:
    """Return random timesteps of the noisiest share of a schedule, on the CPU."""
    levels = schedule.timesteps(schedule.total - 1)
    return levels[torch.randint(max(1, round(early * len(levels))), (n,), generator=generator)]


def squared_errors(
    predicted: Latents, truth: Latents, mask: Float[Tensor, "n 1 h w"] | None = None
) -> Float[Tensor, " n"]:
    """Return the mean squared error of each prediction, over the latents inside the mask where there is one."""
    errors = (predicted - truth).square()
    if mask is None:
        return errors.flatten(1).mean(1)
    return (errors.mean(1, keepdim=True) * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)


def read_by(student: Student, backbone: Backbone, batch: NoisedDraw, prompts: Conditioning) -> Latents:
    """Return the student's prediction for a batch under some prompts, with gradient."""

    def predicted() -> Latents:
        return scheduled_prediction(backbone, batch.latents, batch.timesteps, reread(student, backbone, prompts))

    return student(predicted)


def reread(student: Student, backbone: Backbone, prompts: Conditioning) -> Conditioning:
    """Return prompts as a text encoder under training reads them; as they are if none is trained.

    To be called while the student's weights stand in for the pipeline's.
    """
    encoders = backbone.tokenizers()
    if not any(leaf.name.partition(".")[0] in encoders for leaf in student.leaves):
        return prompts
    return backbone.encode_ids(prompts.ids)


@torch.no_grad()
def reference_reads(task: TrainingTask, batch: NoisedDraw, prompts: Conditioning) -> Latents:
    """Return the reference's prediction for a batch under some prompts."""
    with task.reference():
        return scheduled_prediction(task.backbone, batch.latents, batch.timesteps, prompts)


def erasing_loss(task: TrainingTask, images: NoisedImages, batch_size: int = 4) -> Loss:
    """Return the plain erasing loss |eps(x_t, c) - eps_0(x_t, a)|^2 at noised images of c with the anchor a.

    It stands for the main loss where a piece has to measure what an erasure moves, whatever the objective is.
    """

    def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        batch = images.draw(batch_size, generator)
        aim = reference_reads(task, batch, batch.anchors)
        return squared_errors(read_by(student, task.backbone, batch, batch.named), aim).mean()

    return loss


def relearning_loss(task: TrainingTask, images: NoisedImages, batch_size: int = 4) -> Loss:
    """Return the loss of somebody who trains the concept back: |eps(x_t, c) - eps|^2 at its noised images."""

    def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        batch = images.draw(batch_size, generator)
        return squared_errors(read_by(student, task.backbone, batch, batch.named), batch.truth).mean()

    return loss
