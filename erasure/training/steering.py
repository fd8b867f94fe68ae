"""The training that steers denoising away from malicious prompts: stage 2 of TRCE (arXiv:2503.07389)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..backbones.base import Backbone
from ..backbones.conditioning import Conditioning, concatenate
from ..backbones.schedule import Timestep
from ..closed_form.sentences import SentencePair
from ..edits.changes import exchanged
from ..io.tensor_cache import stored
from ..losses.contrastive import steering_hinge
from ..losses.preservation import prior_preservation
from ..progress import Progress
from ..sampling import noise, trajectory_latents
from .context import FitContext
from .finetune import Loss
from .student import Student
from .teacher import Teacher

Latents = Float[Tensor, "n c h w"]
Visits = tuple[tuple[int, int], ...]
"""Trajectory and step of each latent."""

_AT_ONCE = 16
# Latents whose references are found together: with three prompts each, no more rows than guided trajectories have.
_TAUGHT_AT_ONCE = 10
_MALICIOUS_SEED, _NULL_SEED = 40_000_000, 50_000_000


@dataclass(frozen=True, kw_only=True)
class SteeringPlan:
    """Latents of each update.

    Attributes:
        batch_size: Malicious latents an update, > 0.
        preserve_batch: Latents of the empty prompt an update, > 0.
        malicious: Trajectory and step of each malicious latent, in order.
        null: Trajectory and step of each latent of the empty prompt.
        trajectories: Trajectories of each term, > 0; they follow one another.
        sample_steps: Steps of a trajectory, > 0.
        guidance_scale: Scale of classifier-free guidance of the malicious trajectories, >= 0.
    """

    batch_size: int
    preserve_batch: int
    malicious: Visits
    null: Visits
    trajectories: int
    sample_steps: int
    guidance_scale: float

    @classmethod
    def drawn(
        cls,
        terms: int,
        *,
        trajectories: int,
        epochs: int,
        early_steps: int,
        null_trajectories: int,
        batch_size: int,
        preserve_batch: int,
        sample_steps: int,
        guidance_scale: float,
        seed: int,
    ) -> "SteeringPlan":
        """Return a plan with random steps.

        Args:
            terms: Number of malicious terms.
            trajectories: Trajectories of each term.
            epochs: Passes over the malicious trajectories, > 0.
            early_steps: Number of the noisiest steps that are drawn from.
            null_trajectories: Largest number of trajectories of the empty prompt.
            batch_size: Malicious latents an update.
            preserve_batch: Latents of the empty prompt an update.
            sample_steps: Steps of a trajectory.
            guidance_scale: Scale of classifier-free guidance.
            seed: Seed of the draw, >= 0.
        """
        generator = torch.Generator().manual_seed(seed)
        total = terms * trajectories
        order = [i % total for i in range(epochs * total)]
        nulls = -(-len(order) // batch_size) * preserve_batch
        count = min(null_trajectories, nulls)
        return cls(
            batch_size=batch_size,
            preserve_batch=preserve_batch,
            malicious=_visits(order, early_steps, generator),
            null=_visits([i % count for i in range(nulls)], sample_steps, generator),
            trajectories=trajectories,
            sample_steps=sample_steps,
            guidance_scale=guidance_scale,
        )

    @property
    def steps(self) -> int:
        """Number of updates."""
        return -(-len(self.malicious) // self.batch_size)

    def of_step(self, step: int) -> list[int]:
        """Return the indices of the malicious latents of an update."""
        return list(range(step * self.batch_size, min((step + 1) * self.batch_size, len(self.malicious))))


def _visits(trajectories: Sequence[int], steps: int, generator: torch.Generator) -> Visits:
    """Return a random step for each visit of a trajectory."""
    chosen: list[int] = torch.randint(steps, (len(trajectories),), generator=generator).tolist()
    return tuple(zip(trajectories, chosen, strict=True))


def planned_latents(
    prompts: Sequence[str], plan: SteeringPlan, context: FitContext
) -> tuple[Float[Tensor, "terms c h w"], Float[Tensor, "nulls c h w"]]:
    """Return the planned latents, float16 on the CPU, in the plan's order: of the terms and of the empty prompt."""
    of_terms = [prompt for prompt in prompts for _ in range(plan.trajectories)]
    of_null = [""] * (1 + max(trajectory for trajectory, _ in plan.null))
    malicious = _Trajectories(of_terms, plan.guidance_scale, plan.malicious, _MALICIOUS_SEED, plan.sample_steps)
    null = _Trajectories(of_null, 1.0, plan.null, _NULL_SEED, plan.sample_steps)
    return malicious.latents(context), null.latents(context)


