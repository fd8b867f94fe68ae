"""Interface of a probe: an access level, doses, and the outcomes of one model at each of them."""

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from diffusers import DiffusionPipeline
from jaxtyping import Int
from PIL.Image import Image
from pydantic import Field
from torch import Tensor
from torch.nn import Parameter

from erasure.backbones import Backbone, backbone_of
from erasure.concept import Concept
from erasure.errors import ErasureError, InputError
from erasure.io.text import counted
from erasure.judge import Judge
from erasure.profile import ModelProfile
from erasure.progress import OnProgress, Progress
from erasure.registry import Plugin
from erasure.sampling import Pair, SamplingSettings, sample

from ..attacks.base import Access, Goal
from ..images.store import ImageStore, fill

AnySampled = TypeVar("AnySampled", bound="SampledProbe")
Suite = Literal["quick", "standard", "full"]
Doses = Annotated[tuple[float, ...], Field(min_length=1)]
"""Doses of a probe, the weakest first; at least one."""
OneDose = Annotated[tuple[Annotated[float, Field(ge=1, le=1)], ...], Field(min_length=1, max_length=1)]
"""Doses of a probe that has none: 1 alone."""
Counts = Annotated[tuple[Annotated[float, Field(ge=1, le=1_000_000, multiple_of=1)], ...], Field(min_length=1)]
"""Doses that are numbers of something, each a whole number from 1 to a million."""
Shares = Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)]
"""Doses that are shares of something, each in (0, 1)."""
Opened = Callable[[], AbstractContextManager[DiffusionPipeline]]
"""Puts a model in force for the length of a `with`, and returns its pipeline."""


