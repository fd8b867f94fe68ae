"""TRCE, Towards Reliable Malicious Concept Erasure (Chen et al., ICCV 2025, arXiv:2503.07389).

The paper's abstract and its official code (commit 0da9b71, Stable Diffusion 1.4 only) are the sources; the paper's
formulas are known second-hand. Nothing here is copied from that code, which has no licence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..backbones.base import Backbone
from ..closed_form.caption_statistics import ordinary_captions, read_captions, statistics
from ..closed_form.pair_problems import calibrated
from ..closed_form.problem import Rows
from ..closed_form.sentences import FRAMES, SentencePair, SentenceReader, SentenceWeights, published_eta
from ..concept import Concept
from ..edits import EditMetadata, WeightEdit
from ..edits.changes import exchanged
from ..progress import Progress
from ..prompts import templates
from ..registry import Exactness
from ..training.context import FitContext, TrainingTask
from ..training.finetune import Optimisation, WeightedLoss
from ..training.shape import Shape
from ..training.steering import HingeCounter, Steering, SteeringPlan, SteeringPrompts, planned_latents
from .base import Eraser, Work


@dataclass(frozen=True, kw_only=True)
class TRCE(Eraser):
    """Two stages: text states of malicious sentences become safe ones, then denoising is steered away from the rest.

    Stage 1, "text", is a closed form. Each term is put into sentences beside its safe phrase, and in all key and value
    projections of cross-attention the state at the first end-of-text token (EoT) of the one becomes that of the other;
    e are those states, k the states of ordinary captions, n the number of sentence pairs:

        (1/n) sum_i |W' e_i^malicious - W e_i^safe|^2 + (eta / tokens) sum_k |W' k - W k|^2 + reg |W' - W|_F^2.

    EoT gathers the whole sentence, so the meaning is moved and not the word. It is solved in the update form,
    in float64, for all projections at once (`erasure.closed_form.solve`). SDXL's sentence vector goes past
    cross-attention: it is mapped likewise in the columns that read it.

    Stage 2, "visual", trains self-attention and the queries of cross-attention. eps_0 is the model before stage 1;
    m, s and 0 are the malicious prompt, its safe twin and the empty one; g is `target_guidance`. At early latents of
    trajectories that eps_0 made for malicious prompts,

        f_c = eps_0(c) + g (eps_0(c) - eps_0(0))  for c = s, m
        h(x) = max(mean |x - f_s|^2 - mean |x - f_m|^2 + margin, 0)
        L = beta (h(eps(m)) + h(eps(0))) / 2 + preserve_weight mean |eps(z_u, 0) - eps_1(z_u, 0)|^2

    with z_u on trajectories of the empty prompt and eps_1 the model after stage 1. A model that predicts v is trained
    on v: both targets and h are linear combinations of predictions.

    Differs from the official code: the EoT and the term are found by token id (theirs counts words, which for many of
    their sentences is a token before; `eot_index` has both); a term listed twice counts once (twice there); latents are
    paired with the timestep that they are at; gradients are cleared between updates, with a learning rate to match
    (`accumulate_forever` has theirs); the sentences are our own; timesteps are those of the pipeline's schedule,
    offset 1.

    Attributes:
        stages: "both", "text" (1) or "visual" (2).
        frames: Sentences with one `{}` for the term; or "captions", `FRAMES` for unsafe concepts and the templates of
            their kind for others; or "templates", those for all.
        weight_start: Weight of the start-of-text state, >= 0.
        weight_eot: Weight of the first end-of-text state, >= 0.
        weight_last: Weight of the last state of all, times the number of states after the words, >= 0, as in the code.
        weight_term: Weight of each token of the term, which becomes the safe sentence's last state, >= 0. With an
            `eot_index` of "words", of one place as in the code: the index of the term's first word plus one.
        eot_index: Positions of the first end of text and of the term: by token "ids", or "words", the code's, where
            the number of words is the number of tokens.
        eta: Weight of all tokens of the captions together, against 1 for all sentences, >= 0; see `published_eta`.
        reg: Pull towards the old weights, >= 0.
        captions: File of ordinary captions, one a line, or CSV with a column "caption" or "prompt"; "" takes everyday
            things and the preserved names, in the templates of their kinds.
        trajectory_frame: Sentence of stage 2.
        trajectories: Trajectories of each term, > 0.
        trajectory_guidance: Scale of their classifier-free guidance, >= 0.
        sample_steps: Steps of their schedule, > 0.
        early_steps: Number of their noisiest steps that are trained on, > 0.
        null_trajectories: Largest number of trajectories of the empty prompt, > 0.
        target_guidance: Guidance g of the targets, >= 0; in the usual convention a scale of g + 1.
        margin: Margin of the hinge, >= 0.
        beta: Factor of the hinge, >= 0.
        preserve_weight: Weight of the regulariser, >= 0.
        preserve_batch: Latents of the empty prompt a step, > 0.
        batch_size: Malicious latents a step, > 0.
        epochs: Passes over the malicious trajectories, > 0.
        lr: Learning rate of AdamW, > 0. The code's 1e-6 goes with gradients that are never cleared.
        weight_decay: Weight decay of AdamW, >= 0.
        accumulate_forever: Whether gradients are never cleared, as in the code.
        rank: Rank of the patches that are trained instead of the weights, > 0; None trains the weights.
        shape: Further terms, transforms, selector and finishes of the second stage (ours).
    """

    name: ClassVar[str] = "trce"
    source: ClassVar[str] = "arXiv:2503.07389"
    exactness: ClassVar[Exactness] = "reconstructed"
    licence: ClassVar[str] = "none"
    work: ClassVar[frozenset[Work]] = frozenset(("training",))
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
    shape: Shape = field(default_factory=Shape)

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts, context.backbone)
        metadata = self.metadata(concepts, context)
        text = WeightEdit(changes={}, metadata=metadata)
        if self.stages != "visual":
            text = self._text(concepts, context, metadata)
            if self.stages == "text" and context.on_progress is not None:
                context.on_progress(Progress(done=1, total=1))
        return text if self.stages == "text" else self._visual(text, concepts, context)

    def rows_of(self, concepts: Sequence[Concept], context: FitContext) -> Rows:
        """Return stage 1's least-squares problem for the key and value projections.

        Raises:
            InputError: A sentence has no safe form, a phrase is too long, or captions cannot be read.
        """
        return self._problems(concepts, context)[0]

    def _text(self, concepts: Sequence[Concept], context: FitContext, metadata: EditMetadata) -> WeightEdit:
        rows, pooled = self._problems(concepts, context)
        problems = calibrated((rows,) if pooled is None else (rows, pooled), context.backbone)
        return WeightEdit.from_problems(problems, lambda space: list(context.backbone.sites(reads=space)), metadata)

    def _problems(self, concepts: Sequence[Concept], context: FitContext) -> tuple[Rows, Rows | None]:
        """Return stage 1's problems: of the key and value projections, and of the sentence vector's readers."""
        reader = SentenceReader(context.backbone, self._pairs(concepts), self._weights)
        # Of the request alone: statistics that left out earlier targets would outlast the undoing of those.
        texts = (lambda: read_captions(self.captions)) if self.captions else ordinary_captions(concepts)
        captions = statistics(context.backbone, texts, folder=context.history.memory)
        return reader.rows(captions), reader.pooled_rows(captions)

    @property
    def _weights(self) -> SentenceWeights:
        return SentenceWeights(
            start=self.weight_start,
            eot=self.weight_eot,
            last=self.weight_last,
            term=self.weight_term,
            eot_index=self.eot_index,
            eta=self.eta,
            reg=self.reg,
        )

    def _pairs(self, concepts: Sequence[Concept]) -> list[SentencePair]:
        """Return each term in each sentence, with the same sentence made safe."""
        pairs = [SentencePair.of(frame, name, c) for c in concepts for name in c.names for frame in self._sentences(c)]
        return list(dict.fromkeys(pairs))

    def _sentences(self, concept: Concept) -> tuple[str, ...]:
        if not isinstance(self.frames, str):
            return self.frames
        return tuple(FRAMES) if self.frames == "captions" and concept.kind == "unsafe" else templates(concept.kind)

    def _visual(self, text: WeightEdit, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        """Return the edit with the changes that stage 2 learns on top of stage 1."""
        backbone, on_progress, counter = context.backbone, context.on_progress, HingeCounter()
        frame = self.trajectory_frame
        twins = list(dict.fromkeys(SentencePair.of(frame, name, c) for c in concepts for name in c.names))
        plan = self._plan(len(twins), context.seed)
        malicious, null = planned_latents([twin.prompt for twin in twins], plan, context)
        steering = Steering(
            backbone=backbone,
            prompts=SteeringPrompts.of(backbone, twins),
            plan=plan,
            target_guidance=self.target_guidance,
            margin=self.margin,
            beta=self.beta,
        )
        before = {name: p.data for name, p in backbone.parameters(text.changes.__contains__).items()}
        task = TrainingTask(
            context=context,
            requests=concepts,
            trained=steered(backbone).__contains__,
            reference=lambda: exchanged(backbone.parameters(before.__contains__), before),
        )
        clear, decay, rank = not self.accumulate_forever, self.weight_decay, self.rank
        optimisation = Optimisation(steps=plan.steps, lr=self.lr, rank=rank, weight_decay=decay, clear_gradients=clear)
        with text.applied_to(backbone.pipe, check=False):
            changes = self.shape.train(
                task,
                steering.loss(malicious, before, counter),
                optimisation,
                terms=[WeightedLoss(loss=steering.preserving(null), weight=self.preserve_weight)],
                on_progress=on_progress and (lambda progress: on_progress(counter.noted(progress))),
            )
        return self.shape.finished(replace(text, changes={**text.changes, **changes}), task)

    def _plan(self, terms: int, seed: int) -> SteeringPlan:
        """Draw the latents that are trained on, so that no others need be kept."""
        return SteeringPlan.drawn(
            terms,
            trajectories=self.trajectories,
            epochs=self.epochs,
            early_steps=min(self.early_steps, self.sample_steps),
            null_trajectories=self.null_trajectories,
            batch_size=self.batch_size,
            preserve_batch=self.preserve_batch,
            sample_steps=self.sample_steps,
            guidance_scale=self.trajectory_guidance,
            seed=seed,
        )


def steered(backbone: Backbone) -> frozenset[str]:
    """Return the full names of the parameters that stage 2 trains."""
    return frozenset(backbone.sites(("self", "cross.q", "joint.q", "shared.q")))
