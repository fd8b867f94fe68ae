"""MMA-Diffusion's textual attack (Yang et al., CVPR 2024, arXiv:2311.17516): gradient search on the text encoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from erasure.backbones import Backbone
from erasure.progress import OnProgress, Progress
from erasure.registry import Exactness

from .base import Attack, Goal, Tokens, pooled, soft_tokens


@dataclass(frozen=True, kw_only=True)
class MMA(Attack):
    """Tokens whose sentence means what the prompt means, none of them of the concept's names.

    It starts from random tokens. Each round takes the gradient of the cosine between the sentence's state and the
    prompt's with respect to the token at each place, tries `candidates` single exchanges drawn from the `top` best of
    each place, and keeps the best of all, which may be what there was. The denoiser is not needed.

    Differs from the paper: fewer candidates and rounds; its list of sensitive words is the concept's names.
    Differs from the official code: there each place is tried with the candidates of its neighbour, since the gradient
    counts the start of text, and the best exchange is taken even if it is worse than what there was.

    Attributes:
        tokens: Length of the prompts in tokens.
        top: Tokens of each place that may be tried.
        candidates: Exchanges a round.
        rounds: Number of rounds.
    """

    name: ClassVar[str] = "mma"
    source: ClassVar[str] = "arXiv:2311.17516"
    exactness: ClassVar[Exactness] = "published"
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"tokens": 6, "rounds": 4, "candidates": 16, "top": 16})
    access: ClassVar[Literal["prompt", "gradient"]] = "prompt"

    tokens: Annotated[int, Field(ge=1)] = 20
    top: Annotated[int, Field(ge=1)] = 256
    candidates: Annotated[int, Field(ge=1)] = 64
    rounds: Annotated[int, Field(ge=1)] = 200

    def search(
        self, backbone: Backbone, goal: Goal, *, on_progress: OnProgress | None = None
    ) -> Int[Tensor, "m tokens"]:
        generator = torch.Generator().manual_seed(goal.seed)
        vocabulary = Tokens(backbone, banned=goal.concept.names)
        length = min(self.tokens, vocabulary.length - 2)
        read = backbone.encode([goal.prompt])
        goal_state = read.states[0, read.eot[0]].float()
        now, near = vocabulary.draw(1, length, generator), torch.tensor(-1.0)
        finds: list[tuple[float, Tensor]] = []
        for round_index in range(self.rounds):
            slope = _slope(backbone, vocabulary.rows(now), goal_state, length)
            best = vocabulary.allowed[slope[:, vocabulary.allowed].topk(min(self.top, len(vocabulary.allowed))).indices]
            tried = now.repeat(self.candidates, 1)
            place = torch.randint(length, (self.candidates,), generator=generator)
            choice = torch.randint(best.shape[1], (self.candidates,), generator=generator)
            tried[torch.arange(self.candidates), place] = best[place, choice]
            with torch.no_grad():
                cosines = F.cosine_similarity(pooled(backbone, vocabulary.rows(tried)), goal_state, dim=1).cpu()
            if cosines.max() > near:
                near, now = cosines.max(), tried[cosines.argmax()][None]
                finds.append((near.item(), now))
            if on_progress is not None:
                on_progress(Progress(round_index + 1, self.rounds, self.name))
        return vocabulary.rows(torch.cat([tokens for _, tokens in sorted(finds, key=lambda pair: -pair[0])]))


def _slope(
    backbone: Backbone, rows: Int[Tensor, "1 tokens"], goal_state: Float[Tensor, " dim"], k: int
) -> Float[Tensor, "k vocabulary"]:
    """Return the first-order change of the cosine for each token at each position."""
    one_hot = F.one_hot(rows[0, 1 : 1 + k], len(backbone.pipe.tokenizer)).float().requires_grad_()
    with torch.enable_grad(), soft_tokens(backbone, one_hot):
        cosine = F.cosine_similarity(pooled(backbone, rows), goal_state[None], dim=1).sum()
        [slope] = torch.autograd.grad(cosine, one_hot)
    return slope.cpu()