@dataclass(frozen=True)
class _Trajectories:
    """Trajectories, one a prompt, and the latents of them that are visited."""

    prompts: Sequence[str]
    guidance_scale: float
    visits: Visits
    first_seed: int
    steps: int

    def latents(self, context: FitContext) -> Latents:
        """Return the visited latents, from the context's folder where they are there already."""
        model = context.backbone.fingerprint()
        key = [model, self.prompts, self.guidance_scale, self.steps, self.first_seed, self.visits]
        return stored(context.history.memory, key, lambda: {"latents": self._sampled(context)})["latents"]

    @torch.no_grad()
    def _sampled(self, context: FitContext) -> Latents:
        backbone = context.backbone
        shape, unconditional = backbone.latent_shape(), backbone.unconditional()
        latents = torch.empty(len(self.visits), *shape, dtype=torch.float16)
        for start in range(0, len(self.prompts), _AT_ONCE):
            rows = range(start, min(start + _AT_ONCE, len(self.prompts)))
            generators = [torch.Generator().manual_seed(self.first_seed + row) for row in rows]
            prompts = [self.prompts[row] for row in rows]
            reached = trajectory_latents(
                backbone,
                noise(generators, shape),
                backbone.encode(prompts) if any(prompts) else unconditional.expand(len(rows)),
                unconditional,
                steps=self.steps,
                guidance_scale=self.guidance_scale,
                stops=sorted({step for trajectory, step in self.visits if trajectory in rows}),
            )
            for i, (trajectory, step) in enumerate(self.visits):
                if trajectory in rows:
                    latents[i] = reached[step][trajectory - start].half().cpu()
            if context.on_progress is not None:
                context.on_progress(Progress(done=rows.stop, total=len(self.prompts), stage="images"))
        return latents


@dataclass(frozen=True, kw_only=True)
class SteeringPrompts:
    """Encoded prompts: each term's sentence, its safe twin, and the empty prompt."""

    malicious: Conditioning
    safe: Conditioning
    null: Conditioning

    @classmethod
    def of(cls, backbone: Backbone, twins: Sequence[SentencePair]) -> "SteeringPrompts":
        """Return the encoded prompts of sentence pairs."""
        return cls(
            malicious=backbone.encode([twin.prompt for twin in twins]),
            safe=backbone.encode([twin.safe_prompt for twin in twins]),
            null=backbone.unconditional(),
        )


@dataclass(kw_only=True)
class HingeCounter:
    """Share of the cases in which each hinge pushes."""

    pushing: list[int] = field(default_factory=lambda: [0, 0])
    seen: int = 0

    def count(self, bound: Float[Tensor, " n"], free: Float[Tensor, " n"]) -> None:
        """Count the cases of one update."""
        self.seen += len(bound)
        for i, hinge in enumerate((bound, free)):
            self.pushing[i] += int((hinge > 0).sum())

    def noted(self, progress: Progress) -> Progress:
        """Return the progress with the shares as its note."""
        return replace(progress, note="; ".join(note for note in (self.note(), progress.note) if note))

    def note(self) -> str:
        """Return the shares as text."""
        bound, free = (share / max(1, self.seen) for share in self.pushing)
        return f"hinges active: prompt {bound:.0%}, null {free:.0%}"


