"""Rows of least-squares problems, read from the text states of pairs of prompts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor

from ..backbones.conditioning import EncodedTokens, tokens_at
from ..backbones.picked import PickedStates, PickedTexts, Place
from ..concept import normalized
from ..errors import InputError
from ..prompts import fill
from .problem import Row

# Spreads the sampled trailing positions of successive templates evenly over the range (the golden ratio's fraction).
_STAGGER = 0.6180339887498949

EmptyAnchor = Literal["start", "end"]
"""State of the empty prompt: its start of text, or its first end of text."""

Moved = tuple[str, Tensor, Tensor]
"""The name of a place in a prompt, the state there, and the state that it becomes."""


@dataclass(frozen=True, kw_only=True)
class PromptPair:
    """A prompt whose states are rows, beside the prompt whose states they become.

    Attributes:
        template: Text that the prompt was made from; for prompts without a name the prompt itself.
        label: The name in the prompt, normalised.
        prompt: The prompt.
        prefix: The part of the prompt before the name.
        suffix: The part of the prompt after the name.
        anchor_label: The name in the anchor's prompt, normalised.
        anchor_prompt: The anchor's prompt.
        number: Number of the template among the others, which decides the trailing states that are read.
        trailing: Factor of the weight of its trailing states, >= 0; 0 reads none.
    """

    template: str
    label: str
    prompt: str
    prefix: str
    suffix: str
    anchor_label: str
    anchor_prompt: str
    number: int = 0
    trailing: float = 1.0

    @classmethod
    def of(cls, template: str, name: str, anchor: str, anchor_prompt: str, *, number: int = 0) -> "PromptPair":
        """Return the pair of a template with a name in it and the anchor's prompt."""
        prefix, _, suffix = template.partition("{}")
        return cls(
            template=template,
            label=normalized(name),
            prompt=fill(template, name),
            prefix=prefix,
            suffix=suffix,
            anchor_label=normalized(anchor),
            anchor_prompt=anchor_prompt,
            number=number,
        )

    @classmethod
    def kept(cls, template: str, name: str, *, number: int = 0) -> "PromptPair":
        """Return the pair of a prompt with itself: its states stay."""
        return cls.of(template, name, name, fill(template, name), number=number)


TrailingStates = Annotated[int, Interval(ge=1, le=512)]
"""Number of trailing states of a prompt; no model has more tokens."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Positions of a prompt whose states are rows.

    Attributes:
        words: The "subject", the last token of the name, alone; "all": the words after it too, and, of an encoder
            that reads both ways, the words before it; or "onwards": the subject and every state after it, each with
            the whole weight, and every state of a prompt that is kept.
        trailing: Share of the weight for states from the first end-of-text token on, in [0, 1].
        trailing_states: Number of these states.
        empty_anchor: State of the empty prompt that stands for the subject that it lacks.
    """

    words: Literal["subject", "all", "onwards"]
    trailing: float = 0.0
    trailing_states: int = 0
    empty_anchor: EmptyAnchor = "end"


class PairReader:
    """Reader of the rows of prompt pairs from the states of all prompts, those of each text encoder apart.

    Args:
        prompts: The prompts.
        texts: The same with the states that the rows are.
        places: Positions whose states are rows; of sentence vectors there is one.
        space: Text stream to read.
    """

    def __init__(self, prompts: Sequence[str], texts: PickedTexts, places: Places, space: str) -> None:
        row_of = {prompt: row for row, prompt in enumerate(prompts)}
        self._parts: list[_PartReader | _VectorReader]
        if space in texts.vectors:
            self._parts = [_VectorReader(row_of, space, texts.vectors[space])]
        else:
            self._parts = [
                _PartReader(row_of, texts.prompts, tokens, states, places) for tokens, states in texts.parts[space]
            ]

    def rows(self, pair: PromptPair, scale: float, strength: float) -> list[Row]:
        """Return the rows of one prompt; but for "onwards", their weights add up to `scale`.

        Raises:
            InputError: The name is longer than what the model reads.
        """
        each = scale / len(self._parts)
        return [
            Row(
                label=pair.label,
                # The first encoder's rows are named as those of a model that has no other.
                site=f"{pair.template}|{place}" if number == 0 else f"{pair.template}|{part.encoder}-{place}",
                state=state,
                weight=weight,
                anchor_label=pair.anchor_label,
                anchor=anchor,
                strength=strength,
            )
            for number, part in enumerate(self._parts)
            for place, weight, state, anchor in part.weighted(pair, each)
            if weight > 0
        ]


