"""UCE, Unified Concept Editing (Gandikota et al., WACV 2024, arXiv:2308.14761)."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal
from zlib import crc32

from annotated_types import Ge, Gt, Interval

from ..backbones.base import Backbone
from ..closed_form.names import erased_pairs
from ..closed_form.pair_problems import PairTexts
from ..closed_form.problem import Rows
from ..closed_form.projections import projections
from ..closed_form.readers import EmptyAnchor, Places, PromptPair, TrailingStates
from ..concept import Concept
from ..prompts import CLASS_TEMPLATES, blank, preserved_templates, templates
from ..registry import Exactness
from ..training.context import FitContext
from .base import Dependence
from .shared_map import SharedMap


@dataclass(frozen=True, kw_only=True)
class UCE(SharedMap):
    """Closed-form edit of the cross-attention key and value projections.

    For each projection W it minimises (eq. 7; c, a, p: text states of target, anchor, preserve)

        erase_scale sum |W' c - W a|^2 + preserve_scale sum |W' p - W p|^2 + reg |W' - W|_F^2,

    by the one solve that serves all projections (`erasure.closed_form.solve`). Which states are rows:

    - "published", the script released with the paper (2023): of the bare name the last token and every state after it,
      paired with the states from the last token of the anchor on; of each preserved name, and of the empty prompt,
      every state.
    - "last-subject", the authors' rewrite (2025): of each bare name the last token alone.
    - "templates" (ours): the name and its aliases in prompts of the concept's kind; in each the last token of the name,
      the words after it, and some of the states from the first end-of-text token on. Words are paired with the anchor's
      prompt counted back from its end of text, trailing states counted on from it. All rows of a prompt together weigh
      as much as one state does in the other forms.

    With "templates" the sentence vector of each prompt, in models that read one, becomes the anchor's too, by a map of
    its own. For models that read other encoders than CLIP, `reg` is relative to the size of their states, and the mean
    state of ordinary things is held in place (`erasure.closed_form.pair_problems`).

    A prompt around the name becomes the prompt without it where there is no anchor ("a photo of a cat": "a photo").
    Templates that name what is erased are left out (`erasure.closed_form.joint.joined_rows`).

    Differs from the paper: the default is "templates"; with it, anchors, the prompts without a name and the
    start-of-text state are held in place as preserved prompts are, and states are moved beyond what they become
    (`strength`; a is c + strength (a - c) in the equation). Published is, with `empty_anchor="start", strength=1`,

    - 2023 (train-scripts/train_erase.py, commit bd5fb51): `rows="published", preserve_scale=None`;
    - 2025 (trainscripts/uce_sd_erase.py, commit 4502388): `rows="last-subject", preserve_scale=1`.

    Attributes:
        rows: Text states that are rows, see above.
        erase_scale: Weight of an erased prompt, > 0; with "published", of each of its states.
        preserve_scale: Weight of a preserved prompt, >= 0; with "published", of each of its states. 0 ignores them;
            None is the script's of 2023, 1 / (1 + the number of preserved names) and at least 0.1.
        anchor_scale: Weight of an anchor's prompt and of a prompt without the name, which are held in place, >= 0; for
            "templates".
        strength: Distance that a state is moved towards its anchor, as a share of the whole, > 0; 1 in the paper. More
            compensates for `reg` and the preserved prompts.
        reg: Pull towards the old weights (lambda in the paper), > 0; larger erases less.
        trailing: Share of a template's weight that its trailing states get, in [0, 1].
        trailing_states: Number of trailing states of a template that are rows, 1 to 512; the first end-of-text state
            always is one, the others are spread over the rest, elsewhere in each template. Neighbours differ little, so
            a few of each template cover the range at a fraction of the rows.
        trailing_templates: Number of templates of a name of which trailing states are rows, which then weigh as much as
            those of all templates, >= 1; None is all of them. To read trailing states is nearly all of the work; what
            a name's other templates would say, those of other names say in a long list.
        empty_anchor: State of the empty prompt that stands for the name where that prompt is the anchor: its "start" of
            text, as in the published code, or its first "end" of text.
        class_phrases: Whether what is preserved is also held in what is said of members of a class ("a small dog",
            "a dog standing"), for objects and individuals: the closed form of semantic preservation.
    """

    name: ClassVar[str] = "uce"
    depends_on: ClassVar[Dependence] = "text"
    source: ClassVar[str] = "arXiv:2308.14761"
    exactness: ClassVar[Exactness] = "published"
    licence: ClassVar[str] = "unknown"
    main: ClassVar[tuple[str, ...]] = ("strength", "preserve_scale", "reg")

    rows: Literal["templates", "published", "last-subject"] = "templates"
    erase_scale: Annotated[float, Gt(0)] = 1.0
    # these, `trailing` and `trailing_states`: experiments/uce_defaults.py, together; results/uce-defaults has the sweep
    preserve_scale: Annotated[float, Ge(0)] | None = 0.8
    anchor_scale: Annotated[float, Ge(0)] = 1.0
    strength: Annotated[float, Gt(0)] = 2.2
    reg: Annotated[float, Gt(0)] = 0.5
    trailing: Annotated[float, Interval(ge=0, le=1)] = 0.9
    trailing_states: TrailingStates = 6
    trailing_templates: Annotated[int, Ge(1)] | None = None
    empty_anchor: EmptyAnchor = "end"
    class_phrases: bool = False

    def rows_of(self, concepts: Sequence[Concept], context: FitContext) -> Rows:
        """Return the problem of the tokens' states; see `problems_of`."""
        return self.problems_of(concepts, context)[0]

    def reader(self, context: FitContext) -> "UCEReader":
        return UCEReader(self, PairTexts(context.backbone, self._places))

    def pairs(self, concepts: Sequence[Concept]) -> tuple[dict[PromptPair, float], dict[PromptPair, float]]:
        """Return the pairs that are moved and those that stay, each with its weight."""
        in_templates = self.rows == "templates"
        erased = [pair for concept in concepts for pair in erased_pairs(concept, in_templates=in_templates)]
        kept: dict[PromptPair, float] = {}
        for concept in concepts:
            for pair, scale in self._kept_pairs(concept).items():
                kept[pair] = max(scale, kept.get(pair, 0.0))
        return dict.fromkeys(self._thinned(erased), self.erase_scale), dict(
            zip(self._thinned(kept), kept.values(), strict=True)
        )

    def _thinned(self, pairs: Collection[PromptPair]) -> list[PromptPair]:
        """Return pairs of which some templates of each name alone have trailing states, with the weight of all.

        Which ones depends on the name, so that a list of names has trailing states of every template.
        """
        if self.trailing_templates is None:
            return list(pairs)
        counts = Counter(pair.label for pair in pairs)
        return [
            pair
            if pair.label == "" or counts[pair.label] <= self.trailing_templates
            else replace(pair, trailing=self._trailing_factor(pair, counts[pair.label]))
            for pair in pairs
        ]

    def _trailing_factor(self, pair: PromptPair, count: int) -> float:
        few = self.trailing_templates or count
        first = crc32(pair.label.encode()) % count
        taken = {(first + i * count // few) % count for i in range(few)}
        return count / few if pair.number in taken else 0.0

    def projections(self, backbone: Backbone, space: str) -> list[str]:
        """Return the full names of the layers that are edited and read a text stream."""
        return projections(backbone, "all", space)

    @property
    def _places(self) -> Places:
        if self.rows == "last-subject":
            return Places(words="subject", empty_anchor=self.empty_anchor)
        if self.rows == "published":
            return Places(words="onwards", empty_anchor=self.empty_anchor)
        return Places(
            words="all",
            trailing=self.trailing,
            trailing_states=self.trailing_states,
            empty_anchor=self.empty_anchor,
        )

    def _preserve_scale(self, concept: Concept) -> float:
        published = max(0.1, 1 / (1 + len(concept.preserve)))  # one is the empty prompt
        return published if self.preserve_scale is None else self.preserve_scale

    def _kept_pairs(self, concept: Concept) -> dict[PromptPair, float]:
        """Return the pairs of preserved and anchor prompts, each with its weight."""
        scale = self._preserve_scale(concept)
        if self.rows != "templates":
            empty = [PromptPair.kept("", "")] if self.rows == "published" else []
            kept = [*empty, *(PromptPair.kept("{}", name) for name in concept.preserve)]
            return dict.fromkeys(kept, scale) if scale else {}
        anchors = {pair: self.anchor_scale for pair in self._anchor_pairs(concept)} if self.anchor_scale else {}
        named = (pair for name in concept.preserve for pair in self._named_pairs(name, concept))
        return {**(dict.fromkeys(named, scale) if scale else {}), **anchors}

    def _anchor_pairs(self, concept: Concept) -> list[PromptPair]:
        blanks = dict.fromkeys(["", *(blank(concept.kind, template) for template in templates(concept.kind))])
        return [
            *(self._named_pairs(concept.anchor, concept) if concept.anchor else []),
            *(PromptPair.kept(prompt, "", number=number) for number, prompt in enumerate(blanks)),
        ]

    def _named_pairs(self, name: str, concept: Concept) -> list[PromptPair]:
        return [
            PromptPair.kept(template, name, number=number)
            for number, template in enumerate(self._preserved_templates(concept))
        ]

    def _preserved_templates(self, concept: Concept) -> tuple[str, ...]:
        plain = preserved_templates(concept.kind)
        if not self.class_phrases or concept.kind not in ("object", "identity"):
            return plain
        return tuple(dict.fromkeys([*plain, *CLASS_TEMPLATES]))


@dataclass(frozen=True)
class UCEReader:
    """Reader of UCE's problems; see `ProblemReader`."""

    eraser: UCE
    texts: PairTexts

    def read(self, requests: Sequence[Sequence[Concept]]) -> None:
        self.texts.read(pair for concepts in requests for side in self.eraser.pairs(concepts) for pair in side)

    def problems(self, concepts: Sequence[Concept]) -> tuple[Rows, ...]:
        erased, kept = self.eraser.pairs(concepts)
        return self.texts.problems(erased, kept, reg=self.eraser.reg, strength=self.eraser.strength)
