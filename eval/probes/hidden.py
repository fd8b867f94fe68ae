"""Hidden knowledge: the denoiser as a classifier (arXiv:2303.16203, arXiv:2503.15299); its guidance, its keys.

Sampling shows the concepts that a model draws; here its predictions are read without sampling. Link: does the name
still explain the look? Density: does the model still find the look natural, unprompted?
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from erasure.backbones import Backbone, backbone_of
from erasure.backbones.conditioning import Conditioning
from erasure.backbones.sites import Sites
from erasure.prompts import anchored, blank, fill, templates
from erasure.registry import Exactness
from erasure.sampling import noise, scheduled_prediction, trajectory_latents

from .base import Access, Aim, MissingError, Models, OneDose, Outcome, Probe, Subject, Suite
from .examples import example_latents

_AT_ONCE = 32
_STEPS = 10  # of the schedule whose noise levels are read
_GUIDED_IMAGES = 8  # whose guidance is read
_GUIDED_STEPS = (1, 3, 5, 7)  # of these, where guidance is read: from nearly noise to nearly clean


@dataclass(frozen=True, kw_only=True)
class Hidden(Probe):
    """Four readings of the denoiser, no attack and no sampling by the tested model.

    Pairs (x+, x-) show the concept and a sibling in like surroundings; E(x, p) is the error of predicting the noise
    under prompt p, for the same noise in all models; c names the concept, n the blank twin of that prompt, u is empty.

        link      L(x+) - L(x-) with L(x) = E(x, n) - E(x, c)
        density   E(x-, u) - E(x+, u)
        guidance  <d, d0> / |d0|^2 with d = eps(c) - eps(u), d0 the original's, on the original's trajectories
        keys      <W c - W0 a, W0 c - W0 a> / |W0 c - W0 a|^2 of the projections of text, a the anchor

    Each is scaled by the page to 0 for a model never taught the concept and 1 for the original; without such a model
    the density has no scale. A negative link or
    guidance is knowledge as well: the model steers away from the concept. Knowledge inside is no failure of a removal
    from the outside.

    Attributes:
        doses: Always 1: the readings have no dose.
        pairs: Pairs of images, > 0.
        levels: Noise levels of each image, > 0.
    """

    name: ClassVar[str] = "hidden"
    source: ClassVar[str] = "arXiv:2303.16203 and arXiv:2503.15299"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "inside"
    dose_unit: ClassVar[str] = "reading"
    judged: ClassVar[bool] = False
    reads_anchor: ClassVar[bool] = True
    version: ClassVar[int] = 2
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType(
        {"quick": {}, "standard": {"pairs": 64, "levels": 10}, "full": {"pairs": 128, "levels": 10}}
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"pairs": 2, "levels": 2})

    doses: OneDose = (1.0,)
    pairs: Annotated[int, Field(ge=1)] = 24
    levels: Annotated[int, Field(ge=1)] = 4

    def material(self, models: Models, aim: Aim) -> dict[str, Tensor]:
        if not aim.siblings:
            raise MissingError("hidden: expected a sibling of the concept to compare with, got none. Preserve some.")
        seed = aim.seed + 3
        shown = {
            "with": example_latents(models, aim, aim.concept.target, self.pairs, seed=seed),
            "without": example_latents(models, aim, aim.siblings[0], self.pairs, seed=seed),
        }
        with models.original() as pipe:
            return {**shown, **_guidance_of(backbone_of(pipe), aim), **_projected(backbone_of(pipe), aim)}

    @torch.no_grad()
    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        subject.report(0, 2, "errors of pairs")
        named, neutral, empty = self._errors(subject)
        link, density = neutral - named, -empty
        with_, without = slice(0, self.pairs), slice(self.pairs, None)
        yield self._outcome("link", link[with_] - link[without])
        # Without the concept one kind of image may still be the easier one: only a model never taught it is a floor.
        yield self._outcome("density", density[with_] - density[without], floor=None)
        subject.report(1, 2, "guidance")
        yield self._outcome("guidance", _guidance_share(subject))
        shares = _projected_share(subject)
        if shares is not None:
            yield self._outcome("keys", shares, comparable=False)

    def _outcome(self, part: str, values: Float[Tensor, " n"], floor: float | None = 0.0, **further: Any) -> Outcome:
        return Outcome(dose=self.doses[0], part=part, values=values.tolist(), floor=floor, label="reading", **further)

    def _errors(self, subject: Subject) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean error of each image, those with the concept first, under the three prompts."""
        backbone, aim = subject.backbone, subject.aim
        template = templates(aim.concept.kind)[2]
        prompts = [fill(template, aim.concept.target), blank(aim.concept.kind, template), ""]
        read = backbone.encode(prompts)
        clean = torch.cat([subject.material["with"], subject.material["without"]])
        generators = [torch.Generator().manual_seed(aim.seed + i) for i in range(self.pairs)]
        timesteps = backbone.schedule.timesteps(self.levels + 1)[1:]
        errors = torch.zeros(3, len(clean))
        for timestep in timesteps:
            added = noise(generators, (*clean.shape[1:],)).repeat(2, 1, 1, 1)  # type: ignore[arg-type]
            for start in range(0, len(clean), _AT_ONCE):
                rows = slice(start, start + _AT_ONCE)
                errors[:, rows] += _error(backbone, clean[rows], added[rows], timestep, read) / len(timesteps)
        return errors[0], errors[1], errors[2]


