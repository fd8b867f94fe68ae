"""The rows of the objective `absent`: noisy images, the prompts that they are read with, and those of the target."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...backbones.conditioning import Conditioning
from ...backbones.schedule import Timestep
from ...concept import Concept
from ...io.tensor_cache import stored
from ...prompts import anchored, blank, fill, templates
from ..context import TrainingTask
from ..finetune import below, uniform
from .evidence import log_evidence
from .images import ImageSettings, sampled_images
from .prompts import PromptTable, asking_names, kept_pairs, random_prompts
from .walks import Walk

_EVIDENCE_LEVELS = 4
_UNCONDITIONAL = 1 / 8  # share of the kept images that have no prompt
_JOINED = 1 / 2  # share of those that name a second thing that stays, such as a place or a style
_RANDOM_PROMPTS = 48
_MIXED_PROMPTS = 512


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Shares of the four kinds of rows; the rest are kept images read as they are.

    Attributes:
        named: Images of the concept read by their prompt.
        crossed: Kept images read by a prompt with the concept.
        otherwise: Images of the concept read by anything else.
        crossed_soft: Share of the crossed rows, as far as there are soft prompts, that one of these reads.
        mixed: Share of the kept images that another kept prompt than their own reads.
    """

    named: float
    crossed: float
    otherwise: float
    crossed_soft: float = 0.0
    mixed: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnRow:
    """One row of a batch.

    Attributes:
        clean: Image as clean latents.
        read: Row of the prompt that the student reads; -1 - i for the i-th soft prompt of the concept.
        base: Row of the prompt whose prediction the target starts from.
        named: Row of the prompt with the concept whose direction is taken off.
        against: Row of the prompt without it that the direction starts from; None for the base.
        concept: Index of the concept that the image shows; None if it shows none.
        image: Index of the image among those of its concept.
        attack: Index of the concept whose soft prompt the student reads; None for a prompt.
        walk: State of a sampling in the place of the noised image; None for that.
    """

    clean: Float[Tensor, "c h w"]
    read: int
    base: int
    named: int
    against: int | None = None
    concept: int | None = None
    image: int = 0
    attack: int | None = None
    walk: Walk | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ConceptImages:
    """Images of a concept.

    Attributes:
        clean: Clean latents.
        named: Row of the prompt of each.
        blank: Row of the same prompt without the concept, with its anchor where it has one.
        bare: Row of the same prompt without the concept and without an anchor.
        others: Rows of the same prompt about each kept name.
        crossings: Rows of prompts with the concept and without it.
    """

    clean: Float[Tensor, "n c h w"]
    named: Sequence[int]
    blank: Sequence[int]
    bare: Sequence[int]
    others: Int[Tensor, "n k"]
    crossings: Sequence[tuple[int, int]]


