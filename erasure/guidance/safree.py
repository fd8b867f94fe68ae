"""SAFREE: the prompt's states without the concepts' subspace (Yoon et al., ICLR 2025, arXiv:2410.12761).

With P_C the projector on the pooled states of the concepts' names, and q_i the pooled state of the prompt with token i
masked: token i carries a concept if |(I - P_C) q_i| >= (1 + alpha) times the mean of the other tokens', and its state e
becomes (I - P_C) P_I e, P_I the projector on the span of all q_i. Written from the equations; the official code has no
licence.
"""

import math
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from diffusers import DiffusionPipeline
from jaxtyping import Bool, Float
from torch import Tensor

from ..backbones import backbone_of
from ..backbones.base import Backbone
from ..backbones.conditioning import Conditioning
from ..registry import Exactness
from .base import NamedPrompts
from .denoising import Denoising
from .negative_prompt import NegativePromptGuidance
from .steps import Latents, around_each_step
from .texts import PerPrompt, TextGuidance, encoder_columns

# Constants of the released code: the token that stands for a masked one ("!"), the steepness and middle of the rule for
# the number of steps (5.5 and 3.5 for artists), and the largest number of steps.
_MASK_ID, _STEEPNESS, _MIDDLE, _MOST = 0, 2.5, 5.333, 10
_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class SAFREEGuidance(TextGuidance):
    """The prompt's states without the concepts for the denoiser, for the first steps.

    With two text encoders each is filtered in its own space.

    Attributes:
        alpha: Excess of a token's distance over the mean of the others' from which on it carries a concept, >= 0.
        steps: Rule for the number of steps: "released" code, "paper", or "all".
        trailing: Whether the states from the end of text on are projected too where a token carries a concept.
        as_negative: Whether the names are the negative prompt as well, as in the released generator.
    """

    name: ClassVar[str] = "safree"
    source: ClassVar[str] = "arXiv:2410.12761, code b8b2c3f"
    exactness: ClassVar[Exactness] = "reconstructed"
    every_prompt: ClassVar[bool] = True

    alpha: Annotated[float, Ge(0)] = 0.01
    steps: Literal["released", "paper", "all"] = "released"
    trailing: bool = False
    as_negative: bool = False

    @contextmanager
    def applied_to(self, pipe: DiffusionPipeline) -> Generator[DiffusionPipeline]:
        with ExitStack() as stack:
            named = stack.enter_context(self.prompts(pipe))
            run = _Filtering(self, pipe, named)
            stack.enter_context(around_each_step(pipe, rows=lambda: len(named()), before=run.before))
            if self.as_negative:
                negative = NegativePromptGuidance(concepts=self.concepts, only_named=self.only_named)
                stack.enter_context(negative.applied_to(pipe))
            yield pipe

    def last_step(self, distance: float) -> float:
        """Return the last step in which the filtered states are read, from `1 - mean cosine` to the original ones."""
        if self.steps == "all":
            return math.inf
        sharp = 2 * _STEEPNESS * (10 * distance - _MIDDLE)
        return float(round(_MOST / (1 + math.exp(-(sharp if self.steps == "released" else distance)))))

    def triggers(
        self, masked: Float[Tensor, "n dim"], concept: Float[Tensor, "dim dim"], empty: Float[Tensor, " dim"]
    ) -> Bool[Tensor, " n"]:
        """Return which tokens carry a concept, from the pooled states of the prompt with each of them masked.

        Args:
            masked: The pooled states.
            concept: Projector on the concepts.
            empty: Pooled state of the empty prompt, which a prompt of one token is compared with.
        """
        distances = (masked - masked @ concept).norm(dim=-1)
        if len(distances) == 1:
            return distances > (empty - concept @ empty).norm()
        others = (distances.sum() - distances) / (len(distances) - 1)
        return distances >= (1 + self.alpha) * others


def projector(rows: Float[Tensor, "n dim"]) -> Float[Tensor, "dim dim"]:
    """Return the orthogonal projector on the span of rows; near-collinear rows count once."""
    _, sizes, directions = torch.linalg.svd(rows.double(), full_matrices=False)
    kept = directions[sizes > _TOLERANCE * sizes.max()]
    return kept.T @ kept


def filtered(
    states: Float[Tensor, "k dim"], concept: Float[Tensor, "dim dim"], prompt: Float[Tensor, "dim dim"]
) -> Float[Tensor, "k dim"]:
    """Return (I - P_C) P_I e of each row e; in this order, the released code's, nothing of the concepts is left."""
    inside = states.double() @ prompt
    return inside - inside @ concept


@dataclass(frozen=True, kw_only=True, eq=False)
class _Safe:
    """Change of one text encoder's columns in a prompt's states, and the last step in which it is read."""

    columns: slice
    change: Float[Tensor, "tokens columns"]
    last: float


class _Filtering:
    """The filtered states of one pipeline's prompts."""

    def __init__(self, settings: SAFREEGuidance, pipe: DiffusionPipeline, named: NamedPrompts) -> None:
        self.settings, self.named = settings, named
        self.backbone: Backbone = backbone_of(pipe)
        names = self.backbone.encode(list(settings.concepts)).end_states.double()
        self.empty = self.backbone.encode([""]).end_states[0].double()
        self.columns = encoder_columns(self.backbone)
        self.concepts = [projector(names[:, part]) for part in self.columns]
        self.of_prompts = PerPrompt(settings, named, self.of_prompt)

    @torch.no_grad()
    def before(self, call: Denoising) -> Latents:
        """Filter the states that the prompts' rows read."""
        acting = [[part for part in row or () if call.step <= part.last] for row in self.of_prompts()]
        if any(acting):
            changed = call.batch_arguments["encoder_hidden_states"].clone()
            prompts = call.conditional(changed)
            for row, parts in enumerate(acting):
                for part in parts:
                    now = prompts[row, :, part.columns].double()
                    prompts[row, :, part.columns] = (now + part.change).to(changed)
            call.replace_arguments(encoder_hidden_states=changed)
        return call.latents

    def of_prompt(self, states: Conditioning) -> list[_Safe]:
        """Return the parts of a prompt's states in which a token carries a concept."""
        end = int(states.eot[0])
        if end < 2:
            return []
        ids = states.ids[[0] * (end - 1)]
        places = torch.arange(1, end, device=ids.device)
        ids[places - 1, places] = _MASK_ID
        masked = self.backbone.encode_ids(ids).end_states.double()
        safe = []
        for columns, concept in zip(self.columns, self.concepts, strict=True):
            triggers = self.settings.triggers(masked[:, columns], concept, self.empty[columns])
            if not triggers.any():
                continue
            original = states.states[0, :, columns].double()
            projected = filtered(original, concept, projector(masked[:, columns]))
            cosines = torch.cosine_similarity(projected[: end + 1], original[: end + 1], dim=-1)
            replaced = torch.full((len(original),), self.settings.trailing, device=triggers.device)
            replaced[:end] = False
            replaced[1:end] = triggers
            change = torch.where(replaced[:, None], projected - original, 0)
            last = self.settings.last_step(1 - float(cosines.mean()))
            safe.append(_Safe(columns=columns, change=change, last=last))
        return safe