def _error(
    backbone: Backbone, clean: Tensor, added: Tensor, timestep: Tensor, read: Conditioning
) -> Float[Tensor, "prompts n"]:
    clean, added = clean.to(backbone.device), added.to(backbone.device)
    noisy = backbone.schedule.noised(clean, added, timestep)
    goal = backbone.schedule.target(clean, added, timestep)
    return torch.stack(
        [
            (backbone.predict(noisy, timestep, read.select([i] * len(clean))).float() - goal)
            .square()
            .flatten(1)
            .mean(1)
            .cpu()
            for i in range(len(read))
        ]
    )


@torch.no_grad()
def _guidance_of(backbone: Backbone, aim: Aim) -> dict[str, Tensor]:
    """Return latents of the original's trajectories under the concept's prompts, and its guidance there."""
    prompts = list(aim.prompts[:_GUIDED_IMAGES])
    states, empty = backbone.encode(prompts), backbone.unconditional()
    start = noise([torch.Generator().manual_seed(seed) for seed in aim.seeds[:_GUIDED_IMAGES]], backbone.latent_shape())
    scale = max(aim.sampling.guidance_scale, 1.0)
    latents = trajectory_latents(
        backbone, start, states, empty, steps=_STEPS, guidance_scale=scale, stops=list(_GUIDED_STEPS)
    )
    noisy = torch.stack([latents[step] for step in _GUIDED_STEPS])
    return {"noisy": noisy.cpu(), "guidance": _guidance_at(backbone, noisy, states).cpu()}


def _guidance_at(backbone: Backbone, noisy: Float[Tensor, "steps n c h w"], states: Conditioning) -> Tensor:
    timesteps = backbone.schedule.timesteps(_STEPS)
    empty = backbone.unconditional().expand(len(states))
    return torch.stack(
        [
            scheduled_prediction(backbone, latents, timesteps[step], states)
            - scheduled_prediction(backbone, latents, timesteps[step], empty)
            for step, latents in zip(_GUIDED_STEPS, noisy, strict=True)
        ]
    )


def _guidance_share(subject: Subject) -> Float[Tensor, " n"]:
    """Return the share of the original's guidance in that of the model, one value an image and step."""
    states = subject.backbone.encode(list(subject.aim.prompts[:_GUIDED_IMAGES]))
    reference = subject.material["guidance"].flatten(2)
    guidance = _guidance_at(subject.backbone, subject.material["noisy"], states).cpu().flatten(2)
    return ((guidance * reference).sum(2) / reference.square().sum(2)).flatten()


def _projections(backbone: Backbone) -> Sites:
    return backbone.sites(("cross.k", "cross.v"), reads="text")


def _states(backbone: Backbone, aim: Aim) -> Float[Tensor, "two dim"]:
    """Return the states of the concept's last token and of the end of text, in its plainest prompt."""
    read = backbone.read([fill(templates(aim.concept.kind)[2], aim.concept.target)])
    spans = read.spans(0, aim.concept.target)
    last = spans[-1][-1] if spans else int(read.eot[0]) - 1  # a model that filters its prompts does not read the name
    return torch.stack([read.states[0, last], read.end_states[0]]).float()


@torch.no_grad()
def _projected(backbone: Backbone, aim: Aim) -> dict[str, Tensor]:
    """Return the projections of the concept's states and of the anchor's by the original; none without such layers."""
    template = templates(aim.concept.kind)[2]
    anchor = backbone.read([anchored(template, aim.concept)]).end_states.float().expand(2, -1)
    target = _states(backbone, aim)
    weights = backbone.parameters(_projections(backbone).__contains__)
    pairs = {name: (w.float() @ target.T, w.float() @ anchor.T) for name, w in weights.items()}
    return {
        **{f"target {name}": target.T.contiguous().cpu() for name, (target, _) in pairs.items()},
        **{f"anchor {name}": anchor.T.contiguous().cpu() for name, (_, anchor) in pairs.items()},
    }


def _projected_share(subject: Subject) -> Float[Tensor, " n"] | None:
    """Return the share of the original's difference of concept and anchor, by projection and position."""
    backbone = subject.backbone
    weights = backbone.parameters(_projections(backbone).__contains__)
    if not weights:
        return None
    states = _states(backbone, subject.aim)
    shares = []
    for name, weight in weights.items():
        anchor, target = subject.material[f"anchor {name}"], subject.material[f"target {name}"]
        reference = target - anchor
        moved = (states @ weight.float().T).cpu() - anchor
        shares.append((moved * reference).sum(1) / reference.square().sum(1))
    return torch.cat(shares)
