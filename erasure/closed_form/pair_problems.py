"""Least-squares problems of prompt pairs: one for each text stream that the model reads by layers of the text alone."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ..backbones.base import Backbone
from ..backbones.conditioning import TEXT, Stream
from ..backbones.picked import PickedTexts
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
    return PairTexts(backbone, [*erased, *kept], places).problems(erased, kept, reg=reg, strength=strength)


class PairTexts:
    """The text states of prompt pairs, read once, and the problems of any of the pairs.

    Args:
        backbone: Model.
        pairs: The pairs.
        places: Positions whose states are rows.

    Raises:
        InputError: A name is longer than what the model reads.
    """

    def __init__(self, backbone: Backbone, pairs: Iterable[PromptPair], places: Places) -> None:
        distinct = dict.fromkeys(pairs)
        # In one canonical order, so that the order of the concepts does not reach the encoder's batches.
        prompts = sorted({prompt for pair in distinct for prompt in (pair.prompt, pair.anchor_prompt)} | {""})
        picked = backbone.pick(prompts, lambda texts, tokens: places_read(prompts, distinct, places, texts, tokens))
        texts = backbone.read(prompts) if picked is None else picked
        streams = {TEXT, *texts.vectors} if isinstance(texts, PickedTexts) else texts.streams
        self._spaces = spaces_of(backbone, streams) if places.words == "all" else (TEXT,)
        self._readers = {space: PairReader(prompts, texts, places, space) for space in self._spaces}
        self._backbone = backbone

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
        for space, reader in self._readers.items():
            moved, stay = (
                [row for pair, scale in pairs.items() for row in reader.rows(pair, scale, strength)]
                for pairs in (erased, kept)
            )
            problems.append(Rows.of(moved, stay, reg=reg, dim=reader.width, space=space))
        return tuple(problems) if self._ordinary is None else _calibrated(tuple(problems), self._ordinary)

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
        kept = Rows.of([], [*rows.kept_rows(), held], reg=0.0, dim=states.shape[1])
        return replace(
            rows,
            preserve=kept.preserve,
            preserve_weights=kept.preserve_weights,
            preserve_labels=kept.preserve_labels,
            preserve_sites=kept.preserve_sites,
            reg=rows.reg * size,
            reg_each=rows.reg_each * size,
            threshold=rows.threshold * size,
        )

    return tuple(map(fitted, problems))


def _held(state: Float[Tensor, " dim"], weight: float) -> Row:
    return Row(label="", site=_ORDINARY_SITE, state=state, weight=weight, anchor_label="", anchor=state)
