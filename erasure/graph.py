"""ConceptGraph: the similarity of concepts to a model, the one answer to "which concepts are near?"."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .concept import Kind, normalized
from .prompts import fill, templates
from .typed_torch import integers

View = Literal["text", "likeness"]
"""Ways to compare two concepts, each a number in [-1, 1].

- text: cosine of the end-of-text states of the bare names.
- likeness: cosine of the end-of-text states in the plainest prompts of a kind, averaged, with the mean over all names
  subtracted: raw states of different words point in much the same direction.
"""

_LIKENESS_TEMPLATES = 4


@runtime_checkable
class EncodedPrompts(Protocol):
    """Encoded prompts, a row each."""

    @property
    def end_states(self) -> Float[Tensor, "n dim"]:
        """State of each prompt at its first end-of-text token, where CLIP pools a sentence."""
        ...


@runtime_checkable
class PromptEncoder(Protocol):
    """Text side of a model; every backbone is one."""

    def encode(self, prompts: Sequence[str], *, trailing: bool = True) -> EncodedPrompts:
        """Return the states of the prompts; `trailing` tells whether those after the end of text are needed."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class ConceptGraph:
    """Similarity of every pair of some concepts, by view.

    Attributes:
        names: Names of the concepts, each once.
        views: Similarity of each pair of names, in [-1, 1], by view.
    """

    names: tuple[str, ...]
    views: Mapping[View, Float[Tensor, "n n"]]

    @classmethod
    def of(
        cls, encoder: PromptEncoder, names: Sequence[str], *, views: Sequence[View] = ("text",), kind: Kind = "object"
    ) -> "ConceptGraph":
        """Return the graph of some concepts as a model reads their names.

        Args:
            encoder: Model that reads the names.
            names: Names of the concepts; repeated ones count once.
            views: Views to compute.
            kind: Kind of the concepts, which decides the prompts of "likeness".
        """
        distinct = tuple(dict.fromkeys(names))
        matrices: dict[View, Tensor] = {view: _MATRICES[view](encoder, distinct, kind) for view in views if distinct}
        return cls(names=distinct, views=MappingProxyType(matrices))

    def nearest(self, targets: Sequence[str], n: int | None = None, *, view: View = "text") -> list[tuple[str, float]]:
        """Return the concepts most similar to any of the targets, with that similarity, the most similar first.

        Args:
            targets: Names among those of the graph; they and their other spellings are left out of the result.
            n: Number of concepts, at most; None returns all.
            view: Way to compare.
        """
        left_out = {normalized(name) for name in targets}
        rows = [i for i, name in enumerate(self.names) if normalized(name) not in left_out]
        columns = [self.names.index(name) for name in targets]
        if not rows or not columns:
            return []
        highest = self.views[view][rows][:, columns].amax(dim=1)
        order = integers(highest.argsort(descending=True, stable=True)[:n])
        return [(self.names[rows[i]], float(highest[i])) for i in order]


def text_similarity(encoder: PromptEncoder, prompts: Sequence[str], others: Sequence[str]) -> Float[Tensor, "n m"]:
    """Return the cosine of each pair of prompts of two lists at their end-of-text states."""
    one, other = (
        F.normalize(encoder.encode(texts, trailing=False).end_states.float(), dim=1) for texts in (prompts, others)
    )
    return one @ other.T


@torch.no_grad()
def _text(encoder: PromptEncoder, names: Sequence[str], kind: Kind) -> Float[Tensor, "n n"]:
    return text_similarity(encoder, names, names).cpu()


@torch.no_grad()
def _likeness(encoder: PromptEncoder, names: Sequence[str], kind: Kind) -> Float[Tensor, "n n"]:
    sentences = templates(kind)[:_LIKENESS_TEMPLATES]
    encoded = encoder.encode([fill(sentence, name) for name in names for sentence in sentences], trailing=False)
    ends = encoded.end_states.cpu().double()
    means = ends.reshape(len(names), len(sentences), -1).mean(dim=1)
    directions = F.normalize(means - means.mean(dim=0), dim=1)
    return directions @ directions.T


_MATRICES: Mapping[View, Callable[[PromptEncoder, Sequence[str], Kind], Float[Tensor, "n n"]]] = MappingProxyType(
    {"text": _text, "likeness": _likeness}
)
