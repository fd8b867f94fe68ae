"""Semantic Surgery (Xiong et al., NeurIPS 2025, arXiv:2510.22851): the concepts' direction off the prompt's states.

With E the states of a text, all positions of it, and D_c = E(c) - E(""):

    presence_c = mean over positions of cos(D_c, E(prompt)),  rho_c = sigmoid((presence_c - beta) / gamma)
    E' = E(prompt) - rho (E(names of all c with rho_c >= threshold) - E("")),  rho the largest rho_c

The paper's retry after a look at the image is left out: its detector was the judge of the results.
"""

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Gt, Interval
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from ..backbones import backbone_of
from ..backbones.base import Backbone
from ..backbones.conditioning import Conditioning
from ..errors import InputError
from ..registry import Exactness
from .base import NamedPrompts
from .denoising import Denoising
from .steps import Latents, around_each_step
from .texts import PerPrompt, TextGuidance, encoder_columns, joined_names


@dataclass(frozen=True, kw_only=True)
class SemanticSurgeryGuidance(TextGuidance):
    """The prompt's states less the direction of the concepts that are present, for the denoiser.

    Presence is a matter of states, not of words. With two text encoders it is the mean of both, and the sentence vector
    is changed as the states are.

    Attributes:
        beta: Presence at which a concept counts as half there.
        gamma: Width of the gate, > 0.
        threshold: Value of the gate from which on a concept is active, in (0, 1).
    """

    name: ClassVar[str] = "semantic-surgery"
    source: ClassVar[str] = "arXiv:2510.22851, code 009dbf6"
    exactness: ClassVar[Exactness] = "published"
    every_prompt: ClassVar[bool] = True
    quick: ClassVar[Mapping[str, Any]] = {"beta": -1.0}

    beta: float = 0.12
    gamma: Annotated[float, Gt(0)] = 0.02
    threshold: Annotated[float, Interval(gt=0, lt=1)] = 0.5

    @contextmanager
    def applied_to(self, pipe: DiffusionPipeline) -> Generator[DiffusionPipeline]:
        with self.prompts(pipe) as named:
            run = _Surgery(self, pipe, named)
            with around_each_step(pipe, rows=lambda: len(named()), before=run.before):
                yield pipe

    def gate(self, presence: float) -> float:
        """Return rho of a concept."""
        return 0.5 + 0.5 * math.tanh((presence - self.beta) / (2 * self.gamma))


def presence(
    direction: Float[Tensor, "positions dim"], states: Float[Tensor, "positions dim"], columns: Sequence[slice]
) -> float:
    """Return the presence of a concept in a prompt: the mean cosine of its direction with the states, by position.

    Args:
        direction: E(c) - E("").
        states: E(prompt).
        columns: Columns of each text encoder.
    """
    cosines = [torch.cosine_similarity(direction[:, part], states[:, part], dim=-1).mean() for part in columns]
    return float(torch.stack(cosines).mean())


def presences(backbone: Backbone, concept: str, prompts: Sequence[str]) -> list[float]:
    """Return the presence of a concept in prompts; half way between prompts with and without it is a `beta`."""
    with torch.no_grad():
        empty, named, *states = backbone.encode(["", concept, *prompts]).states.double()
        return [presence(named - empty, each, encoder_columns(backbone)) for each in states]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Direction:
    """Direction that is taken off a prompt's states and sentence vector."""

    states: Float[Tensor, "positions dim"]
    pooled: Float[Tensor, " pooled"] | None


class _Surgery:
    """The directions of one pipeline's prompts."""

    def __init__(self, settings: SemanticSurgeryGuidance, pipe: DiffusionPipeline, named: NamedPrompts) -> None:
        self.settings = settings
        self.backbone: Backbone = backbone_of(pipe)
        self.names = sorted(dict.fromkeys(settings.concepts))
        self.empty, self.concepts = self.backbone.encode([""]), self.backbone.encode(self.names)
        self.columns = encoder_columns(self.backbone)
        self.of_prompts = PerPrompt(settings, named, self.of_prompt)

    @torch.no_grad()
    def before(self, call: Denoising) -> Latents:
        """Change the states that the prompts' rows read."""
        rows = {row: each for row, each in enumerate(self.of_prompts()) if each is not None}
        if not rows:
            return call.latents
        arguments = call.batch_arguments
        states = arguments["encoder_hidden_states"].clone()
        for row, direction in rows.items():
            call.conditional(states)[row] -= direction.states.to(states)
        changed: dict[str, Any] = {"encoder_hidden_states": states}
        if self.empty.pooled is not None:
            pooled = arguments["added_cond_kwargs"]["text_embeds"].clone()
            for row, direction in rows.items():
                if direction.pooled is not None:
                    call.conditional(pooled)[row] -= direction.pooled.to(pooled)
            changed["added_cond_kwargs"] = {**arguments["added_cond_kwargs"], "text_embeds": pooled}
        call.replace_arguments(**changed)
        return call.latents

    @torch.no_grad()
    def of_prompt(self, states: Conditioning) -> _Direction | None:
        """Return the direction of the concepts that are present in a prompt; None without any."""
        empty = self.empty.states[0].double()
        gates = {
            name: self.settings.gate(presence(each - empty, states.states[0].double(), self.columns))
            for name, each in zip(self.names, self.concepts.states.double(), strict=True)
        }
        active = [name for name, gate in gates.items() if gate >= self.settings.threshold]
        if not active:
            return None
        joint, *more = joined_names(active, self.backbone.encode)
        if more:
            raise InputError(
                f"semantic-surgery: expected concepts in {states.prompts[0]!r} whose names fit into one text, got"
                f" {len(active)}. Raise beta, or remove fewer."
            )
        rho = max(gates.values())
        pooled = None
        if joint.pooled is not None and self.empty.pooled is not None:
            pooled = rho * (joint.pooled[0].double() - self.empty.pooled[0].double())
        return _Direction(states=rho * (joint.states[0].double() - empty), pooled=pooled)
