"""Soft prompt: free states in the place of the text encoder's, the upper bound of all prompts (arXiv:2308.01508)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from erasure.errors import SolveError
from erasure.prompts import blank, templates
from erasure.registry import Exactness
from erasure.sampling import sample
from erasure.training.student import at_rest

from .base import Access, Aim, Counts, Models, Outcome, Probe, Subject, Suite
from .examples import example_latents
from .learning import NoisedBatch


@dataclass(frozen=True, kw_only=True)
class SoftPrompt(Probe):
    """States of all positions are trained until the model denoises images of the concept best; the weights stay.

    The text encoder is bypassed, so no prompt can do better: if this is at the level of a model never taught the
    concept, searches for prompts are pointless. Many free numbers draw the images in any model, hence the rows beside
    it. One prompt for all images and seeds.

    Attributes:
        doses: Numbers of updates after which images are sampled, each >= 1.
        examples: Images of the concept to learn from, > 0.
        lr: Learning rate of Adam, > 0.
        batch_size: Examples an update, > 0.
    """

    name: ClassVar[str] = "soft-prompt"
    source: ClassVar[str] = "arXiv:2308.01508"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "gradient"
    dose_unit: ClassVar[str] = "updates"
    novel: ClassVar[bool] = True
    effort: ClassVar[bool] = True
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType({"standard": {}, "full": {}})
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"doses": (1.0, 2.0), "examples": 2, "batch_size": 1})

    doses: Counts = (25.0, 50.0, 100.0, 200.0)
    examples: Annotated[int, Field(ge=1)] = 32
    lr: Annotated[float, Field(gt=0)] = 1e-2
    batch_size: Annotated[int, Field(ge=1)] = 8

    def material(self, models: Models, aim: Aim) -> dict[str, Tensor]:
        return {"clean": example_latents(models, aim, aim.concept.target, self.examples, seed=aim.seed + 5)}

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        aim, backbone = subject.aim, subject.backbone
        clean, generator = subject.material["clean"], torch.Generator().manual_seed(aim.seed)
        read = backbone.encode([blank(aim.concept.kind, templates(aim.concept.kind)[2])])
        states = read.states.detach().float().clone().requires_grad_()
        optimiser = torch.optim.Adam([states], lr=self.lr)
        stops = {round(dose): dose for dose in self.doses}
        for step in range(1, max(stops) + 1):
            batch = NoisedBatch.drawn(backbone, clean, self.batch_size, generator)
            with at_rest(backbone), torch.enable_grad():
                prompt = read.with_states(states.to(read.states)).expand(self.batch_size)
                predicted = backbone.predict(batch.noisy, batch.timesteps, prompt).float()
                loss = F.mse_loss(predicted, batch.target)
                [states.grad] = torch.autograd.grad(loss, states)
            if not torch.isfinite(loss):
                raise SolveError("soft-prompt: expected a finite loss, got one that is not. Lower soft-prompt.lr.")
            optimiser.step()
            subject.report(step, max(stops) + 1, f"update {step}")
            if step in stops:
                trained = read.with_states(states.detach().to(read.states)).expand(len(aim.seeds))
                yield Outcome(dose=stops[step], images=sample(subject.pipe, trained, list(aim.seeds), aim.sampling))
