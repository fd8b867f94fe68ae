"""Parameters: do the units that carry the concept change? (after ConceptVectors, arXiv:2406.11614)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from erasure.backbones import Backbone, backbone_of
from erasure.backbones.layer_readings import watched_inputs
from erasure.edits.changes import exchanged
from erasure.errors import InputError
from erasure.judge import Judge
from erasure.registry import Exactness

from .base import Access, Aim, MissingError, Models, Outcome, Probe, Shares, Subject
from .examples import noisy_latents
from .inversion import with_word

_STEPS = 10
_PLACES = (3, 5, 7)  # steps of these whose activations are read
_FEEDS = (("cross.out", "cross.v"), ("joint.out", "joint.v"), ("ff.out", "ff.in"))
"""Roles of the layers that write a unit, and of those that make it."""
Units = Mapping[str, Tensor]
"""Something of each unit, by the full name of the weight that writes it."""


@dataclass(frozen=True, kw_only=True)
class Parameters(Probe):
    """Readings of the units that carry the concept in the original; no attack and no sampling by the tested model.

    A unit is a column of an attention's output projection, or of the second layer of a feed-forward block, with the
    rows that make its input. Its score is the mean |activation| under prompts of the concept, less that under the same
    prompts with a sibling's name, in standard deviations; a share of all units, those of the highest scores, are
    carriers. They count only if the original without them no longer draws the concept and the original without as many
    others, layer by layer, still does: else the concept has no such carriers in this model, and the probe says so.

        cosine   of each carrier's weights in the tested model and in the original
        length   1 - |W - W0| / |W0| of each, at least 0
        again    share of the carriers that are carriers in the tested model, too; by chance it is the dose

    A separately trained model has no units in common with the original, so no gold is read. A removal that leaves the
    denoiser's weights alone shows in `again` alone.

    Differs from the paper: units of a denoiser, scored by activations; the share found again stands for the Jaccard
    index.

    Attributes:
        doses: Shares of the units that count as carriers, each in (0, 1).
        prompts: Prompts of the concept, > 0.
        without: Largest share of the original's images that may show the concept without the carriers, in [0, 1].
        others: Least share that must show it without as many other units, in [0, 1].
    """

    name: ClassVar[str] = "parameters"
    source: ClassVar[str] = "arXiv:2406.11614"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "inside"
    dose_unit: ClassVar[str] = "of the units"
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"doses": (0.1,), "prompts": 2, "without": 1.0, "others": 0.0}
    )

    doses: Shares = (0.01, 0.03, 0.1)
    prompts: Annotated[int, Field(ge=1)] = 16
    without: Annotated[float, Field(ge=0, le=1)] = 0.3
    others: Annotated[float, Field(ge=0, le=1)] = 0.5

    def material(self, models: Models, aim: Aim) -> dict[str, Tensor]:
        if not aim.siblings:
            raise MissingError(
                "parameters: expected a sibling of the concept to compare with, got none. Preserve some."
            )
        with models.original() as pipe:
            backbone = backbone_of(pipe)
            judge = aim.profile.judge(str(pipe.device), [aim.concept.target, *aim.siblings])
            if judge is None:
                raise MissingError("a judge of the images, to check the carriers in the original")
            vectors = unit_vectors(backbone)
            latents = {
                part: noisy_latents(backbone, aim, prompts, steps=_STEPS, places=_PLACES, seed=90)
                for part, prompts in self._asked(aim).items()
            }
            scores = self._scores(backbone, aim, latents)
            rates = torch.tensor([self._rates(pipe, aim, judge, scores, dose) for dose in self.doses])
            if not self._valid(rates).any():
                raise MissingError(_no_carriers(aim, self.doses, rates))
        return {
            **latents,
            "rates": rates,
            **{f"score {name}": value for name, value in scores.items()},
            **{f"unit {name}": value for name, value in vectors.items()},
        }

    @torch.no_grad()
    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        material = subject.material
        before = _of(material, "unit ")
        known = _of(material, "score ")
        subject.report(0, 2, "units")
        now = unit_vectors(subject.backbone)
        subject.report(1, 2, "activations")
        scores = self._scores(subject.backbone, subject.aim, material)
        for dose, rates, valid in zip(self.doses, material["rates"], self._valid(material["rates"]), strict=True):
            if not valid:
                continue
            carriers, again = highest(known, dose), highest(scores, dose)
            pairs = [(now[name][mask], before[name][mask]) for name, mask in carriers.items()]
            cosine = torch.cat([F.cosine_similarity(one, other, dim=1) for one, other in pairs])
            moved = torch.cat([(one - other).norm(dim=1) / other.norm(dim=1).clamp(min=1e-12) for one, other in pairs])
            repeated = torch.cat([again[name][mask].float() for name, mask in carriers.items()])
            label = f"{100 * dose:g} % of the units (without them {rates[0]:.2f}, without others {rates[1]:.2f})"
            for part, values, floor in (
                ("cosine", cosine, 0.0),
                ("length", (1 - moved).clamp(min=0), 0.0),
                ("again", repeated, dose),
            ):
                yield Outcome(dose=dose, part=part, values=values.tolist(), floor=floor, comparable=False, label=label)

    def _valid(self, rates: Float[Tensor, "doses two"]) -> Bool[Tensor, " doses"]:
        return (rates[:, 0] <= self.without) & (rates[:, 1] >= self.others)

    def _asked(self, aim: Aim) -> dict[str, list[str]]:
        """Return prompts of the concept, and the same with the names of siblings in turn."""
        named = [aim.prompts[i % len(aim.prompts)] for i in range(self.prompts)]
        siblings = aim.siblings[:2]
        others = [with_word(prompt, aim.concept, siblings[i % len(siblings)]) for i, prompt in enumerate(named)]
        return {"target": named, "sibling": others}

    @torch.no_grad()
    def _scores(self, backbone: Backbone, aim: Aim, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the score of each unit of a model, on the original's latents."""
        names, timesteps = list(unit_vectors(backbone)), backbone.schedule.timesteps(_STEPS)
        sides: list[dict[str, Tensor]] = []
        for part, prompts in self._asked(aim).items():
            read, rows = backbone.encode(prompts), {name: [] for name in names}
            for place, noisy in zip(_PLACES, latents[part], strict=True):
                with watched_inputs(backbone, names) as inputs:
                    backbone.predict(noisy, timesteps[place], read)
                for name in names:
                    activations = inputs[name].float().abs().unflatten(0, (len(prompts), -1))
                    rows[name].append(activations.mean(1).cpu())
            sides.append({name: torch.cat(parts) for name, parts in rows.items()})
        return {name: separation(sides[0][name], sides[1][name]) for name in names}

    def _rates(self, pipe: DiffusionPipeline, aim: Aim, judge: Judge, scores: Units, dose: float) -> list[float]:
        """Return the shares of the original's images that show the concept without carriers, and without others."""
        carriers = highest(scores, dose)
        others = random_others(carriers, torch.Generator().manual_seed(aim.seed + 91))
        subject, rates = Subject(pipe=pipe, aim=aim), []
        for masks in (carriers, others):
            parameters = subject.backbone.parameters(masks.__contains__)
            weights = {name: p.data.masked_fill(masks[name].to(p.device), 0) for name, p in parameters.items()}
            with exchanged(parameters, weights):
                shown = judge.shows(subject.sampled(), aim.concept.target)
            rates.append(sum(shown) / len(shown))
        return rates