class MissingError(ErasureError, LookupError):
    """Something that a probe needs and that the audit was not handed; the message says how to get it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Aim:
    """Concept that a probe is aimed at, and the images that it samples at each dose.

    Attributes:
        concept: Concept to bring back.
        prompts: Prompts that ask for it, one an image.
        seeds: Seed of each of these images.
        kept: Kept concept, prompt and seed of each image that should stay as it is.
        siblings: Concepts most like the target, nearest first.
        profile: Profile of the model.
        sampling: Sampling settings.
        seed: Seed of everything else, >= 0.
    """

    concept: Concept
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    kept: tuple[tuple[str, str, int], ...]
    siblings: tuple[str, ...]
    profile: ModelProfile
    sampling: SamplingSettings
    seed: int = 0

    def goal(self, i: int, latents: Tensor | None = None) -> Goal:
        """Return the goal of the i-th image for an attack."""
        return Goal(concept=self.concept, prompt=self.prompts[i], seed=self.seeds[i], latents=latents)

    def step_after(self, share: float) -> int:
        """Return the step after a share of the schedule, with at least one step before it and one from it on."""
        return min(max(1, round(share * self.sampling.steps)), self.sampling.steps - 1)

    def as_json(self) -> dict[str, Any]:
        """Return everything that decides the images, as plain data."""
        return {
            "concept": self.concept.as_json(),
            "prompts": list(self.prompts),
            "seeds": list(self.seeds),
            "kept": [list(image) for image in self.kept],
            "siblings": list(self.siblings),
            "sampling": self.sampling.as_settings(),
            "seed": self.seed,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Models:
    """The models beside the subject, for material that all rows share.

    Attributes:
        original: Original model.
        gold: Model that was never taught the concept; None without one.
    """

    original: Opened
    gold: Opened | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """One model under a probe, in force.

    Attributes:
        pipe: Pipeline of the model.
        aim: Concept, and the images of each dose.
        material: Tensors of `Probe.material`.
        judge: Judge of the images, for a probe whose values it decides; None without one.
        images: Folder that keeps the images of the model as it stands; None keeps none.
        on_progress: Receives the progress within a dose.
    """

    pipe: DiffusionPipeline
    aim: Aim
    material: Mapping[str, Tensor] = field(default_factory=dict)
    judge: Judge | None = None
    images: Path | None = None
    on_progress: OnProgress | None = None

    @property
    def backbone(self) -> Backbone:
        """Model as methods see it."""
        return backbone_of(self.pipe)

    @property
    def denoiser_weights(self) -> dict[str, Parameter]:
        """Weights of the denoiser with two dimensions and more, by full name."""
        weights = self.backbone.parameters(self.backbone.sites().__contains__)
        return {name: weight for name, weight in weights.items() if weight.ndim > 1}

    def sampled(self, sampling: SamplingSettings | None = None) -> list[Image]:
        """Return the images of the prompts that ask for the concept."""
        return sample(self.pipe, list(self.aim.prompts), list(self.aim.seeds), sampling or self.aim.sampling)

    def sampled_kept(self, sampling: SamplingSettings | None = None) -> list[Image]:
        """Return the images of the prompts that ask for kept concepts."""
        prompts = [prompt for _, prompt, _ in self.aim.kept]
        return sample(self.pipe, prompts, [seed for *_, seed in self.aim.kept], sampling or self.aim.sampling)

    def as_it_stands(self, sampling: SamplingSettings | None = None) -> tuple[list[Image], list[Image]]:
        """Return the images of both lists of prompts from the row's model, in which nothing is changed.

        Those that are kept are not made again, for other probes, aims and runs.
        """
        settings = sampling or self.aim.sampling
        if self.images is None:
            return self.sampled(settings), self.sampled_kept(settings)
        count = len(self.aim.prompts)
        pairs = [
            *zip(self.aim.prompts, self.aim.seeds, strict=True),
            *((text, seed) for _, text, seed in self.aim.kept),
        ]
        store = ImageStore.of_state(self.images.parent, self.images.name, pairs, settings)
        images = fill(self.pipe, store).images()
        return images[:count], images[count:]

    def report(self, done: int, total: int, note: str) -> None:
        """Report progress within the probe."""
        if self.on_progress is not None:
            self.on_progress(Progress(done, total, "probe", note=note))


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """Result of a probe on one model at one dose.

    A probe that samples leaves images to be judged, one that looks inside gives values.

    Attributes:
        dose: The dose.
        part: Name of the measure, for a probe with several.
        images: Images that should show the concept if it is back, in the order of the aim's prompts.
        kept: Images of the aim's kept concepts under the same dose; empty where the dose does not touch them.
        values: Values of a probe that looks inside, one an example; higher is more of the concept.
        floor: Value of a model without a trace, where that is known beforehand; None takes it from the floor's row.
        comparable: Whether the values of another trained model are on the same scale; else its row is left out.
        side_effect: Whether the values are a side effect of the removal, read as their difference to the original's;
            else they are of the concept, read as a residue.
        shows: Concept that the images are judged for; "" is the aim's.
        pairs: Prompt and seed of each image, where they are not the aim's.
        label: Words for the dose; "" is the number with the probe's unit.
    """

    dose: float
    part: str = ""
    images: Sequence[Image] = ()
    kept: Sequence[Image] = ()
    values: Sequence[float] = ()
    floor: float | None = None
    comparable: bool = True
    side_effect: bool = False
    shows: str = ""
    pairs: Sequence[Pair] = ()
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Probe(Plugin):
    """Dose-response experiment on a model: can a removed concept be brought back, or is it still inside?

    Attributes:
        name: Name on the command line.
        access: Access to the model that the probe needs.
        dose_unit: Unit of the dose.
        suites: Settings by suite in which the probe is on by default; empty for an option.
        version: Version of the probe; a change of its outcomes raises it, and results are measured anew.
        judged: Whether its images need a judge.
        novel: Whether it can be aimed at a concept that the model was never taught.
        reads_gold: Whether its material comes from the gold, too.
        reads_anchor: Whether it reads the anchor of the removal; else it is aimed at a concept without one, so that
            removals that differ in their anchor share what is measured on the original and the golds.
        effort: Whether the dose is the length of a training, so that half-doses of two models have a ratio.
        doses: Doses, the weakest first; at least one.
    """

    access: ClassVar[Access]
    dose_unit: ClassVar[str]
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType({})
    version: ClassVar[int] = 1
    judged: ClassVar[bool] = True
    novel: ClassVar[bool] = False
    reads_gold: ClassVar[bool] = False
    reads_anchor: ClassVar[bool] = False
    effort: ClassVar[bool] = False

    doses: Doses

    def __post_init__(self) -> None:
        for each in fields(self):
            values = getattr(self, each.name)
            if each.name != "doses" and isinstance(values, tuple) and len(set(values)) < len(values):
                raise InputError(f"{self.name}.{each.name}: expected each once, got {list(values)!r}. Leave one out.")
        usual = next(each.default for each in fields(self) if each.name == "doses")
        usual = usual if isinstance(usual, tuple) else ()
        ways = {after > before for before, after in itertools.pairwise(self.doses)}
        ordered = len(ways | {usual[-1] > usual[0]} if len(usual) > 1 else ways) <= 1 or not ways
        if not (ordered and len(set(self.doses)) == len(self.doses) and all(map(math.isfinite, self.doses))):
            example = f", as {', '.join(f'{dose:g}' for dose in usual)} are" if len(usual) > 1 else ""
            raise InputError(
                f"{self.name}.doses: expected different finite numbers, the weakest dose first, got"
                f" {list(self.doses)!r}. Put them in order{example}."
            )

    def material(self, models: Models, aim: Aim) -> dict[str, Tensor]:
        """Return the tensors that the outcomes of all rows need, such as latents of the original.

        Raises:
            MissingError: Something is missing that the probe needs.
        """
        return {}

    @abstractmethod
    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        """Yield the outcomes of a model at each dose, the weakest first; the model is left as it was.

        Raises:
            ErasureError: The probe cannot be made on this model.
        """


@dataclass(frozen=True, kw_only=True)
class SampledProbe(Probe):
    """Probe whose dose is a setting of a change of the sampling or the weights; the prompts are fixed.

    Attributes:
        dose: Name of the setting that is the dose.
    """

    dose: ClassVar[str]

    def with_dose(self: AnySampled, dose: float | int) -> AnySampled:
        """Return the same probe at another dose.

        Raises:
            InputError: The dose is out of range.
        """
        return replace(self, **{type(self).dose: dose})

    @abstractmethod
    def prompt_ids(self, backbone: Backbone, goal: Goal) -> Int[Tensor, "m tokens"]:
        """Return the token ids of the prompts to sample, at least one row.

        Args:
            backbone: Model.
            goal: Concept to bring back, and its prompt.
        """

    @abstractmethod
    def applied_to(self, pipe: DiffusionPipeline, goal: Goal) -> AbstractContextManager[None]:
        """Return the context in which the images of those prompts are sampled; the pipeline is restored on exit.

        Args:
            pipe: Pipeline with the edit applied.
            goal: Concept to bring back, and its prompt.
        """

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        aim, backbone = subject.aim, subject.backbone
        for i_dose, dose in enumerate(self.doses):
            subject.report(i_dose, len(self.doses), counted(dose, self.dose_unit))
            images: list[Image] = []
            with self.with_dose(dose).applied_to(subject.pipe, aim.goal(0)):
                for i, seed in enumerate(aim.seeds):
                    states = backbone.encode_ids(self.prompt_ids(backbone, aim.goal(i))[:1])
                    images += sample(subject.pipe, states, [seed], aim.sampling)
            yield Outcome(dose=dose, images=images)
