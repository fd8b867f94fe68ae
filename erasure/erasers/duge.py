"""DUGE (reconstructed): continual unlearning without generalisation erosion (Thakral et al., arXiv:2503.13769).

Neither the paper's body nor its code could be read. Its abstract names the three losses; the form of two of them is
second-hand, and nearly all numbers are reconstructed. Call results of this "DUGE (reconstructed)".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ..backbones.attention import layers_up_to
from ..backbones.base import Ability, Backbone
from ..concept import Concept
from ..edits import WeightEdit
from ..errors import InputError
from ..registry import Exactness
from ..sampling import SamplingSettings
from ..training.context import FitContext, TrainingTask
from ..training.early_stopping import stop_when_gone
from ..training.finetune import Loss, Optimisation, WeightedLoss
from ..training.matching import LayerReading, Match, Matching, TargetImages, image_prompt
from ..training.replay import Regularisation, anchoring_loss, calibrated, diagonal_fisher, reading_loss, replay_loss
from ..training.replay_memory import Memory, replayed
from ..training.selectors.roles import TEXT_ATTENTION, TEXT_KEYS_AND_VALUES
from ..training.shape import Shape
from ..training.student import Student
from .base import Eraser, Work

_REG_SCALES = {"l2-sp": 25_000.0, "l1-sp": 50.0, "ewc": 1e5}
_MEMORY_SEED, _TARGET_SEED, _PROBE_SEED = 10_000_000, 20_000_000, 30_000_000


@dataclass(frozen=True, kw_only=True)
class DUGE(Eraser):
    """Fine-tuning of cross-attention, one request after another, on three losses.

        L = unlearn_scale L_U + prior_scale L_pr + reg_scale L_reg

    L_U compares the model under training, for a prompt of the target, with a frozen model for a prompt without it, at
    the same noised images of the target. As specified it compares attention maps with the empty prompt's, all layers
    alike (the formula is second-hand, its reduction reconstructed). L_pr is the denoising loss on images that the
    original model made (second-hand). L_reg keeps the weights near a reference (its form is reconstructed).

    The specified defaults, reconstructed or from related methods, removed nothing in trials on the tiny world: equal
    maps still mix in the target's values. So the defaults here are extensions, chosen on concepts of which results
    report bomb alone, in the weapon family. `configs/duge/specified-tinyworld.yaml` has every specified value.

    Attributes:
        match: Values that L_U compares: "maps", as specified; "outputs" of the layers with those maps (extension); or
            the predicted "noise" (extension).
        towards: Prompt of the aim: "empty", as specified; or "blank" (extension), the prompt without the target ("a cat
            on a table": "on a table"), at images sampled for it, so that the table stays.
        overshoot: Distance beyond the aim, >= 0, as a share of the way there from the original model's values for the
            target (extension, as ESD's negative guidance): sampling multiplies the rest of the way by the guidance
            scale. 0 for maps, which are distributions.
        trained: Trained weights: "cross", all of the attention that reads text; "kv", its keys and values; "lora",
            patches of `rank` in all of it.
        rank: Rank of the patches, > 0.
        ref_attention: Model of the aim: "prev", at the start of this removal, or "base", before the first.
        ref_weights: Reference of L_reg, likewise; "base" would pull back earlier removals.
        unlearn_scale: Weight of L_U, >= 0; None makes its gradient `calibration` times as long as that of the plain
            L_pr, averaged over eight batches at the start.
        calibration: Ratio of the gradients' lengths, > 0; see `unlearn_scale`.
        prior_scale: Weight of L_pr, >= 0.
        reading_scale: Weight of a fourth term, >= 0 (extension): the squared relative distance to the original model's
            keys and values of preserved names in all contexts of the request's kind. It takes no pass of the denoiser
            and covers every name, where the memory has a few images of each.
        distill: Whether L_pr is trained on the original model's prediction instead of the noise.
        regularisation: Form of L_reg: "l2-sp", "l1-sp", or "ewc" with a Fisher of the L_pr gradients on the memory.
        reg_scale: Weight of L_reg, >= 0; None is 25,000 for l2-sp, 50 for l1-sp, 1e5 for ewc.
        fisher_images: Images of the Fisher, > 0.
        max_pixels: Largest size of a layer in L_U, in pixels of its latents, > 0; None takes all layers.
        revisit: Probability of training L_U on an earlier target instead (extension; 0.25 in the specification).
        steps: Number of updates at most, >= 0.
        lr: Learning rate of AdamW, > 0.
        weight_decay: Weight decay of AdamW, >= 0.
        clip_norm: Largest norm of the gradient, > 0.
        batch_size: Target images a step, and memory images a step, > 0.
        prompt_dropout: Share of memory images that are trained with the unconditional prompt, in [0, 1].
        target_images: Images of each target, made by the original model, > 0.
        memory_size: Images of the memory, half of them near a request, >= 2.
        memory_for: Request of the near half: "first", the first of the sequence, made once; or "each", the request at
            hand in all contexts of its kind, made for each (extension).
        max_similarity: Largest similarity of a memory prompt's text state to the target's, in [-1, 1].
        image_steps: Sampling steps of target and memory images, > 0.
        image_guidance: Scale of their classifier-free guidance, >= 0.
        probe_every: Updates between two looks at whether the target is gone, >= 0; 0, or a context without a judge,
            never looks.
        probe_images: Images of a look, > 0.
        probe_share: Share of them that may show the target at the end, in [0, 1]; 0.1 in the specification.
        shape: Further terms, transforms, selector and finishes (extension).

    Differs from the specification: those defaults, and images are kept as the latents that the sampler ended with, not
    decoded and encoded again.
    """

    name: ClassVar[str] = "duge"
    source: ClassVar[str] = "arXiv:2503.13769"
    exactness: ClassVar[Exactness] = "reconstructed"
    licence: ClassVar[str] = "unknown"
    work: ClassVar[frozenset[Work]] = frozenset(("training", "images"))
    main: ClassVar[tuple[str, ...]] = ("steps", "overshoot", "prior_scale", "lr")
    needs: ClassVar[frozenset[Ability]] = frozenset(("maps",))
    presets: ClassVar[Mapping[str, Mapping[Any, Mapping[str, Any]]]] = {"match": {"maps": {"overshoot": 0.0}}}
    quick: ClassVar[Mapping[str, Any]] = {
        **{"steps": 2, "unlearn_scale": 10.0},
        **{"memory_size": 4, "target_images": 2, "image_steps": 2},
        **{"batch_size": 2, "lr": 1e-3, "max_similarity": 1.0},
    }

    match: Match = "outputs"
    towards: Literal["empty", "blank"] = "blank"
    overshoot: Annotated[float, Field(ge=0)] = 1.0
    trained: Literal["cross", "kv", "lora"] = "kv"
    rank: Annotated[int, Field(ge=1)] = 16
    ref_attention: Literal["prev", "base"] = "prev"
    ref_weights: Literal["prev", "base"] = "prev"
    unlearn_scale: Annotated[float, Field(ge=0)] | None = None
    calibration: Annotated[float, Field(gt=0)] = 5.0
    prior_scale: Annotated[float, Field(ge=0)] = 20.0
    reading_scale: Annotated[float, Field(ge=0)] = 0.3
    distill: bool = True
    regularisation: Regularisation = "l2-sp"
    reg_scale: Annotated[float, Field(ge=0)] | None = None
    fisher_images: Annotated[int, Field(ge=1)] = 32
    max_pixels: Annotated[int, Field(ge=1)] | None = None
    revisit: Annotated[float, Field(ge=0, le=1)] = 0.5
    steps: Annotated[int, Field(ge=0)] = 200
    lr: Annotated[float, Field(gt=0)] = 1e-5
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    batch_size: Annotated[int, Field(ge=1)] = 4
    prompt_dropout: Annotated[float, Field(ge=0, le=1)] = 0.1
    target_images: Annotated[int, Field(ge=1)] = 32
    memory_size: Annotated[int, Field(ge=2)] = 200
    memory_for: Literal["first", "each"] = "each"
    max_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.9
    image_steps: Annotated[int, Field(ge=1)] = 50
    image_guidance: Annotated[float, Field(ge=0)] = 7.5
    probe_every: Annotated[int, Field(ge=0)] = 25
    probe_images: Annotated[int, Field(ge=1)] = 32
    probe_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    shape: Shape = field(default_factory=Shape)

    def __post_init__(self) -> None:
        if self.overshoot and self.match == "maps":
            raise InputError(f"duge.overshoot: expected 0 where maps are matched, got {self.overshoot!r}. Set it to 0.")

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts, context.backbone)
        trained = self._trained(context.backbone).__contains__
        task = TrainingTask(context=context, requests=concepts, trained=trained, reference=context.original)
        memory = self._memory(concepts, context)
        # The distilled form starts at zero, which the first weight cannot be calibrated with.
        plain = self._preserving(memory, context, distill=False)
        erasing = calibrated(self._erasing(concepts, context), plain, self.unlearn_scale, ratio=self.calibration)
        rank, decay = self.rank if self.trained == "lora" else None, self.weight_decay
        changes = self.shape.train(
            task,
            erasing,
            Optimisation(steps=self.steps, lr=self.lr, rank=rank, weight_decay=decay, clip_norm=self.clip_norm),
            terms=self._terms(memory, task),
            stop=self._stop(concepts, context),
        )
        return self.shape.finished(WeightEdit(changes=changes, metadata=self.metadata(concepts, context)), task)

    def _trained(self, backbone: Backbone) -> frozenset[str]:
        """Return the full names of the parameters that are trained."""
        if self.trained == "kv":
            return frozenset(name for name in backbone.sites(TEXT_KEYS_AND_VALUES) if name.endswith(".weight"))
        return frozenset(backbone.sites(TEXT_ATTENTION))

    def _terms(self, memory: Memory, task: TrainingTask) -> list[WeightedLoss]:
        """Return L_pr, the reading term and L_reg."""
        context = task.context
        terms = [WeightedLoss(loss=self._preserving(memory, context, distill=self.distill), weight=self.prior_scale)]
        # Where no trained weight reads the text states, the term would be a constant.
        readers = context.backbone.sites(reads="text").keys()
        if self.reading_scale and not readers.isdisjoint(self._trained(context.backbone)):
            terms.append(WeightedLoss(loss=reading_loss(task.concepts, context), weight=self.reading_scale))
        reg_scale = _REG_SCALES[self.regularisation] if self.reg_scale is None else self.reg_scale
        if reg_scale:
            terms.append(WeightedLoss(loss=self._regularising(memory, context), weight=reg_scale))
        return terms

    @property
    def _sampling(self) -> SamplingSettings:
        return SamplingSettings(steps=self.image_steps, guidance_scale=self.image_guidance, batch_size=8)

    def _memory(self, concepts: Sequence[Concept], context: FitContext) -> Memory:
        """Return the images that are replayed."""
        return replayed(
            context,
            concepts,
            self.memory_size,
            each=self.memory_for == "each",
            max_similarity=self.max_similarity,
            sampling=self._sampling,
            seed=_MEMORY_SEED,
        )

    def _erasing(self, concepts: Sequence[Concept], context: FitContext) -> Loss:
        """Return L_U at images of a target."""
        targets = [self._target(concept, context) for concept in concepts]
        earlier = [self._target(concept, context) for concept in context.targets] if self.revisit else []
        return self._matching(context).loss(targets, earlier)

    def _matching(self, context: FitContext) -> Matching:
        layers = layers_up_to(context.backbone, self.max_pixels)
        return Matching(
            reading=LayerReading(backbone=context.backbone, match=self.match, layers=layers),
            context=context,
            overshoot=self.overshoot,
            reference=self.ref_attention,
            batch_size=self.batch_size,
            paired=self.towards == "blank",
            revisit=self.revisit,
        )

    def _preserving(self, memory: Memory, context: FitContext, *, distill: bool) -> Loss:
        """Return L_pr on the memory."""
        dropout = self.prompt_dropout
        return replay_loss(memory, context, batch_size=self.batch_size, prompt_dropout=dropout, distill=distill)

    def _regularising(self, memory: Memory, context: FitContext) -> Loss:
        """Return L_reg."""
        trained = self._trained(context.backbone).__contains__
        fisher = self._fisher(memory, context) if self.regularisation == "ewc" else {}
        return anchoring_loss(context, trained, self.regularisation, towards=self.ref_weights, fisher=fisher)

    def _fisher(self, memory: Memory, context: FitContext) -> dict[str, Tensor]:
        """Return the diagonal Fisher of L_pr at the present weights, from one image at a time."""
        single = replay_loss(memory, context, batch_size=1, prompt_dropout=0.0, distill=self.distill)
        names = {n for n in self._trained(context.backbone) if n.endswith(".weight") or self.trained != "lora"}
        return diagonal_fisher(context, names.__contains__, single, self.fisher_images)

    def _target(self, concept: Concept, context: FitContext) -> TargetImages:
        n, sampling, paired = self.target_images, self._sampling, self.towards == "blank"
        return TargetImages.of(concept, context, n, sampling=sampling, seed=_TARGET_SEED, paired=paired)

    def _stop(self, concepts: Sequence[Concept], context: FitContext) -> Callable[[Student, int], bool] | None:
        """Return the early stopping; None where nothing is looked at."""
        each, paired = max(1, self.probe_images // len(concepts)), self.towards == "blank"
        probes = [(c, image_prompt(c, i, paired=paired), _PROBE_SEED + i) for c in concepts for i in range(each)]
        return stop_when_gone(context, probes, self._sampling, every=self.probe_every, share=self.probe_share)
