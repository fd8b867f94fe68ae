"""UCE, Unified Concept Editing (Gandikota et al., WACV 2024, arXiv:2308.14761)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Interval

from ..closed_form.problem import Rows
from ..closed_form.readers import PairReader, Places, PromptPair
from ..concept import Concept
from ..edits import EditMetadata, WeightEdit
from ..errors import InputError
from ..progress import Progress
from ..prompts import CLASS_TEMPLATES, anchored, blank, preserved_templates, templates
from ..registry import Exactness
from ..training.context import FitContext
from .base import Eraser


@dataclass(frozen=True, kw_only=True)
class UCE(Eraser):
    """Closed-form edit of the cross-attention key and value projections.

    For each projection W it minimises (eq. 7; c, a, p: text states of target, anchor, preserve)

        erase_scale sum |W' c - W a|^2 + preserve_scale sum |W' p - W p|^2 + reg |W' - W|_F^2,

    by the one solve that serves all projections (`erasure.closed_form.solve`). Which states are rows:

    - "last-subject", as published: the bare name at its last token.
    - "templates": the name and its aliases in prompts of the concept's kind; in each the last token of the name, the
      words after it, and some of the states from the first end-of-text token on. All of these carry the concept, and
      where they disagree the trailing ones win, being the most. Words are paired with the anchor's prompt counted
      back from its end of text, trailing states counted on from it. A prompt weighs as much as one published row.

    Where the unconditional prompt is the anchor, its first end-of-text state stands for the name. A prompt around the
    name becomes the prompt without it ("a photo of a cat": "a photo").

    Templates that name what is erased are left out (`erasure.closed_form.joint.joined_rows`).

    Differs from the paper: the default is "templates"; with it, anchors, the prompts without a name and the
    start-of-text state are held in place as preserved prompts are. States are moved beyond what they become
    (`strength`; a is c + strength (a - c) in the equation), and a preserved prompt weighs less than an erased one: on
    the tiny world, with 33 concepts preserved, equal weights erase next to nothing. The published form is
    `rows="last-subject", strength=1, preserve_scale=1`.

    Attributes:
        rows: Text states that are rows, see above.
        erase_scale: Weight of an erased prompt, > 0.
        preserve_scale: Weight of a preserved prompt, >= 0; 0 ignores them. 1 in the paper.
        strength: Distance that a state is moved towards its anchor, as a share of the whole, > 0; 1 in the paper. More
            compensates for `reg` and the preserved prompts.
        reg: Pull towards the old weights (lambda in the paper), > 0; larger erases less.
        trailing: Share of a template's weight that its trailing states get, in [0, 1].
        trailing_states: Number of trailing states of a template that are rows, >= 1; the first end-of-text state always
            is one, the others are spread over the rest, elsewhere in each template. Neighbours differ little, so
            a few of each template cover the range at a fraction of the rows.
        class_phrases: Whether what is preserved is also held in what is said of members of a class ("a small dog",
            "a dog standing"), for objects and individuals: the closed form of semantic preservation.
    """

    name: ClassVar[str] = "uce"
    depends_on: ClassVar[Literal["text", "weights"]] = "text"
    source: ClassVar[str] = "arXiv:2308.14761"
    exactness: ClassVar[Exactness] = "published"
    main: ClassVar[tuple[str, ...]] = ("strength", "preserve_scale", "reg")

    rows: Literal["templates", "last-subject"] = "templates"
    erase_scale: Annotated[float, Gt(0)] = 1.0
    # measured on the tiny world, with the other defaults: more leaves removed concepts, less takes others along
    preserve_scale: Annotated[float, Ge(0)] = 0.1
    strength: Annotated[float, Gt(0)] = 1.3
    reg: Annotated[float, Gt(0)] = 0.5
    trailing: Annotated[float, Interval(ge=0, le=1)] = 0.75
    trailing_states: Annotated[int, Ge(1)] = 2
    class_phrases: bool = False

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        backbone = context.backbone
        rows = self.rows_of(concepts, context)
        names = list(backbone.sites(reads="text"))
        edit = WeightEdit.from_rows(
            rows, names, EditMetadata.of(self.name, asdict(self), backbone, concepts, context.seed)
        )
        if context.on_progress is not None:
            context.on_progress(Progress(done=1, total=1))
        return edit

    def rows_of(self, concepts: Sequence[Concept], context: FitContext) -> Rows:
        """Return the least-squares problem that removes the concepts.

        Raises:
            InputError: There are no concepts, or a name is longer than what the model reads.
        """
        if not concepts:
            raise InputError("concepts: expected at least one, got none. Name what is to be erased.")
        erased = [pair for concept in concepts for pair in self._erased_pairs(concept)]
        kept = [pair for concept in concepts for pair in self._kept_pairs(concept)]
        # In one canonical order, so that the order of the concepts does not reach the encoder's batches.
        prompts = sorted({prompt for pair in [*erased, *kept] for prompt in (pair.prompt, pair.anchor_prompt)} | {""})
        reader = PairReader(prompts, context.backbone.encode(prompts), self._places)
        return Rows.of(
            [row for pair in dict.fromkeys(erased) for row in reader.rows(pair, self.erase_scale, self.strength)],
            [row for pair in dict.fromkeys(kept) for row in reader.rows(pair, self.preserve_scale, self.strength)],
            reg=self.reg,
            dim=reader.width,
        )

    @property
    def _places(self) -> Places:
        if self.rows == "last-subject":
            return Places(words="subject", trailing=0.0, trailing_states=0)
        return Places(words="all", trailing=self.trailing, trailing_states=self.trailing_states)

    def _erased_pairs(self, concept: Concept) -> list[PromptPair]:
        if self.rows == "last-subject":
            return [PromptPair.of("{}", name, concept.anchor, concept.anchor) for name in concept.names]
        return [
            PromptPair.of(
                template,
                name,
                concept.anchor,
                anchored(template, concept),
                number=number,
            )
            for name in concept.names
            for number, template in enumerate(templates(concept.kind))
        ]

    def _kept_pairs(self, concept: Concept) -> list[PromptPair]:
        if self.preserve_scale == 0:
            return []
        if self.rows == "last-subject":
            return [PromptPair.kept("{}", name) for name in concept.preserve]
        held = [*concept.preserve, *([concept.anchor] if concept.anchor else [])]
        named = [
            PromptPair.kept(template, name, number=number)
            for name in held
            for number, template in enumerate(self._preserved_templates(concept))
        ]
        blanks = dict.fromkeys(["", *(blank(concept.kind, template) for template in templates(concept.kind))])
        return [*named, *(PromptPair.kept(prompt, "", number=number) for number, prompt in enumerate(blanks))]

    def _preserved_templates(self, concept: Concept) -> tuple[str, ...]:
        plain = preserved_templates(concept.kind)
        if not self.class_phrases or concept.kind not in ("object", "identity"):
            return plain
        return tuple(dict.fromkeys([*plain, *CLASS_TEMPLATES]))
