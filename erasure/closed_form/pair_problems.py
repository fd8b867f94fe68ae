"""Least-squares problems of prompt pairs: one for each text stream that the model reads by layers of the text alone."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ..backbones.base import Backbone
from ..backbones.conditioning import TEXT, EncodedTokens, Stream
from ..backbones.picked import PickedTexts, Place
from ..io.processes import are_together, count, shared_out
from ..prompts import GENERIC
from .problem import Row, Rows
from .readers import PairReader, Places, PromptPair, places_read

_CLIP_NORM = 768.0  # squared norm of a CLIP state of unit variance, for which `reg` is given
_ORDINARY = GENERIC[:16]
_ORDINARY_SITE = "ordinary things|mean"


def pair_problems(
    backbone: Backbone,
    erased: Mapping[PromptPair, float],
    kept: Mapping[PromptPair, float],
    places: Places,
    *,
    reg: float,
    strength: float = 1.0,
) -> tuple[Rows, ...]:
    """Return the problems that move the states of prompts to those of their anchors; see `PairTexts.problems`."""
    texts = PairTexts(backbone, places)
    texts.read([*erased, *kept])
    return texts.problems(erased, kept, reg=reg, strength=strength)


class PairTexts:
    """The text states of prompt pairs, each read once, and the rows and problems of those that were read last.

    Args:
        backbone: Model.
        places: Positions whose states are rows.
        whole_empty: Whether all states of the empty prompt are read.
    """

    def __init__(self, backbone: Backbone, places: Places, *, whole_empty: bool = False) -> None:
        self._backbone, self._places, self._whole_empty = backbone, places, whole_empty
        self._readers: dict[PromptPair, Mapping[str, PairReader]] = {}
        self._widths: dict[str, int] = {}
        self._empty: dict[str, list[tuple[str, Tensor]]] = {}

    def read(self, pairs: Iterable[PromptPair]) -> None:
        """Read the pairs that were not read last; those that were and are not among these are forgotten.

        Raises:
            InputError: A name is longer than what the model reads.
        """
        distinct = dict.fromkeys(pairs)
        self._readers = {pair: readers for pair, readers in self._readers.items() if pair in distinct}
        lots = list(self._lots([pair for pair in distinct if pair not in self._readers]))
        for lot, (prompts, texts) in zip(lots, shared_out(lots, self._picked), strict=True):
            if not self._widths:
                self._widths = texts.widths()
            if self._whole_empty and not self._empty:
                self._empty = texts.states_of(prompts.index(""))
            readers = {space: PairReader(prompts, texts, self._places, space) for space in self.spaces}
            self._readers |= dict.fromkeys(lot, readers)

    @cached_property
    def spaces(self) -> tuple[str, ...]:
        """The text streams that are read, that of the tokens first; with `words` other than "all" the only one."""
        return (TEXT,) if self._places.words != "all" else spaces_of(self._backbone, self._widths)

    def width(self, space: str) -> int:
        """Return the width of a stream's states."""
        return self._widths[space]

    def rows(self, pair: PromptPair, space: str, scale: float, strength: float = 1.0) -> list[Row]:
        """Return the rows of a pair; see `PairReader.rows`."""
        return self._readers[pair][space].rows(pair, scale, strength)

    def empty(self, space: str) -> list[tuple[str, Float[Tensor, "n dim"]]]:
        """Return the name of each text encoder of a stream with all its states of the empty prompt."""
        return self._empty[space]

    def _lots(self, pairs: list[PromptPair]) -> Iterator[list[PromptPair]]:
        """Yield pairs that are read at once, in an order that does not depend on theirs."""
        most = self._backbone.picked_at_once
        if most is None and are_together():
            most = -(-2 * len(pairs) // count())  # a pair has two prompts at most
        lot: list[PromptPair] = []
        prompts: set[str] = set()
        for pair in sorted(pairs, key=lambda pair: (pair.anchor_prompt, pair.prompt)):
            if lot and most is not None and len(prompts | {pair.prompt, pair.anchor_prompt}) > most:
                yield lot
                lot, prompts = [], set()
            lot.append(pair)
            prompts |= {pair.prompt, pair.anchor_prompt}
        if lot or not self._widths:
            yield lot

    def _picked(self, pairs: list[PromptPair]) -> tuple[list[str], PickedTexts]:
        """Return the prompts of pairs with the states that are rows."""
        # In one canonical order, so that the order of the concepts does not reach the encoder's batches.
        prompts = sorted({prompt for pair in pairs for prompt in (pair.prompt, pair.anchor_prompt)} | {""})
        empty = prompts.index("")

        def places(texts: tuple[str, ...], tokens: EncodedTokens) -> set[Place]:
            read = places_read(prompts, pairs, self._places, texts, tokens)
            return read | {(empty, position) for position in tokens.span(empty)} if whole_empty else read

        whole_empty = self._whole_empty and not self._empty
        return prompts, self._backbone.pick(prompts, places)

    def problems(
        self,
        erased: Mapping[PromptPair, float],
        kept: Mapping[PromptPair, float],
        *,
        reg: float,
        strength: float = 1.0,
    ) -> tuple[Rows, ...]:
        """Return the problems that move the states of prompts to those of their anchors; that of the tokens is first.

        Every stream of which layers read the states directly has a problem. With `words` other than "all" in the
        places, the forms of published scripts, the tokens' states are the only ones.

        Args:
            erased: Weight of each pair that is moved.
            kept: Weight of each pair that stays.
            reg: Pull towards the old weights, for states of the size of CLIP's; see `calibrated`.
            strength: Share of the way to the anchor.
        """
        problems = []
        for space in self.spaces:
            moved, stay = (
                [row for pair, scale in pairs.items() for row in self.rows(pair, space, scale, strength)]
                for pairs in (erased, kept)
            )
            problems.append(Rows.of(moved, stay, reg=reg, dim=self.width(space), space=space))
        return self.calibrated(tuple(problems))

    def calibrated(self, problems: tuple[Rows, ...]) -> tuple[Rows, ...]:
        """Return problems that fit the size of the text states; see `calibrated`."""
        return problems if self._ordinary is None else _calibrated(problems, self._ordinary)

    @cached_property
    def _ordinary(self) -> Mapping[str, Stream] | None:
        return _ordinary_streams(self._backbone)


def spaces_of(backbone: Backbone, streams: Collection[str]) -> tuple[str, ...]:
    """Return the text streams of which layers read the states directly, that of the tokens first."""
    read = {site.reads for site in backbone.sites().values()}
    return tuple(sorted((space for space in streams if space in read), key=lambda space: space != TEXT))


def calibrated(problems: tuple[Rows, ...], backbone: Backbone) -> tuple[Rows, ...]:
    """Return problems whose `reg` fits the size of the text states, with the mean of ordinary states held in place.

    The states of language models differ in size by orders of magnitude, and a few large entries are common to all of
    them: without a row that holds these, any edit moves every prompt. The pull and the threshold are multiplied with
    the mean squared norm of ordinary states over that of CLIP's. Problems of models that read CLIP alone are returned
    as they are.
    """
    ordinary = _ordinary_streams(backbone)
    return problems if ordinary is None else _calibrated(problems, ordinary)


def _ordinary_streams(backbone: Backbone) -> Mapping[str, Stream] | None:
    """Return the states of ordinary things; None for a model that reads CLIP alone, whose problems need none."""
    return None if backbone.reads_clip else backbone.read(_ORDINARY).streams


def _calibrated(problems: tuple[Rows, ...], ordinary: Mapping[str, Stream]) -> tuple[Rows, ...]:
    def fitted(rows: Rows) -> Rows:
        states = ordinary[rows.space].read_states().to("cpu", torch.float64)
        size = float(states.square().sum(1).mean()) / _CLIP_NORM
        held = _held(states.mean(0), float(rows.weights.sum()))
        return replace(
            rows.with_rows(kept=[*rows.kept_rows(), held]),
            reg=rows.reg * size,
            reg_each=rows.reg_each * size,
            threshold=rows.threshold * size,
        )

    return tuple(map(fitted, problems))


def _held(state: Float[Tensor, " dim"], weight: float) -> Row:
    return Row(label="", site=_ORDINARY_SITE, state=state, weight=weight, anchor_label="", anchor=state)
