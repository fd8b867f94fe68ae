"""UCE, Unified Concept Editing (Gandikota et al., WACV 2024, arXiv:2308.14761)."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Interval
from torch import Tensor

from ..backbones.conditioning import Conditioning
from ..closed_form.problem import Row, Rows
from ..concept import CLASS_TEMPLATES, Concept, blank, fill, normalized, preserved_templates, templates
from ..edits import EditMetadata, WeightEdit
from ..errors import InputError
from ..progress import Progress
from ..registry import Exactness
from ..training.context import FitContext
from .base import Eraser

# Spreads the sampled trailing positions of successive templates evenly over the range (the golden ratio's fraction).
_STAGGER = 0.6180339887498949


@dataclass(frozen=True, kw_only=True)
class UCE(Eraser):
    """Closed-form edit of the cross-attention key and value projections.

    For each projection W it minimises (eq. 7; c, a, p: text states of target, anchor, preserve)

        erase_scale sum |W' c - W a|^2 + preserve_scale sum |W' p - W p|^2 + reg |W' - W|_F^2,

    by the one solve that serves all projections (`erasure.closed_form.problem`). Which states are rows:

    - "last-subject", as published: the bare name at its last token.
    - "templates": the name and its aliases in prompts of the concept's kind; in each the last token of the name, the
      words after it, and some of the states from the first end-of-text token on. All of these carry the concept, and
      where they disagree the trailing ones win, being the most. Words are paired with the anchor's prompt counted
      back from its end of text, trailing states counted on from it. A prompt weighs as much as one published row.

    Where the unconditional prompt is the anchor, its first end-of-text state stands for the name. A prompt around the
    name becomes the prompt without it ("a photo of a cat": "a photo").

    Templates that name what is erased are left out (`Rows.joined`).

    Differs from the paper: the default is "templates"; with it, anchors, the prompts without a name and the
    start-of-text state are held in place as preserved prompts are. States are moved beyond what they become
    (`strength`; a is c + strength (a - c) in the equation), and a preserved prompt weighs less than an erased one: on
    the tiny world, with 33 concepts preserved, equal weights erase next to nothing. The published form is
    `rows="last-subject", strength=1, preserve_scale=1`.

    Attributes:
        rows: Which text states are rows.
        erase_scale: Weight of an erased prompt, > 0.
        preserve_scale: Weight of a preserved prompt, >= 0; 0 ignores them. 1 in the paper.
        strength: How far a state is moved towards what it becomes, > 0: 1, as in the paper, is all the way; more makes
            up for what `reg` and the preserved prompts hold back.
        reg: Pull towards the old weights (lambda in the paper), > 0; larger erases less.
        trailing: Share of a template's weight that its trailing states get, in [0, 1].
        trailing_states: How many trailing states of a template are rows, >= 1; the first end-of-text state always
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
        gone = {normalized(name) for concept in context.targets for name in concept.names}
        kept = [pair for concept in concepts for pair in self._kept_pairs(concept) if pair.label not in gone]
        # In one canonical order, so that the order of the concepts does not reach the encoder's batches.
        prompts = sorted({prompt for pair in [*erased, *kept] for prompt in (pair.prompt, pair.anchor_prompt)} | {""})
        reader = _Reader(prompts, context.backbone.encode(prompts), self)
        return Rows.of(
            [row for pair in dict.fromkeys(erased) for row in reader.rows(pair, self.erase_scale)],
            [row for pair in dict.fromkeys(kept) for row in reader.rows(pair, self.preserve_scale)],
            reg=self.reg,
            dim=reader.width,
        )

    def _erased_pairs(self, concept: Concept) -> list["_Pair"]:
        if self.rows == "last-subject":
            return [_Pair.of("{}", name, concept.anchor, concept.anchor) for name in concept.names]
        return [
            _Pair.of(
                template,
                name,
                concept.anchor,
                fill(template, concept.anchor) if concept.anchor else blank(concept.kind, template),
                at=at,
            )
            for name in concept.names
            for at, template in enumerate(templates(concept.kind))
        ]

    def _kept_pairs(self, concept: Concept) -> list["_Pair"]:
        if self.preserve_scale == 0:
            return []
        if self.rows == "last-subject":
            return [_Pair.kept("{}", name) for name in concept.preserve]
        held = [*concept.preserve, *([concept.anchor] if concept.anchor else [])]
        named = [
            _Pair.kept(template, name, at=at)
            for name in held
            for at, template in enumerate(self._preserved_templates(concept))
        ]
        blanks = dict.fromkeys(["", *(blank(concept.kind, template) for template in templates(concept.kind))])
        return [*named, *(_Pair.kept(prompt, "", at=at) for at, prompt in enumerate(blanks))]

    def _preserved_templates(self, concept: Concept) -> tuple[str, ...]:
        plain = preserved_templates(concept.kind)
        if not self.class_phrases or concept.kind not in ("object", "identity"):
            return plain
        return tuple(dict.fromkeys([*plain, *CLASS_TEMPLATES]))


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """A prompt whose states are rows, beside the prompt whose states they become.

    Attributes:
        template: What the prompt was made from; for prompts without a name the prompt itself.
        label: The name in the prompt, normalised.
        prompt: The prompt.
        suffix: The part of the prompt after the name.
        anchor_label: The name in the anchor's prompt, normalised.
        anchor_prompt: The anchor's prompt.
        at: The template's place among the others, which decides where its trailing states are read.
    """

    template: str
    label: str
    prompt: str
    suffix: str
    anchor_label: str
    anchor_prompt: str
    at: int = 0

    @classmethod
    def of(cls, template: str, name: str, anchor: str, anchor_prompt: str, *, at: int = 0) -> "_Pair":
        return cls(
            template=template,
            label=normalized(name),
            prompt=fill(template, name),
            suffix=template.partition("{}")[2],
            anchor_label=normalized(anchor),
            anchor_prompt=anchor_prompt,
            at=at,
        )

    @classmethod
    def kept(cls, template: str, name: str, *, at: int = 0) -> "_Pair":
        return cls.of(template, name, name, fill(template, name), at=at)


