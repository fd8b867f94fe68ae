"""Rows of names: states of targets beside those of their anchors, of names that are held, and of the empty prompt."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..backbones.base import Backbone
from ..backbones.conditioning import TEXT, EncodedTokens
from ..backbones.picked import Place
from ..concept import Concept, Kind, normalized
from ..prompts import anchored, fill, preserved_templates, templates
from .pair_problems import PairTexts
from .problem import Row, Rows
from .readers import EmptyAnchor, Places, PromptPair

Wording = Literal["last-subject", "name", "templates"]
"""Text states of a name that are rows: the last token of the bare name; that and some trailing states; or the words and
some trailing states of the name in the templates of its kind."""

# Share of a prompt's weight that its trailing states get, as in UCE.
_TRAILING = 0.75
_LLOYD_STEPS = 20


def erased_pairs(concept: Concept, *, in_templates: bool, phrases: Sequence[str] = ("{}",)) -> list[PromptPair]:
    """Return the prompts of a concept's names beside those of its anchor.

    Args:
        concept: Concept.
        in_templates: Whether the prompts are the templates of its kind, each without the name where there is no anchor.
        phrases: The prompts otherwise, all of which become the bare empty prompt where there is no anchor.
    """
    if not in_templates:
        return [
            PromptPair.of(phrase, name, concept.anchor, fill(phrase, concept.anchor) if concept.anchor else "")
            for name in concept.names
            for phrase in phrases
        ]
    return [
        PromptPair.of(template, name, concept.anchor, anchored(template, concept), number=number)
        for name in concept.names
        for number, template in enumerate(templates(concept.kind))
    ]


def held_pairs(name: str, kind: Kind, *, in_templates: bool) -> list[PromptPair]:
    """Return the prompts in which a name is held while a concept of `kind` is removed."""
    if not in_templates:
        return [PromptPair.kept("{}", name)]
    return [PromptPair.kept(template, name, number=number) for number, template in enumerate(preserved_templates(kind))]


def whole_prompts(backbone: Backbone, concept: Concept) -> list[Row]:
    """Return every state of the bare names of a concept beside the anchor's state at the same position."""
    prompts = sorted({*concept.names, concept.anchor})
    row_of = {prompt: row for row, prompt in enumerate(prompts)}
    return [
        Row(
            label=normalized(name),
            site=f"{{}}|{'' if number == 0 else f'{tokens.encoder}-'}position-{position}",
            state=state,
            weight=1.0,
            anchor_label=normalized(concept.anchor),
            anchor=anchor,
        )
        for number, (tokens, states) in enumerate(backbone.read(prompts).streams[TEXT].parts())
        for name in concept.names
        for position, (state, anchor) in enumerate(
            zip(states[row_of[name]].cpu().double(), states[row_of[concept.anchor]].cpu().double(), strict=True)
        )
    ]