@dataclass(frozen=True, kw_only=True)
class Steering:
    """Losses of the training.

    Attributes:
        backbone: Model with stage 1 in force.
        prompts: Encoded prompts.
        plan: Latents of each update.
        target_guidance: Guidance of the two targets, >= 0.
        margin: Margin of the hinge, >= 0.
        beta: Factor of the hinge, >= 0.
    """

    backbone: Backbone
    prompts: SteeringPrompts
    plan: SteeringPlan
    target_guidance: float
    margin: float
    beta: float

    def loss(self, latents: Latents, before: Mapping[str, Tensor], counter: HingeCounter) -> Loss:
        """Return the mean of both hinges, at the plan's malicious latents.

        Args:
            latents: Malicious latents in the plan's order.
            before: Weights that stage 1 changed, as they were.
            counter: Counts how often a hinge pushes.
        """
        timesteps = self.backbone.schedule.timesteps(self.plan.sample_steps)
        changed = self.backbone.parameters(before.__contains__)
        malicious, safe, null = self.prompts.malicious, self.prompts.safe, self.prompts.null

        def inputs(indices: Sequence[int], *reads: Conditioning) -> tuple[Latents, Timestep, Conditioning]:
            """Return planned latents, their timesteps and prompts: all of them for each kind of prompt in turn."""
            z = latents[list(indices)].float().to(self.backbone.device)
            timestep = timesteps[[self.plan.malicious[i][1] for i in indices]].to(self.backbone.device)
            terms = [self.plan.malicious[i][0] // self.plan.trajectories for i in indices]
            read = concatenate([each.select([term % len(each) for term in terms]) for each in reads])
            return z.repeat(len(reads), 1, 1, 1), timestep.repeat(len(reads)), read

        def targets(indices: Sequence[int]) -> Float[Tensor, "n both c h w"]:
            with exchanged(changed, before):
                predicted = self.backbone.predict(*inputs(indices, malicious, safe, null)).float()
            of_malicious, of_safe, of_null = predicted.chunk(3)
            return torch.stack([of + self.target_guidance * (of - of_null) for of in (of_safe, of_malicious)], dim=1)

        teacher = Teacher(targets, len(self.plan.malicious), _TAUGHT_AT_ONCE)

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            indices = self.plan.of_step(step)
            f_safe, f_unsafe = teacher(indices).unbind(dim=1)
            predicted = student(self.backbone.predict, *inputs(indices, malicious, null)).float()
            hinges = [steering_hinge(each, f_safe, f_unsafe, self.margin) for each in predicted.chunk(2)]
            counter.count(*hinges)
            return self.beta * (hinges[0].mean() + hinges[1].mean()) / 2

        return loss

    def preserving(self, latents: Latents) -> Loss:
        """Return the distance of the prediction for the empty prompt to that of the model after stage 1.

        Args:
            latents: Latents of the empty prompt in the plan's order.
        """
        backbone, plan = self.backbone, self.plan
        timesteps = backbone.schedule.timesteps(plan.sample_steps)

        def inputs(indices: Sequence[int]) -> tuple[Latents, Timestep, Conditioning]:
            z = latents[list(indices)].float().to(backbone.device)
            timestep = timesteps[[plan.null[i][1] for i in indices]].to(backbone.device)
            return z, timestep, self.prompts.null.expand(len(indices))

        teacher = Teacher(
            lambda indices: backbone.predict(*inputs(indices)).float(), len(plan.null), 3 * _TAUGHT_AT_ONCE
        )

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            indices = range(step * plan.preserve_batch, (step + 1) * plan.preserve_batch)
            expected = teacher(indices)
            return prior_preservation(student(backbone.predict, *inputs(indices)).float(), expected)

        return loss
