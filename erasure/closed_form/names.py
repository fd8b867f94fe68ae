"""Rows of names: states of targets beside those of their anchors, of names that are held, and of the empty prompt."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..backbones.base import Backbone
from ..backbones.conditioning import TEXT
from ..concept import Concept, Kind, normalized
from ..prompts import anchored, fill, preserved_templates, templates
from .pair_problems import spaces_of
from .problem import Row
from .readers import EmptyAnchor, PairReader, Places, PromptPair

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
    """Reader of the rows of names from one encoding of all their prompts.

    Attributes:
        spaces: Text streams that are read: with "last-subject", the form of published scripts, the tokens' states
            alone.

    Args:
        backbone: Model.
        concepts: Concepts that are removed.
        held: Other names that are read.
        wording: States that are rows.
        trailing_states: Number of trailing states of a prompt, unless the wording is "last-subject".
        empty_anchor: State of the empty prompt that stands for the name that it lacks.
        phrases: Prompts that targets are read in, unless the wording is "templates".

    Raises:
        InputError: A name is longer than what the model reads.
    """

    def __init__(
        self,
        backbone: Backbone,
        concepts: Sequence[Concept],
        held: Sequence[str],
        *,
        wording: Wording,
        trailing_states: int = 2,
        empty_anchor: EmptyAnchor = "end",
        phrases: Sequence[str] = ("{}",),
    ) -> None:
        self._in_templates = wording == "templates"
        self._held = {
            (name, concept.kind): held_pairs(name, concept.kind, in_templates=self._in_templates)
            for concept in concepts
            for name in dict.fromkeys((*held, *concept.preserve, concept.anchor))
            if name
        }
        self._erased = {
            concept: erased_pairs(concept, in_templates=self._in_templates, phrases=phrases) for concept in concepts
        }
        pairs = [pair for pairs in (*self._erased.values(), *self._held.values()) for pair in pairs]
        # In one canonical order, so that the order of the concepts does not reach the encoder's batches.
        prompts = sorted({prompt for pair in pairs for prompt in (pair.prompt, pair.anchor_prompt)} | {""})
        self._read = backbone.read(prompts)
        self._empty = prompts.index("")
        self.spaces = spaces_of(backbone, self._read.streams) if wording != "last-subject" else (TEXT,)
        places = Places(words="subject", empty_anchor=empty_anchor)
        if wording != "last-subject":
            places = Places(words="all", trailing=_TRAILING, trailing_states=trailing_states, empty_anchor=empty_anchor)
        self._readers = {space: PairReader(prompts, self._read, places, space) for space in self.spaces}

    def width(self, space: str) -> int:
        """Return the width of a stream's states."""
        return self._readers[space].width

    def erased(self, concept: Concept, space: str) -> list[Row]:
        """Return the rows of a concept's names; the weights of each name add up to 1."""
        pairs = self._erased[concept]
        each = len(concept.names) / len(pairs)
        return [row for pair in dict.fromkeys(pairs) for row in self._readers[space].rows(pair, each, 1.0)]

    def held(self, name: str, kind: Kind, space: str, weight: float = float("inf")) -> list[Row]:
        """Return the rows of a name that is held."""
        return [row for pair in self._held[name, kind] for row in self._readers[space].rows(pair, weight, 1.0)]

    def empty(self, centres: int, space: str, weight: float = float("inf")) -> list[Row]:
        """Return the first state of the empty prompt, and the centres of so many clusters of its others.

        Of each text encoder; the clusters start as runs of successive states, so that nothing is drawn. Of sentence
        vectors there is one.
        """
        stream = self._read.streams[space]
        parts = [(tokens.encoder, states, tokens.span(self._empty)) for tokens, states in stream.parts()]
        rows = []
        for number, (encoder, states, span) in enumerate(parts or [("", stream.states, range(1))]):
            read = states[self._empty, list(span)].cpu().double()
            for i, state in enumerate(torch.cat([read[:1], _centres(read[1:], centres)])):
                site = f"|{'' if number == 0 else f'{encoder}-'}invariant-{i}"
                rows.append(Row(label="", site=site, state=state, weight=weight, anchor_label="", anchor=state))
        return rows


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
