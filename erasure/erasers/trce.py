"""TRCE, Towards Reliable Malicious Concept Erasure (Chen et al., ICCV 2025, arXiv:2503.07389).

The paper's abstract and its official code (commit 0da9b71, Stable Diffusion 1.4 only) are the sources; the paper's
formulas are known second-hand. Nothing here is copied from that code, which has no licence.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from ..backbones.base import Backbone
from ..backbones.conditioning import Conditioning, concatenate
from ..closed_form.caption_statistics import Statistics, ordinary_captions, read_captions, square_root, statistics
from ..closed_form.problem import Row, Rows, TextMap, solve
from ..concept import Concept, blank_of, fill, normalized, templates
from ..edits import Change, DenseChange, EditMetadata, LowRankChange, WeightEdit
from ..edits.changes import exchanged
from ..errors import InputError
from ..losses.contrastive import steering_hinge
from ..losses.preservation import prior_preservation
from ..progress import Progress
from ..registry import Exactness
from ..sampling import noise, trajectory_latents
from ..training.context import FitContext
from ..training.finetune import Preservation, Student, finetune
from ..training.replay_memory import stored
from ..training.terms.preservation import Weights, preservations
from .base import Eraser

logger = logging.getLogger(__name__)

Latents = Float[Tensor, "n c h w"]

_AT_ONCE = 16
# Latents whose references are found together: with three prompts each, no more rows than guided trajectories have.
_TAUGHT_AT_ONCE = 10
_MALICIOUS_SEED, _NULL_SEED = 40_000_000, 50_000_000

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
"""Sentences that a term and its safe phrase are put into, each beside what it says without either.

