"""Rows of sentences: the end-of-text states of sentences with a term become those of the same sentences made safe.

Stage 1 of TRCE (arXiv:2503.07389).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from ..backbones.base import Backbone
from ..backbones.conditioning import POOLED, TEXT
from ..concept import Concept, normalized
from ..errors import InputError
from ..prompts import blank_of, fill
from .caption_statistics import Statistics, square_root
from .problem import Row, Rows

FRAMES: Mapping[str, str] = {
    "a photo of {}": "a photo",
    "a snapshot of {}": "a snapshot",
    "a photograph showing {}": "a photograph",
    "an illustration of {}": "an illustration",
    "a digital artwork of {}": "a digital artwork",
    "a study of {}": "a study",
    "a black-and-white picture of {}": "a black-and-white picture",
    "{} in a public square": "in a public square",
    "an oil painting that shows {}": "an oil painting",
    "a press photo of {}": "a press photo",
    "a detailed drawing of {}": "a detailed drawing",
    "{} at sunset": "at sunset",
    "the cover of a magazine with {}": "the cover of a magazine",
    "a portrait in oil of {}": "a portrait in oil",
    "{} as a rough sketch": "a rough sketch",
}
"""Sentences for a term or its safe phrase, each beside the sentence without either.

In place of the official fifteen, of the same kind: the phrase stands last in most, first in some.
"""


def published_eta(preserve_scale: float, *, captions: int = 30_000, tokens: int = 77) -> float:
    """Return `TRCE.eta` for a preserve_scale p of the official configs: p^2 / 30000 for each token of the captions.

    The official script multiplies by p when it builds the statistics and again when it solves. The number of captions
    of its statistics is not known; 30,000 is suggested by its constant. 0.01 is its value for sexual content, 0.02 for
    all unsafe content.
    """
    return preserve_scale**2 / 30_000 * captions * tokens


@dataclass(frozen=True, kw_only=True)
class SentenceWeights:
    """Weights of the states of a sentence, and of what preserves.

    Attributes:
        start: Weight of the start-of-text state, >= 0.
        eot: Weight of the first end-of-text state, >= 0.
        last: Weight of the last state of all, times the number of states after the words, >= 0.
        term: Weight of each token of the term, which becomes the safe sentence's last state, >= 0; of one place with
            an `eot_index` of "words".
        eot_index: Positions of the first end of text and of the term: by token "ids", or counted in "words".
        eta: Weight of all tokens of the captions together, against 1 for all sentences, >= 0.
        reg: Pull towards the old weights, >= 0.
    """

    start: float
    eot: float
    last: float
    term: float
    eot_index: Literal["ids", "words"]
    eta: float
    reg: float


@dataclass(frozen=True, kw_only=True)
class SentencePair:
    """A sentence with a term, and the same sentence made safe.

    Attributes:
        frame: Sentence without either, with one `{}` in its place.
        term: Malicious term, as it stands in the sentence.
        prompt: Sentence with the term.
        safe: Phrase that the term becomes; "" is nothing.
        safe_prompt: Sentence with the safe phrase.
    """

    frame: str
    term: str
    prompt: str
    safe: str
    safe_prompt: str

    @classmethod
    def of(cls, frame: str, term: str, concept: Concept) -> "SentencePair":
        """Return the pair of a term of a concept in a sentence.

        Raises:
            InputError: The sentence has no place for the term, or nothing is safe in its place.
        """
        if frame.count("{}") != 1:
            raise InputError(f"trce.frames: expected a sentence with one {{}} for the term, got {frame!r}.")
        if concept.anchor:
            safe_prompt = fill(frame, concept.anchor)
        elif (without := FRAMES.get(frame, blank_of(frame))) is not None:
            safe_prompt = without
        else:
            raise InputError(
                f"trce: expected an anchor for {term!r} in the sentence {frame!r}, got none. Give a safe phrase."
            )
        return cls(frame=frame, term=term, prompt=fill(frame, term), safe=concept.anchor, safe_prompt=safe_prompt)


@dataclass(frozen=True, kw_only=True)
class _Position:
    """Token whose state is moved: its index in the malicious and in the safe sentence, and its weight."""

    name: str
    index: int
    safe_index: int
    weight: float


class SentenceReader:
    """Reader of the rows of sentence pairs.

    Args:
        backbone: Model.
        pairs: Sentence pairs.
        weights: Weights of the states.

    Raises:
        InputError: A sentence is longer than the model reads.
    """

    def __init__(self, backbone: Backbone, pairs: Sequence[SentencePair], weights: SentenceWeights) -> None:
        self._pairs = pairs
        self._weights = weights
        # In one canonical order, so that the order of the concepts does not reach the encoder's batches.
        prompts = sorted({prompt for pair in pairs for prompt in (pair.prompt, pair.safe_prompt)})
        self._row_of = {prompt: row for row, prompt in enumerate(prompts)}
        # By default no state after the end of text is read; a position counted in words may be one.
        behind = weights.last > 0 or weights.term > 0 or weights.eot_index == "words"
        self._states = backbone.read(prompts, trailing=behind)
        self._values = self._states.states.cpu()  # `Rows.of` takes those that it needs to float64

    def rows(self, captions: Statistics) -> Rows:
        """Return the problem of the key and value projections."""
        erased = [
            self._row(pair, position.name, self._values[self._row_of[pair.prompt], position.index], state, weight)
            for pair in self._pairs
            for position in self._positions(pair)
            if (weight := position.weight) > 0
            for state in [self._values[self._row_of[pair.safe_prompt], position.safe_index]]
        ]
        return self._problem(erased, captions.states, captions, TEXT)

    def pooled_rows(self, captions: Statistics) -> Rows | None:
        """Return the problem of the layers that read the sentence vector; None for a model without one."""
        if self._states.pooled is None or captions.pooled is None:
            return None
        pooled = self._states.pooled.cpu()
        erased = [
            self._row(pair, "pooled", pooled[self._row_of[pair.prompt]], pooled[self._row_of[pair.safe_prompt]], 1.0)
            for pair in self._pairs
        ]
        return self._problem(erased, captions.pooled, replace(captions, tokens=captions.captions), POOLED)

    def _problem(self, erased: Sequence[Row], second: Tensor, captions: Statistics, space: str) -> Rows:
        preserved = [
            Row(label="", site=f"captions {captions.id}|{i}", state=s, weight=weight, anchor_label="", anchor=s)
            for weight in [self._weights.eta / captions.tokens]
            for i, s in enumerate(square_root(second) if weight else ())
        ]
        return Rows.of(erased, preserved, reg=self._weights.reg, dim=len(second), space=space)

    def _row(self, pair: SentencePair, place: str, state: Tensor, anchor: Tensor, weight: float) -> Row:
        return Row(
            label=normalized(pair.term),
            site=f"{pair.frame}|{place}",
            state=state,
            weight=weight / len(self._pairs),
            anchor_label=normalized(pair.safe),
            anchor=anchor,
        )

    def _positions(self, pair: SentencePair) -> Iterator[_Position]:
        weights, length = self._weights, self._values.shape[1]
        words = len(pair.prompt.split())
        yield _Position(name="start", index=0, safe_index=0, weight=weights.start)
        end, safe_end = (self._end(prompt) for prompt in (pair.prompt, pair.safe_prompt))
        yield _Position(name="eot", index=end, safe_index=safe_end, weight=weights.eot)
        last = length - 1
        yield _Position(name="last", index=last, safe_index=last, weight=weights.last * max(0, length - words - 2))
        for i, index in enumerate(self._term(pair) if weights.term > 0 else ()):
            yield _Position(name=f"term-{i}", index=index, safe_index=last, weight=weights.term)

    def _end(self, prompt: str) -> int:
        """Return the position of the first end of text, or the official code's estimate of it."""
        row = self._row_of[prompt]
        self._check_whole(row)
        return int(self._states.eot[row]) if self._weights.eot_index == "ids" else len(prompt.split()) + 1

    def _term(self, pair: SentencePair) -> list[int]:
        """Return the positions of the term's tokens: it stands where the frame's prefix ends.

        Counted in words it is one position, as in the official code: that code lists the place of each word of the
        term and weighs the first of them alone.
        """
        if self._weights.eot_index == "words":
            return [_first_word(pair) + 1]
        row = self._row_of[pair.prompt]
        end = len(self._states.prompts[row]) - len(pair.frame.partition("{}")[2])
        return self._states.tokens_of(row, end - len(pair.term), end)

    def _check_whole(self, row: int) -> None:
        prompt = self._states.prompts[row]
        covered = max((last for _, last in self._states.offsets[row]), default=0)
        if covered < len(prompt.rstrip()):
            raise InputError(
                f"trce: expected sentences of at most {self._values.shape[1] - 2} tokens, got {prompt!r}."
                " Shorten the term or its safe phrase."
            )


def _first_word(pair: SentencePair) -> int:
    """Return the index, among the words of the sentence, of the first of the words that are the term."""
    words, term = pair.prompt.split(), pair.term.split()
    for i in range(len(words) - len(term) + 1):
        if words[i : i + len(term)] == term:
            return i
    raise InputError(
        f"trce.frames: expected a sentence with the term as words of its own, got {pair.prompt!r}."
        " Put spaces around {}, or set eot_index to 'ids'."
    )
