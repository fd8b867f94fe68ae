"""Traces: the concept's direction in what the denoiser reads from text (after KIF, arXiv:2601.10566)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from erasure.backbones import Backbone, backbone_of
from erasure.backbones.attention import cross_attention_layers, watched_outputs
from erasure.prompts import fill, templates
from erasure.registry import Exactness

from .base import Access, Aim, MissingError, Models, OneDose, Outcome, Probe, Subject, Suite

_STEPS = 10
_PLACES = (2, 5, 8)  # steps of these whose noise levels are read


@dataclass(frozen=True, kw_only=True)
class Traces(Probe):
    """Projection of the attention's output onto the concept's signature, as a share of the original's.

    The signature s of a layer is the mean, over latents, of the output under the concept's prompt less that under the
    prompts of siblings, in the original. In the tested model h is the same difference:

        r = <h, s> / |s|^2

    With the plain prompt's success it names a type: erased (neither), suppressed (a trace without success), leaking.
    A separately trained model has other directions, so the floor is 0 and no gold is read.

    Attributes:
        doses: Always 1: the reading has no dose.
        latents: Noisy latents a noise level, > 0.
    """

    name: ClassVar[str] = "traces"
    source: ClassVar[str] = "arXiv:2601.10566"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "inside"
    dose_unit: ClassVar[str] = "reading"
    judged: ClassVar[bool] = False
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType(
        {"quick": {}, "standard": {"latents": 32}, "full": {"latents": 64}}
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"latents": 2})

    doses: OneDose = (1.0,)
    latents: Annotated[int, Field(ge=1)] = 12

    def material(self, models: Models, aim: Aim) -> dict[str, Tensor]:
        if not aim.siblings:
            raise MissingError("traces: expected a sibling of the concept to compare with, got none. Preserve some.")
        with models.original() as pipe:
            backbone = backbone_of(pipe)
            differences = self._differences(backbone, aim)
        return {name: value.mean(0) for name, value in differences.items()}

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        differences = self._differences(subject.backbone, subject.aim)
        shares = [
            (value * subject.material[name]).sum(1) / subject.material[name].square().sum().clamp(min=1e-12)
            for name, value in differences.items()
        ]
        values = torch.stack(shares).mean(0)
        yield Outcome(dose=self.doses[0], values=values.tolist(), floor=0.0, comparable=False, label="reading")

    @torch.no_grad()
    def _differences(self, backbone: Backbone, aim: Aim) -> dict[str, Float[Tensor, "n channels"]]:
        """Return by layer the output under the concept's prompt less the mean under siblings, one row a latent."""
        layers = list(cross_attention_layers(backbone))
        template = templates(aim.concept.kind)[2]
        siblings = aim.siblings[:2]
        read = backbone.encode([fill(template, name) for name in (aim.concept.target, *siblings)])
        generators = [torch.Generator().manual_seed(aim.seed + 50 + i) for i in range(self.latents)]
        timesteps = backbone.schedule.timesteps(_STEPS)
        rows: dict[str, list[Tensor]] = {name: [] for name in layers}
        for place in _PLACES:
            # Noise alone: no image favours a prompt, and the latents are the same for every model.
            shape = backbone.latent_shape()
            noisy = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
            outputs = []
            for i in range(len(read)):
                with watched_outputs(backbone, layers, lambda _, output: output.float().mean(1).cpu()) as kept:
                    backbone.predict(noisy, timesteps[place], read.select([i] * self.latents))
                outputs.append(dict(kept))
            for name in layers:
                others = torch.stack([each[name] for each in outputs[1:]]).mean(0)
                rows[name].append(outputs[0][name] - others)
        return {name: torch.cat(parts) for name, parts in rows.items()}
