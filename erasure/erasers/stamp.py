"""STAMP: the pseudoinverse of RePAIR (arXiv:2604.12820), carried over to the layers that write to the image.

The paper is about language models and known second-hand; what its samples, layers and refusals are here is ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float
from torch import Tensor

from ..backbones.base import Ability, Backbone
from ..backbones.conditioning import Conditioning
from ..closed_form.solve import ridge_edit_from_moments
from ..concept import Concept
from ..edits import Change, DenseChange, LowRankChange, WeightEdit
from ..edits.changes import exchanged
from ..errors import InputError
from ..progress import Progress
from ..prompts import anchored, fill, preserved_templates, templates
from ..registry import Exactness
from ..training.context import FitContext
from ..training.finetune import below
from ..training.trajectories import TrajectoryPoints, early_points
from ..training.word_attention.layer_inputs import (
    in_order_of_execution,
    inside,
    layer_inputs,
)
from ..training.word_attention.masked import Mask, concept_masks
from ..typed_torch import svd, vector_norm
from .base import Eraser, Work

_ROLES = ("cross.out", "joint.out")
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class STAMP(Eraser):
    """Closed-form edit of the layers that write what attention reads of the text to the image.

    For a layer W, x_c are its inputs at pixels of the concept in noisy images of it, with the concept's prompt; x_a its
    inputs at the same pixels of the same latents with the anchor's prompt; x_k those of kept prompts:

        mean |W' x_c - W x_a|^2 + preserve_scale mean |W' x_k - W x_k|^2 + reg |W' - W|_F^2,

    `reg` in units of the mean diagonal of the Gram matrix. Layers are edited in the order of a pass, each on the inputs
    that the layers before it give once they are edited; W x_a is of the model before. No gradient is taken.

    Differs from the paper: images take the place of token sequences, and the layers after attention that of one MLP
    (`layers="one"` edits the one whose inputs the two prompts part most, as it claims suffices).

    Attributes:
        images: Trajectories of the concept, and as many of what is kept, > 0.
        places: Steps of each that are read, > 0.
        mask: Pixels of the concept: "attention" to its name, or "none", all.
        preserve_scale: Weight of the kept inputs against the concept's, >= 0.
        reg: Pull towards the old weights, > 0.
        rank: Rank of each layer's change, > 0; None keeps all of it.
        layers: Layers that are edited.
    """

    name: ClassVar[str] = "stamp"
    source: ClassVar[str] = "arXiv:2604.12820"
    exactness: ClassVar[Exactness] = "reconstructed"
    work: ClassVar[frozenset[Work]] = frozenset(("images",))
    needs: ClassVar[frozenset[Ability]] = frozenset(("maps",))
    main: ClassVar[tuple[str, ...]] = ("reg", "preserve_scale", "images")
    quick: ClassVar[Mapping[str, Any]] = {"images": 2, "places": 2}

    images: Annotated[int, Ge(1)] = 16
    places: Annotated[int, Ge(1)] = 4
    mask: Mask = "attention"
    preserve_scale: Annotated[float, Ge(0)] = 1.0
    reg: Annotated[float, Gt(0)] = 0.01
    rank: Annotated[int, Ge(1)] | None = 16
    layers: Literal["all", "one"] = "all"

    @torch.no_grad()
    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts, context.backbone)
        backbone = context.backbone
        samples = self._samples(concepts, context)
        order = self._layers(backbone, samples)
        weights = backbone.parameters({f"{module}.weight" for module in order}.__contains__)
        edited: dict[str, Tensor] = {}
        changes: dict[str, Change] = {}
        for done, module in enumerate(order, 1):
            name = f"{module}.weight"
            weight = weights[name].detach().to("cpu", torch.float64)
            gram, cross, kept = samples.moments(module, {key: weights[key] for key in edited}, edited)
            changes[name] = self.change(weight, gram, cross, kept)
            edited[name] = (weight + changes[name].of(weight)).to(weights[name])
            if context.on_progress is not None:
                context.on_progress(Progress(done=done, total=len(order)))
        metadata = self.metadata(concepts, context)
        return WeightEdit(changes=changes, metadata=metadata)

    def change(
        self,
        weight: Float[Tensor, "out dim"],
        gram: Float[Tensor, "dim dim"],
        cross: Float[Tensor, "dim dim"],
        kept: Float[Tensor, "dim dim"],
    ) -> Change:
        """Return the change of one layer.

        Args:
            weight: W in float64.
            gram: Mean of x_c x_c^T.
            cross: Mean of x_a x_c^T.
            kept: Mean of x_k x_k^T.
        """
        whole = gram + self.preserve_scale * kept
        reg = self.reg * float(whole.diagonal().mean())
        delta = ridge_edit_from_moments(weight, whole, weight @ (cross + self.preserve_scale * kept), reg) - weight
        if self.rank is None or self.rank >= min(delta.shape):
            return DenseChange(delta=delta.float())
        u, sizes, vh = svd(delta)
        up = u[:, : self.rank] * sizes[: self.rank]
        return LowRankChange(up=up.float(), down=vh[: self.rank].float().contiguous())

    def _layers(self, backbone: Backbone, samples: "_Samples") -> list[str]:
        """Return the full names of the layers to edit, in the order of a pass."""
        sites = backbone.sites(_ROLES).values()
        modules = [site.module for site in sites if site.name.endswith(".weight")]
        if not modules:
            raise InputError(
                f"stamp: expected a model with layers after attention to text, got {backbone.family}."
                " Use another eraser."
            )
        order = in_order_of_execution(backbone, modules, samples.target)
        if self.layers == "all":
            return order
        return [max(order, key=lambda module: samples.difference(module))]

    def _samples(self, concepts: Sequence[Concept], context: FitContext) -> "_Samples":
        """Sample latents of the concepts and of what is kept."""
        backbone, generator = context.backbone, torch.Generator().manual_seed(context.seed)
        pairs = [
            (fill(template, name), anchored(template, concept), name)
            for concept in concepts
            for name in concept.names
            for template in templates(concept.kind)
        ]
        chosen = [pairs[below(len(pairs), generator)] for _ in range(self.images)]
        prompts, anchors, names = zip(*chosen, strict=True)
        target = early_points(backbone, prompts, self.places, generator)
        repeats = len(target.latents) // len(prompts)
        kept = sorted(
            {
                fill(template, name)
                for concept in concepts
                for name in filter(None, (*concept.preserve, concept.anchor))
                for template in preserved_templates(concept.kind)
            }
            | {anchor for _, anchor, _ in pairs}
        )
        others = [kept[below(len(kept), generator)] for _ in range(self.images)]
        return _Samples(
            backbone=backbone,
            target=target,
            anchor=backbone.encode(list(anchors)).select(list(range(len(anchors))) * repeats),
            masks=concept_masks(backbone, target, names, self.mask),
            kept=early_points(backbone, others, self.places, generator),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Samples:
    """Latents of a fit.

    Attributes:
        backbone: Model.
        target: Latents of the concepts, with their prompts.
        anchor: Prompts of the anchors for the same latents.
        masks: Regions of the concepts.
        kept: Latents of what is kept.
    """

    backbone: Backbone
    target: TrajectoryPoints
    anchor: Conditioning
    masks: Bool[Tensor, "n h w"]
    kept: TrajectoryPoints

    def moments(
        self, module: str, originals: Mapping[str, Any], edited: Mapping[str, Tensor]
    ) -> tuple[Float[Tensor, "dim dim"], Float[Tensor, "dim dim"], Float[Tensor, "dim dim"]]:
        """Return the means of x_c x_c^T, x_a x_c^T and x_k x_k^T for one layer, the layers before it edited."""
        gram, cross, kept, count, others = (torch.zeros(()) for _ in range(5))
        for rows in self.target.batches(_BATCH):
            instead = layer_inputs(self.backbone, module, self.target, rows, self.anchor)
            with exchanged(originals, edited):
                inputs = layer_inputs(self.backbone, module, self.target, rows, self.target.conditioning)
            chosen = inside(inputs, self.masks[rows])
            x, a = (each[chosen].to("cpu", torch.float64) for each in (inputs, instead))
            gram, cross, count = gram + x.T @ x, cross + a.T @ x, count + len(x)
        for rows in self.kept.batches(_BATCH):
            with exchanged(originals, edited):
                inputs = layer_inputs(self.backbone, module, self.kept, rows, self.kept.conditioning)
            x = inputs.flatten(0, 1).to("cpu", torch.float64)
            kept, others = kept + x.T @ x, others + len(x)
        return gram / count, cross / count, kept / others

    def difference(self, module: str) -> float:
        """Return the difference of the inputs by the two prompts, relative to those of the concept's."""
        rows = next(self.target.batches(_BATCH))
        one, other = (
            layer_inputs(self.backbone, module, self.target, rows, prompts)
            for prompts in (self.target.conditioning, self.anchor)
        )
        return float(vector_norm(one - other) / vector_norm(one))