class _Noted:
    """States that are not there: the places that are looked at are noted."""

    def __init__(self) -> None:
        self.places: set[Place] = set()

    def __getitem__(self, place: Place) -> Tensor:
        self.places.add(place)
        return _NOTHING


_NOTHING = torch.zeros(0)


def places_read(
    prompts: Sequence[str], pairs: Iterable[PromptPair], places: Places, texts: tuple[str, ...], tokens: EncodedTokens
) -> set[Place]:
    """Return the places of prompts whose states are rows of pairs.

    Args:
        prompts: The prompts.
        pairs: Pairs of them.
        places: Positions whose states are rows.
        texts: The prompts as they are encoded.
        tokens: Their tokens.
    """
    noted = _Noted()
    reader = _PartReader({prompt: row for row, prompt in enumerate(prompts)}, texts, tokens, noted, places)
    for pair in pairs:
        reader.weighted(pair, 1.0)
    return noted.places


class _VectorReader:
    """Reader of the sentence vectors: one row a prompt."""

    def __init__(self, row_of: dict[str, int], space: str, vectors: Float[Tensor, "n dim"]) -> None:
        self.encoder = space
        self._row_of, self._values = row_of, vectors

    def weighted(self, pair: PromptPair, scale: float) -> list[tuple[str, float, Tensor, Tensor]]:
        """Return the place of a prompt with its weight, its vector and the vector that this becomes."""
        vector, anchor = (self._values[self._row_of[prompt]] for prompt in (pair.prompt, pair.anchor_prompt))
        return [("vector", scale, vector, anchor)]