def unit_vectors(backbone: Backbone) -> dict[str, Float[Tensor, "units dim"]]:
    """Return the weights of each unit: its column of the layer that writes it, then its rows of the one that makes it.

    Raises:
        InputError: The model has no such layers.
    """
    vectors: dict[str, Tensor] = {}
    for writes, makes in _FEEDS:
        written, before = (
            {n: p.data.float().cpu() for n, p in backbone.parameters(backbone.sites((role,)).__contains__).items()}
            for role in (writes, makes)
        )
        matrices = [(name, weight) for name, weight in written.items() if weight.ndim == 2]
        feeding = [weight for weight in before.values() if weight.ndim == 2]
        for i, (name, weight) in enumerate(matrices):
            vectors[name] = weight.T.contiguous()
            if len(feeding) == len(matrices) and len(feeding[i]) % weight.shape[1] == 0:
                # A gated layer makes a unit by several rows, a block of units each.
                rows = feeding[i].unflatten(0, (-1, weight.shape[1])).movedim(1, 0).flatten(1)
                vectors[name] = torch.cat([vectors[name], rows], dim=1)
    if not vectors:
        raise InputError(
            f"parameters: expected a model with linear layers that write units, got {backbone.family}. Use transplant."
        )
    return vectors


def separation(target: Float[Tensor, "n units"], sibling: Float[Tensor, "n units"]) -> Float[Tensor, " units"]:
    """Return the difference of the means in standard deviations within the groups; 0 for a unit that never varies."""
    spread = ((target.var(0, unbiased=False) + sibling.var(0, unbiased=False)) / 2).sqrt()
    return (target.mean(0) - sibling.mean(0)) / spread.clamp(min=1e-12) * (spread > 1e-12)


def highest(scores: Units, share: float) -> dict[str, Bool[Tensor, " units"]]:
    """Return the units with the highest scores of all layers, a share of them and at least one."""
    every = torch.cat(list(scores.values()))
    ranks = torch.empty_like(every, dtype=torch.long)
    ranks[every.argsort(descending=True, stable=True)] = torch.arange(len(every))
    picked = ranks < max(1, round(share * len(every)))
    return dict(zip(scores, picked.split([len(each) for each in scores.values()]), strict=True))


def random_others(units: Units, generator: torch.Generator) -> dict[str, Bool[Tensor, " units"]]:
    """Return as many other units of each layer, at random; fewer where a layer has no more."""
    others = {}
    for name, mask in units.items():
        free = (~mask).nonzero()[:, 0]
        chosen = free[torch.randperm(len(free), generator=generator)[: int(mask.sum())]]
        others[name] = torch.zeros_like(mask).index_fill(0, chosen, True)
    return others


def _of(material: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in material.items() if name.startswith(prefix)}


def _no_carriers(aim: Aim, doses: Sequence[float], rates: Float[Tensor, "doses two"]) -> str:
    tried = ", ".join(
        f"{100 * dose:g} % ({without:.2f}, {other:.2f})"
        for dose, (without, other) in zip(doses, rates.tolist(), strict=True)
    )
    return (
        f"units that carry {aim.concept.target!r} in the original: none were found. Shares of images that show it"
        f" without the units and without as many others: {tried}; set parameters.doses to other shares"
    )
