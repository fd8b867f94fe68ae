"""An attack that tries random tokens."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from erasure.backbones import Backbone
from erasure.eval.attacks import Attack, Goal
from erasure.eval.attacks.base import Tokens
from erasure.progress import OnProgress, Progress
from erasure.registry import Exactness


@dataclass(frozen=True, kw_only=True)
class AddedAttack(Attack):
    """Prompts of tokens drawn at random, none of them of the concept's names.

    Attributes:
        tokens: Length of a prompt, > 0.
    """

    name: ClassVar[str] = "added-attack-prompt"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    access: ClassVar[Literal["prompt", "gradient"]] = "prompt"

    tokens: Annotated[int, Field(ge=1)] = 4

    def search(
        self, backbone: Backbone, goal: Goal, *, on_progress: OnProgress | None = None
    ) -> Int[Tensor, "m tokens"]:
        vocabulary = Tokens(backbone, banned=goal.concept.names)
        draws = vocabulary.draw(3, self.tokens, torch.Generator().manual_seed(goal.seed))
        if on_progress is not None:
            on_progress(Progress(1, 1, self.name))
        return vocabulary.rows(draws)