class _Reader:
    """Reads the rows of prompt pairs from the states of all prompts."""

    def __init__(self, prompts: Sequence[str], states: Conditioning, eraser: UCE) -> None:
        self._at = {prompt: row for row, prompt in enumerate(prompts)}
        self._states = states
        self._values = states.states.cpu()  # `Rows.of` takes those that it needs to float64
        self._eot = states.eot.tolist()
        self._eraser = eraser

    @property
    def width(self) -> int:
        """The width of a state."""
        return self._values.shape[-1]

    def rows(self, pair: _Pair, scale: float) -> list[Row]:
        """Return the rows of one prompt; in the template form their weights add up to `scale`."""
        words, trailing = list(self._words(pair)), list(self._trailing(pair))
        if self._eraser.rows == "last-subject":
            words, trailing, share = words[:1], [], 0.0
        else:
            share = self._eraser.trailing
        weighted = [
            *((where, scale * (1 - share) / len(words), state, anchor) for where, state, anchor in words),
            *((where, scale * share / len(trailing), state, anchor) for where, state, anchor in trailing),
        ]
        return [
            Row(
                label=pair.label,
                site=f"{pair.template}|{where}",
                state=state,
                weight=weight,
                anchor_label=pair.anchor_label,
                anchor=anchor,
                strength=self._eraser.strength,
            )
            for where, weight, state, anchor in weighted
            if weight > 0
        ]

    def _words(self, pair: _Pair) -> Iterable[tuple[str, Tensor, Tensor]]:
        """Yield the last token of the name and the words after it, each with what it becomes.

        A word after the name that the anchor's prompt lacks ("style" in "neon style") becomes what the name becomes.
        """
        row, anchor_row = self._at[pair.prompt], self._at[pair.anchor_prompt]
        subject = self._subject(row, pair)
        if pair.label == pair.anchor_label:
            anchor_subject, instead = subject, self._values[row, subject]
        elif pair.anchor_label == "":
            anchor_subject, instead = 0, self._values[self._at[""], self._eot[self._at[""]]]
        else:
            anchor_subject = self._subject(anchor_row, pair)
            instead = self._values[anchor_row, anchor_subject]
        yield "subject", self._values[row, subject], instead
        for back in range(1, self._eot[row] - subject):
            at, anchor_at = self._eot[row] - back, self._eot[anchor_row] - back
            anchor = self._values[anchor_row, anchor_at] if anchor_at > anchor_subject else instead
            yield f"word-{back}", self._values[row, at], anchor

    def _subject(self, row: int, pair: _Pair) -> int:
        """Return the position of the name's last token; in a prompt without a name, of the start of text."""
        if pair.label == "":
            return 0
        end = len(self._states.prompts[row]) - len(pair.suffix)
        positions = self._states.tokens_of(row, 0, end)
        covered = max((last for _, last in self._states.offsets[row]), default=0)
        if not positions or covered < end:
            raise InputError(
                f"concept: expected a name that the model's text encoder can read, got {pair.label!r} in"
                f" {pair.prompt!r}. Shorten it to fewer than {self._values.shape[1] - 2} tokens."
            )
        return positions[-1]

    def _trailing(self, pair: _Pair) -> Iterable[tuple[str, Tensor, Tensor]]:
        """Yield the first end-of-text state and some that follow it, each with what it becomes."""
        row, anchor_row = self._at[pair.prompt], self._at[pair.anchor_prompt]
        available = self._values.shape[1] - max(self._eot[row], self._eot[anchor_row])
        others = self._eraser.trailing_states - 1
        shift = (pair.at * _STAGGER) % 1
        offsets = [0, *(1 + int((number + shift) / others * (available - 1)) for number in range(others))]
        for number, offset in enumerate(offsets):
            if offset < available:
                state = self._values[row, self._eot[row] + offset]
                yield f"trailing-{number}", state, self._values[anchor_row, self._eot[anchor_row] + offset]
