"""Ring-A-Bell (Tsai et al., ICLR 2024, arXiv:2310.10012): find the concept's direction in text space, follow it."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from erasure.backbones import Backbone
from erasure.concept import Concept
from erasure.progress import OnProgress, Progress
from erasure.prompts import blank, fill, templates
from erasure.registry import Exactness

from .base import Attack, Goal, Tokens


@dataclass(frozen=True, kw_only=True)
class RingABell(Attack):
    """A genetic search over ids whose text states are near those of the prompt plus the concept's direction.

    The direction is the mean, over the templates of the concept's kind, of the states with the concept less those
    without. A population of prompts of `tokens` tokens evolves by crossover and mutation towards the smallest squared
    distance of all text states to `f(prompt) + strength * direction`. The denoiser is not needed.

    Differs from the paper: the found ids are used as they are, where decoding and reading them again could give
    others; tokens of the concept's own names are not allowed, so that what is found is no plain request; the
    population is smaller.

    Attributes:
        tokens: Length of the prompts in tokens.
        strength: Factor of the direction, > 0 (eta in the paper).
        population: Prompts at once.
        generations: Rounds.
        mutation: Probability that a token is replaced.
    """

    name: ClassVar[str] = "ring-a-bell"
    source: ClassVar[str] = "arXiv:2310.10012"
    exactness: ClassVar[Exactness] = "published"
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"tokens": 6, "generations": 4, "population": 16})
    access: ClassVar[Literal["prompt", "gradient"]] = "prompt"

    tokens: Annotated[int, Field(ge=1)] = 16
    strength: Annotated[float, Field(gt=0)] = 3.0
    population: Annotated[int, Field(ge=4)] = 100
    generations: Annotated[int, Field(ge=1)] = 150
    mutation: Annotated[float, Field(ge=0, le=1)] = 0.1

    @torch.no_grad()
    def search(
        self, backbone: Backbone, goal: Goal, *, on_progress: OnProgress | None = None
    ) -> Int[Tensor, "m tokens"]:
        generator = torch.Generator().manual_seed(goal.seed)
        vocabulary = Tokens(backbone, banned=goal.concept.names)
        length = min(self.tokens, vocabulary.length - 2)
        goal_states = backbone.encode([goal.prompt]).states[0].float() + self.strength * direction(
            backbone, goal.concept
        )
        alive = vocabulary.draw(self.population, length, generator)
        far = self._distance(backbone, vocabulary.rows(alive), goal_states)
        for generation in range(self.generations):
            best = alive[far.argsort()[: self.population // 2]]
            parents = best[torch.randint(len(best), (2, self.population - len(best)), generator=generator)]
            cut = torch.randint(length + 1, (parents.shape[1], 1), generator=generator)
            children = torch.where(torch.arange(length) < cut, parents[0], parents[1])
            struck = torch.rand(children.shape, generator=generator) < self.mutation
            children = torch.where(struck, vocabulary.draw(*children.shape, generator), children)
            alive = torch.cat([best, children])
            far = torch.cat(
                [far.sort().values[: len(best)], self._distance(backbone, vocabulary.rows(children), goal_states)]
            )
            if on_progress is not None:
                on_progress(Progress(generation + 1, self.generations, self.name))
        return vocabulary.rows(alive[far.argsort()].unique_consecutive(dim=0))

    def _distance(
        self, backbone: Backbone, rows: Int[Tensor, "n tokens"], goal_states: Float[Tensor, "tokens dim"]
    ) -> Float[Tensor, " n"]:
        states = backbone.encode_ids(rows).states.float()
        return (states - goal_states).square().mean(dim=(1, 2)).cpu()


@torch.no_grad()
def direction(backbone: Backbone, concept: Concept) -> Float[Tensor, "tokens dim"]:
    """Return the mean difference of text states with and without a concept, in the templates of its kind."""
    pairs = [
        (fill(template, name), blank(concept.kind, template))
        for name in concept.names
        for template in templates(concept.kind)
    ]
    bound, free = (backbone.encode([pair[i] for pair in pairs]).states.float() for i in (0, 1))
    return (bound - free).mean(dim=0)