class Material:
    """Images and encoded prompts of a training; everything is made at once, by the reference.

    Attributes:
        prompts: Prompts as the model under training reads them.
        known_prompts: The same as the reference reads them.

    Args:
        task: Model and concepts.
        images: Images of each concept, > 0.
        kept_images: Images of what stays, > 0.
        settings: Sampling of the images.
        mixed: Whether to have kept prompts beside those of the images.
    """

    def __init__(
        self, task: TrainingTask, images: int, kept_images: int, settings: ImageSettings, mixed: bool = False
    ) -> None:
        self._task = task
        table = PromptTable()
        generator = torch.Generator().manual_seed(task.context.seed)
        self.unconditional = table.row("")
        self.concepts = [self._of(concept, images, settings, table) for concept in task.concepts]
        self._kept_names: dict[str, list[str]] = {}
        for prompt, name in (pair for concept in task.concepts for pair in kept_pairs(concept, task.concepts)):
            self._kept_names.setdefault(name, []).append(prompt)
        self._keep(kept_images, settings, table, generator)
        self._mixed = [table.row(self._kept_prompt(i, generator)) for i in range(_MIXED_PROMPTS if mixed else 0)]
        texts = random_prompts(task.backbone, _RANDOM_PROMPTS, task.concepts, generator)
        self.random = [table.row(text) for text in texts]
        self.prompts = self.known_prompts = table.encoded(task.backbone)
        if task.context.encoders_changed:
            with task.reference():
                self.known_prompts = table.encoded(task.backbone)
        schedule = task.backbone.schedule
        self.levels = schedule.timesteps(_EVIDENCE_LEVELS)

    def log_odds(self, steps: int) -> list[tuple[list[float], list[float]]]:
        """Return timesteps, rising, and for each concept the mean log p(x_t | y', c) - log p(x_t | y') of its images.

        Args:
            steps: Number of noise levels; at the noisiest one nothing is known yet.
        """
        levels = self._task.backbone.schedule.timesteps(steps)
        rows = [torch.tensor([images.named, images.bare]).T for images in self.concepts]
        places = [float(place) for place in [self._task.backbone.schedule.total, *levels.tolist()]][::-1]
        ratios = [(each[:, 0] - each[:, 1]).mean(0) for each in self.evidence(rows, levels)]
        return [(places, ratio.tolist()[::-1]) for ratio in ratios]

    def evidence(
        self, rows: Sequence[Int[Tensor, "_ _"]], levels: Timestep | None = None
    ) -> list[Float[Tensor, "_ _ levels"]]:
        """Return the log likelihood of each concept's images under rows of prompts, with a level without any first.

        Args:
            rows: Rows of the prompts that each image of a concept is read with.
            levels: Timesteps, the noisiest first; None: `levels`.
        """
        evidence, levels = [], self.levels if levels is None else levels
        task = self._task
        for images, candidates in zip(self.concepts, rows, strict=True):
            with task.reference():
                prompts = [[self.known_prompts.prompts[i] for i in some] for some in candidates.tolist()]
                digest = hashlib.sha256(images.clean.cpu().numpy().tobytes()).hexdigest()
                key = ["evidence", task.backbone.fingerprint(), digest, prompts, levels.tolist()]
                make = partial(self._evidence, images.clean, candidates, levels)
                tensors = stored(task.context.history.memory, key, make)
            by_level = tensors["evidence"]
            evidence.append(torch.cat([torch.zeros_like(by_level[..., :1]), by_level], dim=-1))
        return evidence

    def _evidence(
        self, clean: Float[Tensor, "n c h w"], rows: Int[Tensor, "n k"], levels: Timestep
    ) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self._task.context.seed + 1)
        return {"evidence": log_evidence(self._task.backbone, clean, self.known_prompts, rows, levels, generator)}

    @property
    def unprompted(self) -> Conditioning:
        """The empty prompt as the model under training reads it."""
        return self.prompts.select([self.unconditional])

    def level_of(self, timestep: Timestep) -> int:
        """Return the index of the evidence at a timestep: that of all noisier levels."""
        return int((self.levels >= timestep.cpu()).sum())

    def drawn(
        self, i: int, n: int, shares: Shares, soft_prompts: Sequence[int], generator: torch.Generator
    ) -> DrawnRow:
        """Return a random row, the i-th of n: its kind is drawn so that a batch holds the shares as nearly as it can.

        The target of a row starts from the prompt without the concept, in the context of what it is read by.
        `soft_prompts` has the number of those of each concept, or is empty without an inner attack.
        """
        place = (i + uniform(generator)) / n
        if place >= shares.named + shares.crossed + shares.otherwise:
            return self._kept(shares.mixed, generator)
        concept = below(len(self.concepts), generator)
        soft = soft_prompts[concept] if soft_prompts else 0
        if place >= shares.named + shares.otherwise:
            return self._crossed(concept, soft, shares.crossed_soft, generator)
        images = self.concepts[concept]
        image = below(len(images.clean), generator)
        named, base = images.named[image], images.blank[image]
        read = named if place < shares.named else self._anything_else(soft, generator)
        attack = concept if read < 0 else None
        clean = images.clean[image]
        row = DrawnRow(clean=clean, read=read, base=base, named=named, concept=concept, image=image, attack=attack)
        return self.from_itself(row, concept, image) if read in self._kept_rows else row

    def from_itself(self, row: DrawnRow, concept: int, image: int) -> DrawnRow:
        """Let the target of a row on an image of a concept start from what is read, the empty prompt for a soft one.

        The concept's direction is that in the prompt of the image, from there without the concept and without anchor.
        """
        images = self.concepts[concept]
        base = row.read if row.read >= 0 else self.unconditional
        return replace(row, base=base, named=images.named[image], against=images.bare[image], image=image)

    def _of(self, concept: Concept, n: int, settings: ImageSettings, table: PromptTable) -> ConceptImages:
        sentences = templates(concept.kind)
        names = asking_names(concept, self._task.context.history.targets)
        pairs = [(name, template) for name in names for template in sentences]
        # The names in turn, each in one template after another.
        named = len(names)
        order = [(names[i % named], sentences[i // named % len(sentences)]) for i in range(n)]
        prompts = [fill(template, name) for name, template in order]
        crossings = [(fill(template, name), anchored(template, concept)) for name, template in pairs]
        return ConceptImages(
            clean=sampled_images(self._task, prompts, settings, self._task.context.seed),
            named=[table.row(prompt) for prompt in prompts],
            blank=[table.row(anchored(template, concept)) for _, template in order],
            bare=[table.row(blank(concept.kind, template)) for _, template in order],
            others=torch.tensor(
                [[table.row(fill(template, name)) for name in concept.preserve] for _, template in order]
            ).reshape(n, -1),
            crossings=[(table.row(one), table.row(other)) for one, other in crossings],
        )

    def _keep(self, n: int, settings: ImageSettings, table: PromptTable, generator: torch.Generator) -> None:
        prompts = []
        for i in range(n):
            prompt = self._kept_prompt(i, generator)
            prompts.append("" if uniform(generator) < _UNCONDITIONAL else prompt)
        self._kept_clean = sampled_images(self._task, prompts, settings, self._task.context.seed + 1)
        self._kept_prompts = [table.row(prompt) for prompt in prompts]
        self._kept_rows = {table.row(prompt) for prompt in prompts if prompt}
        self._kept_read = sorted(self._kept_rows)

    def _kept_prompt(self, i: int, generator: torch.Generator) -> str:
        """Return a random prompt about the i-th name of what stays, the names in turn."""
        names = list(self._kept_names)
        some = self._kept_names[names[i % len(names)]]
        prompt = some[below(len(some), generator)]
        if uniform(generator) < _JOINED:
            prompt = f"{prompt}, {names[below(len(names), generator)]}"
        return prompt

    def _kept(self, mixed: float, generator: torch.Generator) -> DrawnRow:
        image = below(len(self._kept_clean), generator)
        read = self._kept_prompts[image]
        if mixed and uniform(generator) < mixed:
            read = self._mixed[below(len(self._mixed), generator)]
        return DrawnRow(clean=self._kept_clean[image], read=read, base=read, named=read)

    def _crossed(self, concept: int, soft_prompts: int, share: float, generator: torch.Generator) -> DrawnRow:
        clean = self._kept_clean[below(len(self._kept_clean), generator)]
        crossings = self.concepts[concept].crossings
        named, base = crossings[below(len(crossings), generator)]
        if soft_prompts and share and uniform(generator) < share:
            read = -1 - below(soft_prompts, generator)
            return DrawnRow(clean=clean, read=read, base=base, named=named, attack=concept)
        return DrawnRow(clean=clean, read=named, base=base, named=named)

    def _anything_else(self, soft_prompts: int, generator: torch.Generator) -> int:
        kinds = ["unconditional", "kept", "random", *(["soft", "soft", "soft"] if soft_prompts else [])]
        match kinds[below(len(kinds), generator)]:
            case "unconditional":
                return self.unconditional
            case "kept":
                return self._kept_read[below(len(self._kept_read), generator)]
            case "random":
                return self.random[below(len(self.random), generator)]
            case _:
                return -1 - below(soft_prompts, generator)
