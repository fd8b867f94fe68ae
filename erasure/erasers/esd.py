"""ESD, Erased Stable Diffusion (Gandikota et al., ICCV 2023, arXiv:2303.07345)."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ..backbones.base import Backbone
from ..backbones.conditioning import Conditioning, concatenate
from ..concept import Concept, blank, fill, templates
from ..edits import EditMetadata, WeightEdit
from ..registry import Exactness
from ..sampling import noise, scheduled_prediction, trajectory_latents
from ..training.context import FitContext
from ..training.finetune import Preservation, Student, below, finetune
from ..training.terms.preservation import Weights, preservations
from .base import Eraser

Variant = Literal["x", "x-strict", "u", "full"]
Latents = Float[Tensor, "n c h w"]

# Left out of ESD-u by the published training script, beside cross-attention: what reads the timestep (and, in SDXL, the
# sentence vector) and the output layers.
_NOT_IN_U = ("attn2", "time_embedding.", "add_embedding.", "conv_norm_out.", "conv_out.")


@dataclass(frozen=True, kw_only=True)
class ESD(Eraser):
    """Fine-tuning of the denoiser towards its own negatively guided prediction.

    At each step the model under training denoises a start code to a random place t of the schedule with the target's
    prompt c. There it learns (section 4; eps_0 is the frozen model)

        min |eps(x_t, c, t) - [eps_0(x_t, t) - negative_guidance * (eps_0(x_t, c, t) - eps_0(x_t, t))]|^2.

    A model that predicts v is trained on the noise that its prediction stands for, so the formula is the same.

    Attributes:
        variant: What is trained. "x": cross-attention; "u": all else but the timestep embedding and the output
            layers, as the published script has it; "full": the denoiser; "x-strict": keys and values of
            cross-attention (the authors' later code).
        negative_guidance: Strength of the erasure (eta in the paper), >= 0.
        start_guidance: Classifier-free guidance of the partial denoising, >= 1.
        sample_steps: Of the DDIM schedule.
        steps: Updates.
        lr: Learning rate of Adam, > 0.
        batch_size: Start codes a step; 1 in the paper.
        trajectory_uses: Updates fed by one partial denoising: it runs to the largest of that many distinct places and
            leaves its latents at each, which makes the denoising cheaper by about as much.
            Differs from the paper: 1 there.
        prompts: "bare" trains on the target's name; "templates" on the name and its aliases in the templates of the
            concept's kind, the anchor's prompt being the same without the concept.
            Differs from the paper: "bare" there.
        rank: Train patches of this rank instead of the weights.
            Differs from the paper: none there.
        preserve_scale: Weight of a term that ties the predictions for what is preserved, and for the unconditional
            prompt, to those of the frozen model.
            Differs from the paper: 0 there.
        preservation: Further terms by name and weight; see `erasure.training.terms.preservation`.
            Differs from the paper: none there.

    With several concepts each start code draws one, as in the published script.
    Differs from the paper: a concept with an anchor has it in the formula in the place of the unconditional prompt;
    the paper knows only "".
    """

    name: ClassVar[str] = "esd"
    source: ClassVar[str] = "arXiv:2303.07345"
    exactness: ClassVar[Exactness] = "published"
    main: ClassVar[tuple[str, ...]] = ("steps", "negative_guidance", "lr")
    quick: ClassVar[Mapping[str, Any]] = {"steps": 2, "sample_steps": 3, "lr": 1e-3}

    variant: Variant = "x"
    negative_guidance: Annotated[float, Field(ge=0)] = 1.0
    start_guidance: Annotated[float, Field(ge=1)] = 3.0
    sample_steps: Annotated[int, Field(ge=1)] = 50
    steps: Annotated[int, Field(ge=0)] = 1000
    lr: Annotated[float, Field(gt=0)] = 1e-5
    batch_size: Annotated[int, Field(ge=1)] = 1
    trajectory_uses: Annotated[int, Field(ge=1)] = 1
    prompts: Literal["bare", "templates"] = "bare"
    rank: Annotated[int, Field(ge=1)] | None = None
    preserve_scale: Annotated[float, Field(ge=0)] = 0.0
    preservation: Weights = field(default_factory=dict)

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts)
        backbone = context.backbone
        changes = finetune(
            backbone,
            lambda name: trains(self.variant, name),
            self._erasing(backbone, concepts),
            steps=self.steps,
            lr=self.lr,
            rank=self.rank,
            optimizer="adam",
            preservation=[
                Preservation(loss=self._preserving(backbone, concepts), weight=self.preserve_scale),
                *preservations(self.preservation, backbone, concepts, trained=lambda name: trains(self.variant, name)),
            ],
            on_progress=context.on_progress,
            seed=context.seed,
        )
        return WeightEdit(
            changes=changes, metadata=EditMetadata.of(self.name, asdict(self), backbone, concepts, context.seed)
        )

    def _erasing(
        self, backbone: Backbone, concepts: Sequence[Concept]
    ) -> Callable[[Student, int, torch.Generator], Float[Tensor, ""]]:
        """Return the distance of the student's prediction for the target to the negatively guided one."""
        pairs = [_pairs(concept, self.prompts) for concept in concepts]
        firsts = [sum(map(len, pairs[:at])) for at in range(len(pairs))]
        targets = backbone.encode([target for some in pairs for target, _ in some])
        anchors = _encoded(backbone, [anchor for some in pairs for _, anchor in some])

        def draw(generator: torch.Generator) -> int:
            concept = below(len(pairs), generator)
            return firsts[concept] + below(len(pairs[concept]), generator)

        latents = _PartiallyDenoised(backbone, targets, self, draw)

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            x, timestep, rows = student(latents.next, generator)
            target, anchor = targets.select(rows), anchors.select(rows)
            with torch.no_grad():
                read = concatenate([anchor, target])
                free, bound = scheduled_prediction(backbone, torch.cat([x, x]), timestep, read).chunk(2)
            predicted = student(scheduled_prediction, backbone, x, timestep, target)
            return F.mse_loss(predicted, negatively_guided(free, bound, self.negative_guidance))

        return loss

    def _preserving(
        self, backbone: Backbone, concepts: Sequence[Concept]
    ) -> Callable[[Student, int, torch.Generator], Float[Tensor, ""]]:
        """Return the distance to the frozen model for what stays, at latents that the frozen model denoised."""
        states = _encoded(backbone, _kept(concepts, self.prompts))
        latents = _PartiallyDenoised(backbone, states, self, lambda generator: below(len(states), generator))

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            x, timestep, rows = latents.next(generator)
            read = states.select(rows)
            with torch.no_grad():
                frozen = scheduled_prediction(backbone, x, timestep, read)
            return F.mse_loss(student(scheduled_prediction, backbone, x, timestep, read), frozen)

        return loss


def trains(variant: Variant, name: str) -> bool:
    """Whether the variant trains the parameter of that full name."""
    component, _, inner = name.partition(".")
    if component.startswith("text_encoder"):
        return False
    match variant:
        case "x":
            return ".attn2." in inner
        case "x-strict":
            return ".attn2.to_k." in inner or ".attn2.to_v." in inner
        case "u":
            return not any(part in inner for part in _NOT_IN_U)
        case "full":
            return True


def negatively_guided(anchor: Latents, target: Latents, negative_guidance: float) -> Latents:
    """Return the prediction that ESD learns, from the frozen model's for anchor and target."""
    return anchor - negative_guidance * (target - anchor)


class _PartiallyDenoised:
    """Noisy latents on the way from start codes to pictures, a few places of the schedule at a time."""

    def __init__(
        self, backbone: Backbone, states: Conditioning, settings: ESD, draw: Callable[[torch.Generator], int]
    ) -> None:
        self._backbone = backbone
        self._states = states
        self._settings = settings
        self._draw = draw
        self._unconditional = backbone.unconditional()
        self._shape = backbone.latent_shape()
        self._timesteps = backbone.schedule.timesteps(settings.sample_steps).to(backbone.device)
        self._ready: deque[tuple[Latents, Int[Tensor, ""], list[int]]] = deque()

    def next(self, generator: torch.Generator) -> tuple[Latents, Int[Tensor, ""], list[int]]:
        """Return latents, their timestep, and for each latent the row of the states that it was denoised with."""
        if not self._ready:
            self._ready.extend(self._made(generator))
        return self._ready.popleft()

    def _made(self, generator: torch.Generator) -> list[tuple[Latents, Int[Tensor, ""], list[int]]]:
        settings = self._settings
        rows = [self._draw(generator) for _ in range(settings.batch_size)]
        uses = min(settings.trajectory_uses, settings.sample_steps)
        places = torch.randperm(settings.sample_steps, generator=generator)[:uses].tolist()
        found = trajectory_latents(
            self._backbone,
            noise([generator] * settings.batch_size, self._shape),
            self._states.select(rows),
            self._unconditional,
            steps=settings.sample_steps,
            guidance_scale=settings.start_guidance,
            stops=places,
        )
        return [(found[place], self._timesteps[place], rows) for place in places]


def _pairs(concept: Concept, prompts: Literal["bare", "templates"]) -> list[tuple[str, str]]:
    """Return the prompts that speak of the target, each with what the anchor makes of it."""
    if prompts == "bare":
        return [(concept.target, concept.anchor)]
    return [
        (fill(template, name), fill(template, concept.anchor) if concept.anchor else blank(concept.kind, template))
        for name in concept.names
        for template in templates(concept.kind)
    ]


def _kept(concepts: Sequence[Concept], prompts: Literal["bare", "templates"]) -> list[str]:
    """Return the prompts of what is preserved by one of the concepts and erased by none, and the unconditional one."""
    erased = {name for concept in concepts for name in concept.names}
    kept = [
        fill(template, word)
        for concept in concepts
        for word in concept.preserve
        if word not in erased
        for template in (templates(concept.kind) if prompts == "templates" else ("{}",))
    ]
    return list(dict.fromkeys(["", *kept]))


def _encoded(backbone: Backbone, prompts: Sequence[str]) -> Conditioning:
    """Return the states of the prompts, "" being the model's own unconditional prompt."""
    distinct = {prompt: at for at, prompt in enumerate(dict.fromkeys(prompt for prompt in prompts if prompt))}
    parts = [backbone.unconditional(), *([backbone.encode(list(distinct))] if distinct else [])]
    return concatenate(parts).select([distinct[prompt] + 1 if prompt else 0 for prompt in prompts])