class _PartReader:
    """Reader of the states of one text encoder."""

    def __init__(
        self,
        row_of: dict[str, int],
        texts: Sequence[str],
        tokens: EncodedTokens,
        states: "PickedStates | _Noted",
        places: Places,
    ) -> None:
        self.encoder = tokens.encoder
        self._row_of, self._texts, self._tokens, self._places = row_of, texts, tokens, places
        self._values = states  # `Rows.of` takes those that it needs to float64
        self._ends: list[int] = tokens.ends.tolist()
        self._spans = [tokens.span(row) for row in range(len(texts))]

    def weighted(self, pair: PromptPair, scale: float) -> list[tuple[str, float, Tensor, Tensor]]:
        """Return the places of a prompt with their weights, states and the states that these become."""
        if self._places.words == "onwards":
            return [(place, scale, state, anchor) for place, state, anchor in self._onwards(pair)]
        words = list(self._words(pair))
        share = self._places.trailing if self._places.trailing_states else 0.0
        trailing = list(self._trailing(pair)) if share and pair.trailing else []
        if pair.trailing and not trailing:
            share = 0.0
        behind = scale * share * pair.trailing
        return [
            *((place, scale * (1 - share) / len(words), state, anchor) for place, state, anchor in words),
            *((place, behind / len(trailing), state, anchor) for place, state, anchor in trailing),
        ]

    def _words(self, pair: PromptPair) -> Iterable[Moved]:
        """Yield the last token of the name and the words around it, each with the state that it becomes.

        A word after the name that the anchor's prompt lacks ("style" in "neon style") becomes what the name becomes.
        """
        row, anchor_row = self._row_of[pair.prompt], self._row_of[pair.anchor_prompt]
        subject, anchor_subject = self._subject(row, pair), self._anchor_subject(pair)
        instead_row, instead_position = anchor_row, anchor_subject
        if pair.label != "" and pair.anchor_label == "":
            instead_row = self._row_of[""]
            instead_position = self._empty_position(instead_row)
        instead = self._values[instead_row, instead_position]
        yield "subject", self._values[row, subject], instead
        if self._places.words == "subject":
            return
        for back in range(1, self._ends[row] - subject):
            anchor_position = self._ends[anchor_row] - back
            anchor = self._values[anchor_row, anchor_position] if anchor_position > anchor_subject else instead
            yield f"word-{back}", self._values[row, self._ends[row] - back], anchor
        if not self._tokens.causal:
            for position in range(self._spans[row].start, self._first(row, pair)):
                within = position < min(self._ends[anchor_row], self._spans[anchor_row].stop)
                anchor = self._values[anchor_row, position] if within else instead
                yield f"before-{position}", self._values[row, position], anchor

    def _onwards(self, pair: PromptPair) -> Iterable[Moved]:
        """Yield the subject and every state after it, each with the state as far after the anchor's subject.

        Both end where the longer of the two prompts does. Of a prompt that is kept, yield every state.
        """
        row, anchor_row = self._row_of[pair.prompt], self._row_of[pair.anchor_prompt]
        subject, anchor_subject = self._subject(row, pair), self._anchor_subject(pair)
        if pair.label == pair.anchor_label:
            subject = anchor_subject = self._spans[row].start
        elif pair.anchor_prompt == "":
            anchor_subject = self._empty_position(anchor_row)
        read = min(self._spans[row].stop - subject, self._spans[anchor_row].stop - anchor_subject)
        for offset in range(read):
            place = "subject" if offset == 0 and pair.label != pair.anchor_label else f"state-{offset}"
            yield place, self._values[row, subject + offset], self._values[anchor_row, anchor_subject + offset]

    def _anchor_subject(self, pair: PromptPair) -> int:
        """Return the position of the last token of the anchor's name; of the start of text in a prompt without one."""
        row = self._row_of[pair.anchor_prompt]
        return self._spans[row].start if pair.anchor_label == "" else self._subject(row, pair)

    def _empty_position(self, row: int) -> int:
        """Return the position in the empty prompt that stands for a name."""
        span = self._spans[row]
        # An encoder without an end-of-text token ends with the prompt's last token, or with that of its template.
        return span.start if self._places.empty_anchor == "start" else min(self._ends[row], span.stop - 1)

    def _first(self, row: int, pair: PromptPair) -> int:
        """Return the position of the name's first token; in a prompt without a name, of the start of text."""
        if pair.label == "":
            return self._spans[row].start
        start = len(pair.prefix)
        positions = tokens_at(self._tokens.offsets[row], start, len(self._texts[row]) - len(pair.suffix))
        return positions[0] if positions else self._spans[row].start

    def _subject(self, row: int, pair: PromptPair) -> int:
        """Return the position of the name's last token; in a prompt without a name, of the start of text."""
        if pair.label == "":
            return self._spans[row].start
        end = len(self._texts[row]) - len(pair.suffix)
        positions = tokens_at(self._tokens.offsets[row], 0, end)
        covered = max((last for _, last in self._tokens.offsets[row]), default=0)
        if not positions or covered < end:
            raise InputError(
                f"concept: expected a name that the model's text encoder can read, got {pair.label!r} in"
                f" {pair.prompt!r}. Shorten it to fewer than {self._tokens.ids.shape[1] - 2} tokens."
            )
        return positions[-1]

    def _trailing(self, pair: PromptPair) -> Iterable[Moved]:
        """Yield the first end-of-text state and some that follow it, each with the state that it becomes."""
        row, anchor_row = self._row_of[pair.prompt], self._row_of[pair.anchor_prompt]
        available = min(self._spans[i].stop - self._ends[i] for i in (row, anchor_row))
        others = self._places.trailing_states - 1
        shift = (pair.number * _STAGGER) % 1
        offsets = [0, *(1 + int((number + shift) / others * (available - 1)) for number in range(others))]
        for number, offset in enumerate(offsets):
            if offset < available:
                state = self._values[row, self._ends[row] + offset]
                yield f"trailing-{number}", state, self._values[anchor_row, self._ends[anchor_row] + offset]
