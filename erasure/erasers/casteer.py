"""CASteer: reflection of concepts in the outputs of cross-attention (Gaintseva et al., ICLR 2026, arXiv:2503.09630)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge

from ..backbones.base import Ability, Backbone
from ..backbones.schedule import Discrete, Flow
from ..concept import Concept
from ..edits import Change, DenseChange, Edit, LowRankChange, SamplingEdit, WeightEdit
from ..errors import InputError
from ..guidance.casteer import CASteerGuidance, Several
from ..progress import Progress
from ..registry import Exactness
from ..training.context import FitContext
from ..training.word_attention.masked import Mask
from ..training.word_attention.output_directions import Directions, OutputMeans, prompt_pairs
from ..typed_torch import svd
from .base import Eraser, Stage, Work, all_names

_AT_ONCE = 8
_OF_THE_GUIDANCE = ("strength", "clip", "rescale", "several", "branches", "only_named")


@dataclass(frozen=True, kw_only=True)
class CASteer(Eraser):
    """Reflection of what pixels have of the concepts' directions, which are read off pairs of prompts.

    A direction of a layer and step is the mean output over the pixels of prompts with the concept less that of the same
    prompts without it, of one start code, at unit length.

    Differs from the paper: a concept with an anchor has it in the prompts without the concept; everyday things stand
    for its classes of ImageNet and its people in places.

    Attributes:
        form: "sampling", a guidance; or "weights", which folds the reflection into the layers after attention:
            W' = (I - beta s s^T) W and the bias likewise. That is exact without clip and rescaling, for one direction
            in all steps and for both branches, and those are its defaults.
        prompts: Pairs of prompts: the "published" form, a thing with and without the concept; or the concept's
            "templates" and their blanks.
        pairs: Number of pairs, > 0; each name of a concept has its share.
        steps: Number of sampling steps of the fit, > 0.
        places: Steps of those whose directions are read, > 0; at most `steps`.
        guidance_scale: Scale of classifier-free guidance of the fit, >= 1.
        mask: Pixels that are averaged: all, "none"; or those that attend to the concept's name, "attention".
        averaged: Whether the mean over the steps serves as the direction of all of them.
        strength: Share of a component that is taken away (beta), >= 0: 1 projects, 2 mirrors.
        clip: Whether only positive components are taken away.
        rescale: Whether the output has its old length afterwards.
        several: Directions of several concepts: their "mean", as published, which is shorter than each; "each" one
            after another; or the "orthonormal" ones nearest to all, which have no order.
        branches: Predictions that are changed: the "conditional" ones, as in the paper, or "both", as in the code of
            f336576.
        only_named: Whether prompts that name none of the concepts are left alone; the source looks at every prompt.
    """

    name: ClassVar[str] = "casteer"
    source: ClassVar[str] = "arXiv:2503.09630, code f336576"
    exactness: ClassVar[Exactness] = "published"
    licence: ClassVar[str] = "MIT"
    work: ClassVar[frozenset[Work]] = frozenset(("images",))
    stage: ClassVar[Stage] = "sampling"
    needs: ClassVar[frozenset[Ability]] = frozenset(("unet guidance", "maps"))
    schedules: ClassVar[tuple[type[Discrete | Flow], ...]] = (Discrete,)
    main: ClassVar[tuple[str, ...]] = ("strength", "pairs", "several")
    presets: ClassVar[Mapping[str, Mapping[Any, Mapping[str, Any]]]] = {
        "form": {"weights": {"averaged": True, "clip": False, "rescale": False, "branches": "both"}}
    }
    quick: ClassVar[Mapping[str, Any]] = {"pairs": 2, "steps": 2, "places": 2, "clip": False}

    form: Literal["sampling", "weights"] = "sampling"
    prompts: Literal["published", "templates"] = "published"
    pairs: Annotated[int, Ge(1)] = 50
    steps: Annotated[int, Ge(1)] = 50
    places: Annotated[int, Ge(1)] = 50
    guidance_scale: Annotated[float, Ge(1)] = 7.5
    mask: Mask = "none"
    averaged: bool = False
    strength: Annotated[float, Ge(0)] = 2.0
    clip: bool = True
    rescale: bool = True
    several: Several = "orthonormal"
    branches: Literal["conditional", "both"] = "conditional"
    only_named: bool = False

    def __post_init__(self) -> None:
        if self.places > self.steps:
            raise InputError(f"casteer.places: expected at most steps, {self.steps}, got {self.places!r}. Lower it.")
        linear = self.averaged and not self.clip and not self.rescale and self.branches == "both"
        if self.form == "weights" and (not linear or self.only_named):
            raise InputError(
                "casteer.form: expected one direction for all steps, both branches, every prompt, no clip and no"
                " rescaling in the form 'weights', got others. Leave averaged, branches, only_named, clip and rescale"
                " out."
            )

    @property
    def place(self) -> Stage:
        return "factor of outputs" if self.form == "weights" else "sampling"

    @property
    def reflects(self) -> bool:
        return self.strength > 1

    @torch.no_grad()
    def fit(self, concepts: Sequence[Concept], context: FitContext) -> Edit:
        self.require(concepts, context.backbone)
        timesteps = context.backbone.schedule.timesteps(self.steps)[self._stops]
        done = 0
        directions: list[Directions] = []
        for concept in concepts:
            means = OutputMeans(
                context.backbone,
                steps=self.steps,
                stops=self._stops,
                guidance_scale=self.guidance_scale,
                mask=self.mask,
                seed=context.seed,
            )
            pairs = prompt_pairs(concept, self.prompts, self.pairs)
            for first in range(0, self.pairs, _AT_ONCE):
                means.add(pairs[first : first + _AT_ONCE])
                done += 1
                if context.on_progress is not None:
                    context.on_progress(Progress(done=done, total=-(-self.pairs // _AT_ONCE) * len(concepts)))
            directions.append(means.directions(concept, averaged=self.averaged))
        guidance = CASteerGuidance(
            concepts=all_names(concepts),
            targets=tuple(concept.target for concept in concepts),
            directions={layer: torch.stack([each[layer] for each in directions]) for layer in directions[0]},
            direction_timesteps=(float(timesteps.float().mean()),) if self.averaged else tuple(map(float, timesteps)),
            **{name: getattr(self, name) for name in _OF_THE_GUIDANCE},
        )
        metadata = self.metadata(concepts, context)
        if self.form == "sampling":
            return SamplingEdit(guidances=(guidance,), metadata=metadata)
        return WeightEdit(changes=folded(guidance, context.backbone), metadata=metadata)

    @property
    def _stops(self) -> list[int]:
        return [i * self.steps // self.places for i in range(self.places)]


def folded(guidance: CASteerGuidance, backbone: Backbone) -> dict[str, Change]:
    """Return the changes of the layers after attention that do what an unclipped guidance with one direction does."""
    changes: dict[str, Change] = {}
    for site in backbone.sites(("cross.out",)).values():
        layer = next((name for name in guidance.directions if site.module.startswith(f"{name}.")), None)
        if layer is None:
            continue
        weight = backbone.parameters({site.name}.__contains__)[site.name].detach().to("cpu", torch.float64)
        columns = (weight[:, None] if weight.ndim == 1 else weight).T
        delta = (guidance.steered(layer, columns[None], guidance.direction_timesteps[0])[0] - columns).T
        if weight.ndim == 1:
            changes[site.name] = DenseChange(delta=delta[:, 0].float())
        else:
            basis = svd(guidance.directions[layer][:, 0].double()).Vh
            changes[site.name] = LowRankChange(up=basis.T.float().contiguous(), down=(basis @ delta).float())
    return changes