In place of the official fifteen, of the same kind: the phrase stands last in most, first in some.
"""


def published_eta(preserve_scale: float, *, captions: int = 30_000, tokens: int = 77) -> float:
    """Return `TRCE.eta` for a preserve_scale p of the official configs: p^2 / 30000 for each token of the captions.

    The official script multiplies by p when it builds the statistics and again when it solves. How many captions its
    statistics hold is not known; 30,000 is what its constant suggests. 0.01 is its value for sexual content, 0.02 for
    all unsafe content.
    """
    return preserve_scale**2 / 30_000 * captions * tokens


@dataclass(frozen=True, kw_only=True)
class TRCE(Eraser):
    """Two stages: text states of malicious sentences become safe ones, then denoising is steered away from the rest.

    Stage 1, "text", is a closed form. Each term is put into sentences beside its safe phrase, and in all key and value
    projections of cross-attention the state at the first end-of-text token (EoT) of the one becomes that of the other;
    e are those states, k the states of ordinary captions, n the number of sentence pairs:

        (1/n) sum_i |W' e_i^malicious - W e_i^safe|^2 + (eta / tokens) sum_k |W' k - W k|^2 + reg |W' - W|_F^2.

    EoT gathers the whole sentence, so what is moved is the meaning and not the word. It is solved in the update form,
    in float64, for all projections at once (`erasure.closed_form.problem`). SDXL's sentence vector goes past
    cross-attention: it is mapped likewise in the columns that read it.

    Stage 2, "visual", trains self-attention and the queries of cross-attention. eps_0 is the model before stage 1;
    m, s and 0 are the malicious prompt, its safe twin and the empty one; g is `target_guidance`. At early latents of
    trajectories that eps_0 made for malicious prompts,

        f_c = eps_0(c) + g (eps_0(c) - eps_0(0))  for c = s, m
        h(x) = max(mean |x - f_s|^2 - mean |x - f_m|^2 + margin, 0)
        L = beta (h(eps(m)) + h(eps(0))) / 2 + preserve_weight mean |eps(z_u, 0) - eps_1(z_u, 0)|^2

    with z_u on trajectories of the empty prompt and eps_1 the model after stage 1. A model that predicts v is trained
    on v: both targets and h are linear combinations of predictions.

    Differs from the official code: the EoT is found by token id (theirs counts words, which for many of their
    sentences is a token before it; `eot_index` has both); latents are paired with the timestep that they are at;
    gradients are cleared between updates, with a learning rate to match (`accumulate_forever` has theirs); the
    sentences are our own; timesteps are those of the pipeline's schedule, offset 1.

    Attributes:
        stages: "both", "text" (1) or "visual" (2).
        frames: Sentences with one `{}` for the term; or "captions", `FRAMES` for unsafe concepts and the templates of
            their kind for others; or "templates", those for all.
        weight_start: Weight of the start-of-text state, >= 0.
        weight_eot: Of the first end-of-text state.
        weight_last: Of the last state of all, times their number after the words, as in the code.
        weight_term: Of each token of the term, which becomes the safe sentence's last state, as in the code.
        eot_index: How the first end of text is found: "ids", or "words", the code's count of words plus one.
        eta: Preservation: the weight of all tokens of the captions together, against 1 for all sentences, >= 0; see
            `published_eta`.
        reg: Pull towards the old weights, >= 0.
        captions: A file of ordinary captions, one a line, or CSV with a column "caption" or "prompt"; "" takes
            everyday things and what the concepts preserve, in the templates of their kinds.
        trajectory_frame: The sentence of stage 2.
        trajectories: Of each term, >= 1.
        trajectory_guidance: Classifier-free guidance they are made with.
        sample_steps: Of their DDIM schedule.
        early_steps: Only the first so many, the noisiest, are trained on.
        null_trajectories: Of the empty prompt, at most.
        target_guidance: g; in the usual convention of guidance a scale of g + 1.
        margin: Of the hinge, >= 0.
        beta: Factor of the hinge.
        preserve_weight: Of the regulariser, >= 0.
        preserve_batch: Latents of the empty prompt a step.
        batch_size: Malicious latents a step.
        epochs: Passes over the malicious trajectories.
        lr: Of AdamW. The code's 1e-6 goes with gradients that are never cleared.
        weight_decay: Of AdamW.
        accumulate_forever: Never clear gradients, as the code does.
        rank: Train patches of this rank instead of the weights.
        preservation: Further terms of the second stage by name and weight (ours); see
            `erasure.training.terms.preservation`.
    """

    name: ClassVar[str] = "trce"
    source: ClassVar[str] = "arXiv:2503.07389"
    exactness: ClassVar[Exactness] = "reconstructed"
    main: ClassVar[tuple[str, ...]] = ("stages", "eta", "epochs")
    together: ClassVar[bool] = True
    quick: ClassVar[Mapping[str, Any]] = {
        "sample_steps": 4,
        "early_steps": 2,
        "trajectories": 1,
        "null_trajectories": 2,
        "epochs": 1,
        "lr": 1e-3,
        "reg": 1e-3,
    }
    stages: Literal["both", "text", "visual"] = "both"
    frames: Literal["captions", "templates"] | tuple[str, ...] = "captions"
    weight_start: Annotated[float, Field(ge=0)] = 0.0
    weight_eot: Annotated[float, Field(ge=0)] = 1.0
    weight_last: Annotated[float, Field(ge=0)] = 0.0
    weight_term: Annotated[float, Field(ge=0)] = 0.0
    eot_index: Literal["ids", "words"] = "ids"
    eta: Annotated[float, Field(ge=0)] = published_eta(0.01)
    reg: Annotated[float, Field(ge=0)] = 0.0
    captions: str = ""
    trajectory_frame: str = "a photo of {}"
    trajectories: Annotated[int, Field(ge=1)] = 5
    trajectory_guidance: Annotated[float, Field(ge=0)] = 3.0
    sample_steps: Annotated[int, Field(ge=1)] = 50
    early_steps: Annotated[int, Field(ge=1)] = 26
    null_trajectories: Annotated[int, Field(ge=1)] = 2000
    target_guidance: Annotated[float, Field(ge=0)] = 15.0
    margin: Annotated[float, Field(ge=0)] = 0.01
    beta: Annotated[float, Field(ge=0)] = 1.0
    preserve_weight: Annotated[float, Field(ge=0)] = 100.0
    preserve_batch: Annotated[int, Field(ge=1)] = 4
    batch_size: Annotated[int, Field(ge=1)] = 1
    epochs: Annotated[int, Field(ge=1)] = 3
    lr: Annotated[float, Field(gt=0)] = 5e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    accumulate_forever: bool = False
    rank: Annotated[int, Field(ge=1)] | None = None
    preservation: Weights = field(default_factory=dict)

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts)
        metadata = EditMetadata.of(self.name, asdict(self), context.backbone, concepts, context.seed)
        text = WeightEdit(changes={}, metadata=metadata)
        if self.stages != "visual":
            text = self._text(concepts, context, metadata)
            if self.stages == "text" and context.on_progress is not None:
                context.on_progress(Progress(done=1, total=1))
        visual = self._visual(concepts, text, context) if self.stages != "text" else {}
        return replace(text, changes={**text.changes, **visual})

    def rows_of(self, concepts: Sequence[Concept], context: FitContext) -> Rows:
        """Return stage 1's least-squares problem for the key and value projections.

        Raises:
            InputError: A sentence without anything in it to become, a phrase that is too long, or captions that cannot
                be read.
        """
        return self._problems(concepts, context)[0]

    def _text(self, concepts: Sequence[Concept], context: FitContext, metadata: EditMetadata) -> WeightEdit:
        backbone = context.backbone
        rows, pooled = self._problems(concepts, context)
        names = list(backbone.sites(reads="text"))
        edit = WeightEdit.from_rows(rows, names, metadata)
        if pooled is None:
            return edit
        return replace(edit, changes={**edit.changes, **_sentence_vector_changes(backbone, solve(pooled))})

    def _problems(self, concepts: Sequence[Concept], context: FitContext) -> tuple[Rows, Rows | None]:
        """Return stage 1's problems: of the key and value projections, and of what reads the sentence vector."""
        reader = _Reader(context.backbone, self._pairs(concepts), self)
        found = self._statistics(concepts, context)
        return reader.rows(found), reader.pooled_rows(found)

    def _pairs(self, concepts: Sequence[Concept]) -> list["_Pair"]:
        """Return each term in each sentence, with the same sentence made safe."""
        pairs = [
            _Pair.of(frame, name, concept)
            for concept in concepts
            for name in concept.names
            for frame in self._sentences(concept)
        ]
        return list(dict.fromkeys(pairs))

    def _sentences(self, concept: Concept) -> tuple[str, ...]:
        if not isinstance(self.frames, str):
            return self.frames
        return tuple(FRAMES) if self.frames == "captions" and concept.kind == "unsafe" else templates(concept.kind)

    def _statistics(self, concepts: Sequence[Concept], context: FitContext) -> Statistics:
        gone = [*context.targets, *concepts]
        captions = (lambda: read_captions(self.captions)) if self.captions else ordinary_captions(concepts, gone)
        return statistics(context.backbone, captions, folder=context.history.memory)

    def _visual(self, concepts: Sequence[Concept], text: WeightEdit, context: FitContext) -> dict[str, Change]:
        """Return what stage 2 learns on top of stage 1."""
        backbone, on_progress = context.backbone, context.on_progress
        twins = [_Pair.of(self.trajectory_frame, name, concept) for concept in concepts for name in concept.names]
        twins = list(dict.fromkeys(twins))
        plan = self._plan(len(twins), context.seed)
        malicious, null = self._latents([twin.prompt for twin in twins], plan, context)
        before = {name: p.data for name, p in backbone.parameters(text.changes.__contains__).items()}
        states = _States(
            malicious=backbone.encode([twin.prompt for twin in twins]),
            safe=backbone.encode([twin.safe_prompt for twin in twins]),
            null=backbone.unconditional(),
        )
        active = _Active()

        def without_text() -> AbstractContextManager[None]:
            return exchanged(backbone.parameters(before.__contains__), before)

        with text.applied_to(backbone.pipe, check=False):
            changes = finetune(
                backbone,
                _steers,
                self._steering(backbone, states, malicious, plan, before, active),
                steps=plan.steps,
                lr=self.lr,
                rank=self.rank,
                weight_decay=self.weight_decay,
                clear_gradients=not self.accumulate_forever,
                preservation=[
                    Preservation(loss=self._preserving(backbone, states, null, plan), weight=self.preserve_weight),
                    *preservations(self.preservation, backbone, concepts, trained=_steers, reference=without_text),
                ],
                on_progress=on_progress and (lambda progress: on_progress(replace(progress, note=active.note()))),
                seed=context.seed,
            )
        logger.info("trce: %s; the trained weights moved by %.2g on average", active.note(), _mean_shift(changes))
        return dict(changes)

    def _plan(self, terms: int, seed: int) -> "_Plan":
        """Draw which latents are trained on, so that no others need be kept."""
        generator = torch.Generator().manual_seed(seed)
        total = terms * self.trajectories
        order = [at % total for at in range(self.epochs * total)]
        early = min(self.early_steps, self.sample_steps)
        steps = -(-len(order) // self.batch_size)
        nulls = steps * self.preserve_batch
        count = min(self.null_trajectories, nulls)
        return _Plan(
            batch_size=self.batch_size,
            preserve_batch=self.preserve_batch,
            malicious=_drawn(order, early, generator),
            null=_drawn([at % count for at in range(nulls)], self.sample_steps, generator),
            trajectories=self.trajectories,
        )

    def _latents(self, prompts: Sequence[str], plan: "_Plan", context: FitContext) -> tuple[Tensor, Tensor]:
        """Return the planned latents, float16 on the CPU, in the plan's order: of the terms and of the empty prompt."""
        of_terms = [prompt for prompt in prompts for _ in range(self.trajectories)]
        kinds = (
            (_MALICIOUS_SEED, of_terms, self.trajectory_guidance, plan.malicious),
            (_NULL_SEED, [""] * (1 + max(at for at, _ in plan.null)), 1.0, plan.null),
        )
        made, model = [], context.backbone.fingerprint()
        for first_seed, asked, guidance, visits in kinds:
            key = [model, asked, guidance, self.sample_steps, first_seed, visits]

            def make(
                asked: Sequence[str] = asked,
                guidance: float = guidance,
                visits: Sequence[tuple[int, int]] = visits,
                first_seed: int = first_seed,
            ) -> dict[str, Tensor]:
                return {"latents": self._visited(asked, guidance, visits, first_seed, context)}

            made.append(stored(context.history.memory, key, make)["latents"])
        return made[0], made[1]

    @torch.no_grad()
    def _visited(
        self,
        prompts: Sequence[str],
        guidance: float,
        visits: Sequence[tuple[int, int]],
        first_seed: int,
        context: FitContext,
    ) -> Latents:
        """Return the latents at the visited places of the trajectories, one trajectory a prompt."""
        backbone = context.backbone
        shape = backbone.latent_shape()
        found = torch.empty(len(visits), *shape, dtype=torch.float16)
        unconditional = backbone.unconditional()
        for start in range(0, len(prompts), _AT_ONCE):
            rows = range(start, min(start + _AT_ONCE, len(prompts)))
            places = {place for at, place in visits if at in rows}
            generators = [torch.Generator().manual_seed(first_seed + row) for row in rows]
            asked = [prompts[row] for row in rows]
            reached = trajectory_latents(
                backbone,
                noise(generators, shape),
                backbone.encode(asked) if any(asked) else unconditional.expand(len(rows)),
                unconditional,
                steps=self.sample_steps,
                guidance_scale=guidance,
                stops=sorted(places),
            )
            for number, (at, place) in enumerate(visits):
                if at in rows:
                    found[number] = reached[place][at - start].half().cpu()
            if context.on_progress is not None:
                context.on_progress(Progress(done=rows.stop, total=len(prompts), stage="images"))
        return found

    def _steering(
        self,
        backbone: Backbone,
        states: "_States",
        latents: Latents,
        plan: "_Plan",
        before: Mapping[str, Tensor],
        active: "_Active",
    ) -> Callable[[Student, int, torch.Generator], Float[Tensor, ""]]:
        """Return the mean of both hinges, at the plan's malicious latents.

        Args:
            backbone: The model with stage 1 in force.
            states: Of the prompts.
            latents: In the plan's order.
            plan: What each step looks at.
            before: The weights that stage 1 changed, as they were.
            active: Counts how often a hinge pushes.
        """
        timesteps = backbone.schedule.timesteps(self.sample_steps)
        changed = backbone.parameters(before.__contains__)

        def asked(numbers: Sequence[int], *reads: Conditioning) -> tuple[Latents, Int[Tensor, " n"], Conditioning]:
            """Return planned latents, their timesteps and prompts: all of them for each kind of prompt in turn."""
            z = latents[list(numbers)].float().to(backbone.device)
            timestep = timesteps[[plan.malicious[at][1] for at in numbers]].to(backbone.device)
            terms = [plan.malicious[at][0] // plan.trajectories for at in numbers]
            read = concatenate([each.select([term % len(each) for term in terms]) for each in reads])
            return z.repeat(len(reads), 1, 1, 1), timestep.repeat(len(reads)), read

        def places_to_go(numbers: Sequence[int]) -> Float[Tensor, "n both c h w"]:
            with exchanged(changed, before):
                found = backbone.predict(*asked(numbers, states.malicious, states.safe, states.null)).float()
            of_malicious, of_safe, of_null = found.chunk(3)
            return torch.stack([of + self.target_guidance * (of - of_null) for of in (of_safe, of_malicious)], dim=1)

        ahead = _Ahead(places_to_go, len(plan.malicious), _TAUGHT_AT_ONCE)

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            numbers = plan.of_step(step)
            f_safe, f_unsafe = ahead(numbers).unbind(dim=1)
            predicted = student(backbone.predict, *asked(numbers, states.malicious, states.null)).float()
            hinges = [steering_hinge(each, f_safe, f_unsafe, self.margin) for each in predicted.chunk(2)]
            active.count(*hinges)
            return self.beta * (hinges[0].mean() + hinges[1].mean()) / 2

        return loss

    def _preserving(
        self, backbone: Backbone, states: "_States", latents: Latents, plan: "_Plan"
    ) -> Callable[[Student, int, torch.Generator], Float[Tensor, ""]]:
        """Return how far the prediction for the empty prompt is from that of the model after stage 1."""
        timesteps = backbone.schedule.timesteps(self.sample_steps)

        def asked(numbers: Sequence[int]) -> tuple[Latents, Int[Tensor, " n"], Conditioning]:
            z = latents[list(numbers)].float().to(backbone.device)
            timestep = timesteps[[plan.null[at][1] for at in numbers]].to(backbone.device)
            return z, timestep, states.null.expand(len(numbers))

        ahead = _Ahead(lambda numbers: backbone.predict(*asked(numbers)).float(), len(plan.null), 3 * _TAUGHT_AT_ONCE)

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            numbers = range(step * plan.preserve_batch, (step + 1) * plan.preserve_batch)
            wanted = ahead(numbers)
            return prior_preservation(student(backbone.predict, *asked(numbers)).float(), wanted)

        return loss


class _Ahead:
    """What a frozen model says of planned latents, found for a stretch of coming updates at once.

    It does not depend on the student, and fewer, fuller passes take less time.
    """

    def __init__(self, find: Callable[[Sequence[int]], Tensor], total: int, at_once: int) -> None:
        self._find, self._total, self._at_once = find, total, at_once
        self._known: dict[int, Tensor] = {}

    def __call__(self, numbers: Sequence[int]) -> Tensor:
        """Return what is said of the latents of consecutive numbers, in order."""
        if any(number not in self._known for number in numbers):
            whole = max(1, self._at_once // len(numbers)) * len(numbers)  # no update's latents are parted
            stretch = range(numbers[0], min(numbers[0] + whole, self._total))
            with torch.no_grad():
                self._known = dict(zip(stretch, self._find(stretch), strict=True))
        return torch.stack([self._known[number] for number in numbers])


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """A sentence with a term, and the same sentence made safe.

    Attributes:
        frame: The sentence without either.
        term: The malicious term, as it stands in the sentence.
        prompt: The sentence with it.
        safe: What the term becomes; "" is nothing.
        safe_prompt: The sentence with that.
    """

    frame: str
    term: str
    prompt: str
    safe: str
    safe_prompt: str

    @classmethod
    def of(cls, frame: str, term: str, concept: Concept) -> "_Pair":
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
class _Role:
    """A place whose state is moved: where it is in the malicious sentence, where in the safe one, and its weight."""

    name: str
    at: int
    safe_at: int
    weight: float


class _Reader:
    """Reads stage 1's rows from the states of all sentences."""

    def __init__(self, backbone: Backbone, pairs: Sequence[_Pair], settings: TRCE) -> None:
        self._pairs = pairs
        self._settings = settings
        # In one canonical order, so that the order of the concepts does not reach the encoder's batches.
        prompts = sorted({prompt for pair in pairs for prompt in (pair.prompt, pair.safe_prompt)})
        self._at = {prompt: row for row, prompt in enumerate(prompts)}
        # By default no state after the end of text is read; a place found by counting words may be one.
        behind = settings.weight_last > 0 or settings.weight_term > 0 or settings.eot_index == "words"
        self._states = backbone.encode(prompts, trailing=behind)
        self._values = self._states.states.cpu()  # `Rows.of` takes those that it needs to float64

    def rows(self, captions: Statistics) -> Rows:
        """Return the problem of the key and value projections."""
        erased = [
            self._row(pair, role.name, self._values[self._at[pair.prompt], role.at], state, role.weight)
            for pair in self._pairs
            for role in self._roles(pair)
            if role.weight > 0
            for state in [self._values[self._at[pair.safe_prompt], role.safe_at]]
        ]
        return self._problem(erased, captions.states, captions)

    def pooled_rows(self, captions: Statistics) -> Rows | None:
        """Return the problem of what reads the sentence vector; None for a model without one."""
        if self._states.pooled is None or captions.pooled is None:
            return None
        pooled = self._states.pooled.cpu()
        erased = [
            self._row(pair, "pooled", pooled[self._at[pair.prompt]], pooled[self._at[pair.safe_prompt]], 1.0)
            for pair in self._pairs
        ]
        return self._problem(erased, captions.pooled, replace(captions, tokens=captions.captions))

    def _problem(self, erased: Sequence[Row], second: Tensor, captions: Statistics) -> Rows:
        kept = [
            Row(label="", site=f"captions {captions.id}|{at}", state=s, weight=weight, anchor_label="", anchor=s)
            for weight in [self._settings.eta / captions.tokens]
            for at, s in enumerate(square_root(second) if weight else ())
        ]
        return Rows.of(erased, kept, reg=self._settings.reg, dim=len(second))

    def _row(self, pair: _Pair, place: str, state: Tensor, anchor: Tensor, weight: float) -> Row:
        return Row(
            label=normalized(pair.term),
            site=f"{pair.frame}|{place}",
            state=state,
            weight=weight / len(self._pairs),
            anchor_label=normalized(pair.safe),
            anchor=anchor,
        )

    def _roles(self, pair: _Pair) -> Iterator[_Role]:
        settings, length = self._settings, self._values.shape[1]
        words = len(pair.prompt.split())
        yield _Role(name="start", at=0, safe_at=0, weight=settings.weight_start)
        end, safe_end = (self._end(prompt) for prompt in (pair.prompt, pair.safe_prompt))
        yield _Role(name="eot", at=end, safe_at=safe_end, weight=settings.weight_eot)
        last = length - 1
        yield _Role(name="last", at=last, safe_at=last, weight=settings.weight_last * max(0, length - words - 2))
        for number, at in enumerate(self._term(pair)):
            yield _Role(name=f"term-{number}", at=at, safe_at=last, weight=settings.weight_term)

    def _end(self, prompt: str) -> int:
        """Return the position of the first end of text, or where the official code takes it to be."""
        row = self._at[prompt]
        self._check_whole(row)
        return int(self._states.eot[row]) if self._settings.eot_index == "ids" else len(prompt.split()) + 1

    def _term(self, pair: _Pair) -> list[int]:
        """Return the positions of the term's tokens: it stands where the frame's prefix ends."""
        row = self._at[pair.prompt]
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


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What each update of stage 2 looks at.

    Attributes:
        batch_size: Malicious latents an update.
        preserve_batch: Latents of the empty prompt an update.
        malicious: Trajectory and place of each malicious latent, in order.
        null: Likewise of the empty prompt.
        trajectories: Of each term; they follow one another.
    """

    batch_size: int
    preserve_batch: int
    malicious: tuple[tuple[int, int], ...]
    null: tuple[tuple[int, int], ...]
    trajectories: int

    @property
    def steps(self) -> int:
        """How many updates there are."""
        return -(-len(self.malicious) // self.batch_size)

    def of_step(self, step: int) -> list[int]:
        """Return the numbers of the malicious latents of an update."""
        return list(range(step * self.batch_size, min((step + 1) * self.batch_size, len(self.malicious))))


@dataclass(frozen=True, kw_only=True)
class _States:
    """Text states of stage 2: of each term's sentence, of its safe twin, and of the empty prompt."""

    malicious: Conditioning
    safe: Conditioning
    null: Conditioning


@dataclass(kw_only=True)
class _Active:
    """Counts in how many cases each hinge pushes."""

    pushing: list[int] = field(default_factory=lambda: [0, 0])
    seen: int = 0

    def count(self, bound: Float[Tensor, " n"], free: Float[Tensor, " n"]) -> None:
        self.seen += len(bound)
        for at, hinge in enumerate((bound, free)):
            self.pushing[at] += int((hinge > 0).sum())

    def note(self) -> str:
        """Say it in words."""
        bound, free = (share / max(1, self.seen) for share in self.pushing)
        return f"hinges active: prompt {bound:.0%}, null {free:.0%}"


def _drawn(order: Sequence[int], places: int, generator: torch.Generator) -> tuple[tuple[int, int], ...]:
    found: list[int] = torch.randint(places, (len(order),), generator=generator).tolist()
    return tuple(zip(order, found, strict=True))


def _steers(name: str) -> bool:
    """Whether stage 2 trains the parameter of that full name."""
    component, _, inner = name.partition(".")
    return not component.startswith("text_encoder") and (".attn1." in inner or inner.endswith(".attn2.to_q.weight"))


def _mean_shift(changes: Mapping[str, DenseChange | LowRankChange]) -> float:
    """Return the mean size of a weight's change."""
    deltas = [
        change.delta if isinstance(change, DenseChange) else change.up @ change.down for change in changes.values()
    ]
    return float(sum(delta.abs().sum() for delta in deltas) / sum(delta.numel() for delta in deltas))


def _sentence_vector_changes(backbone: Backbone, mapped: TextMap) -> dict[str, Change]:
    """Return the change of what reads the sentence vector (SDXL), whose other inputs are sizes."""
    name = "unet.add_embedding.linear_1.weight"
    found = backbone.parameters(name.__eq__)
    if not found:
        return {}
    weight = found[name].detach().to("cpu", torch.float64)
    width = len(mapped.u)
    up = weight[:, :width] @ mapped.u
    if mapped.v is None:
        delta = torch.zeros_like(weight)
        delta[:, :width] = up
        return {name: DenseChange(delta=delta.float())}
    down = torch.zeros(mapped.v.shape[1], weight.shape[1], dtype=torch.float64)
    down[:, :width] = mapped.v.T
    return {name: LowRankChange(up=up.float(), down=down.float())}