class NameReader:
    """Reader of the rows of names, each of whose prompts is read once.

    Args:
        backbone: Model.
        wording: States that are rows; with "last-subject", the form of published scripts, of the tokens alone.
        trailing_states: Number of trailing states of a prompt, unless the wording is "last-subject".
        empty_anchor: State of the empty prompt that stands for the name that it lacks.
        phrases: Prompts that targets are read in, unless the wording is "templates".
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        wording: Wording,
        trailing_states: int = 2,
        empty_anchor: EmptyAnchor = "end",
        phrases: Sequence[str] = ("{}",),
    ) -> None:
        self._in_templates, self._phrases = wording == "templates", phrases
        places = Places(words="subject", empty_anchor=empty_anchor)
        if wording != "last-subject":
            places = Places(words="all", trailing=_TRAILING, trailing_states=trailing_states, empty_anchor=empty_anchor)
        self._texts = PairTexts(backbone, places, whole_empty=True)

    def read(self, concepts: Sequence[Concept], held: Iterable[tuple[str, Kind]]) -> None:
        """Read the names of concepts that are removed, and others that are held while one of a kind is.

        Raises:
            InputError: A name is longer than what the model reads.
        """
        erased = [pair for concept in concepts for pair in self._erased(concept)]
        self._texts.read([*erased, *(pair for name, kind in dict.fromkeys(held) for pair in self._held(name, kind))])

    @property
    def spaces(self) -> tuple[str, ...]:
        """The text streams that are read; see `PairTexts`."""
        return self._texts.spaces

    def width(self, space: str) -> int:
        """Return the width of a stream's states."""
        return self._texts.width(space)

    def calibrated(self, problems: tuple[Rows, ...]) -> tuple[Rows, ...]:
        """Return problems that fit the size of the text states; see `pair_problems.calibrated`."""
        return self._texts.calibrated(problems)

    def erased(self, concept: Concept, space: str) -> list[Row]:
        """Return the rows of a concept's names; the weights of each name add up to 1."""
        pairs = self._erased(concept)
        each = len(concept.names) / len(pairs)
        return [row for pair in dict.fromkeys(pairs) for row in self._texts.rows(pair, space, each)]

    def held(self, name: str, kind: Kind, space: str, weight: float = float("inf")) -> list[Row]:
        """Return the rows of a name that is held."""
        return [row for pair in self._held(name, kind) for row in self._texts.rows(pair, space, weight)]

    def empty(self, centres: int, space: str, weight: float = float("inf")) -> list[Row]:
        """Return the first state of the empty prompt, and the centres of so many clusters of its others.

        Of each text encoder; the clusters start as runs of successive states, so that nothing is drawn. Of sentence
        vectors there is one.
        """
        rows = []
        for number, (encoder, states) in enumerate(self._texts.empty(space)):
            read = states.double()
            for i, state in enumerate(torch.cat([read[:1], _centres(read[1:], centres)])):
                site = f"|{'' if number == 0 else f'{encoder}-'}invariant-{i}"
                rows.append(Row(label="", site=site, state=state, weight=weight, anchor_label="", anchor=state))
        return rows

    def _erased(self, concept: Concept) -> list[PromptPair]:
        return erased_pairs(concept, in_templates=self._in_templates, phrases=self._phrases)

    def _held(self, name: str, kind: Kind) -> list[PromptPair]:
        return held_pairs(name, kind, in_templates=self._in_templates)


@dataclass(frozen=True, eq=False)
class Ends:
    """The first end-of-text state of each of some prompts."""

    end_states: Float[Tensor, "n dim"]


class EndStates:
    """The end-of-text states of prompts, read together; it stands for the model as a `PromptEncoder`.

    Args:
        backbone: Model.
        prompts: The prompts.
    """

    def __init__(self, backbone: Backbone, prompts: Iterable[str]) -> None:
        distinct = sorted(set(prompts))
        self._states: dict[str, Tensor] = {}
        most = backbone.picked_at_once or len(distinct)
        for start in range(0, len(distinct), max(most, 1)):
            lot = distinct[start : start + most]
            tokens, states = backbone.pick(lot, _ends).parts[TEXT][0]
            self._states |= {text: states[row, end] for text, (row, end) in zip(lot, _ends((), tokens), strict=True)}

    def encode(self, prompts: Sequence[str], *, trailing: bool = True) -> Ends:
        """Return the states of prompts among those that were read."""
        return Ends(torch.stack([self._states[prompt] for prompt in prompts]))


def _ends(_: tuple[str, ...], tokens: EncodedTokens) -> list[Place]:
    """Return each prompt's first end of text; without one, the last state that is read."""
    ends: list[int] = tokens.ends.tolist()
    return [(row, min(end, tokens.span(row).stop - 1)) for row, end in enumerate(ends)]


def _centres(states: Float[Tensor, "n dim"], count: int) -> Float[Tensor, "k dim"]:
    """Return the centres of clusters by Lloyd's algorithm, which starts from runs of successive states."""
    if not count or not len(states):
        return states[:0]
    centres = torch.stack([run.mean(dim=0) for run in states.tensor_split(count) if len(run)])
    for _ in range(_LLOYD_STEPS):
        nearest = torch.cdist(states, centres).argmin(dim=1)
        members = [states[nearest == i] for i in range(len(centres))]
        centres = torch.stack(
            [group.mean(dim=0) if len(group) else old for group, old in zip(members, centres, strict=True)]
        )
    return centres
