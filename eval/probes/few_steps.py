"""Few steps: a patch of the original that samples in a few (arXiv:2210.03142, arXiv:2311.05556)."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from erasure.backbones import Backbone, backbone_of
from erasure.backbones.schedule import NoiseSchedule
from erasure.edits import LowRankChange
from erasure.edits.changes import edited_weights, exchanged
from erasure.errors import InputError
from erasure.prompts import fill, templates
from erasure.registry import Exactness
from erasure.sampling import noise, scheduled_prediction, trajectory_latents
from erasure.training.finetune import Loss, Optimisation, finetune
from erasure.training.student import Student

from .base import Access, Aim, Counts, Models, Outcome, Probe, Subject

Arm = Literal["fewer steps", "patch", "patch with the concept"]


@dataclass(frozen=True, kw_only=True)
class FewSteps(Probe):
    """An acceleration patch that was made on the original is added to the tested model, as people do; no attack.

    The patch, of low rank on every matrix, teaches the original to do in one step without guidance what m guided DDIM
    steps do. With x_a, x_b the latents before and after them, and a step of the schedule  x_b = A x_a + B eps,

        eps* = (x_b - A x_a) / B,  loss  |eps_w(x_a, a, c) - eps*|^2

    It is trained on prompts of kept concepts (`patch`), or half on prompts of the concept (`patch with the concept`),
    and the tested model has the weights W + (W_patch - W0). `fewer steps` samples with as few steps and no patch. Kept
    concepts are sampled at each dose, as a model that no longer draws anything is not safe.

    A patch does not fit a separately trained model, so no gold is read for it; the floor is the plain prompt.

    Differs from the papers: the guidance scale is fixed; distilled at once, not by halving; no consistency.

    Attributes:
        doses: Numbers of sampling steps, from many to few, each >= 1.
        arms: Ways to need fewer steps.
        substeps: Guided steps that one step stands for, > 0.
        trajectories: Guided trajectories to learn from, > 0.
        updates: Updates of the patch, > 0.
        rank: Rank of the patch, > 0.
        lr: Learning rate of AdamW, > 0.
        batch_size: Examples an update, > 0.
    """

    name: ClassVar[str] = "few-steps"
    source: ClassVar[str] = "arXiv:2210.03142 and arXiv:2311.05556"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "weights"
    dose_unit: ClassVar[str] = "sampling steps"
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"doses": (2.0,), "substeps": 2, "trajectories": 2, "updates": 1, "batch_size": 2}
    )

    doses: Counts = (10.0, 5.0)
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)] = ("fewer steps", "patch", "patch with the concept")
    substeps: Annotated[int, Field(ge=1)] = 5
    trajectories: Annotated[int, Field(ge=1)] = 32
    updates: Annotated[int, Field(ge=1)] = 150
    rank: Annotated[int, Field(ge=1)] = 8
    lr: Annotated[float, Field(gt=0)] = 1e-3
    batch_size: Annotated[int, Field(ge=1)] = 8

    def material(self, models: Models, aim: Aim) -> dict[str, Tensor]:
        if not all(dose < aim.sampling.steps for dose in self.doses):
            raise InputError(
                f"{self.name}.doses: expected fewer steps than the {aim.sampling.steps} of the images, got"
                f" {list(self.doses)!r}. Lower them."
            )
        patches: dict[str, Tensor] = {}
        with models.original() as pipe:
            for arm in self.arms:
                for dose in self.doses if arm != "fewer steps" else ():
                    changes = self._patch(backbone_of(pipe), aim, arm, round(dose))
                    for name, change in changes.items():
                        patches[f"{arm} {dose:g} up {name}"] = change.up.cpu()
                        patches[f"{arm} {dose:g} down {name}"] = change.down.cpu()
        return patches

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        for arm in self.arms:
            for i, dose in enumerate(self.doses):
                subject.report(i, len(self.doses), f"{arm}, {dose:g} steps")
                label = f"{dose:g} steps"
                sampling = replace(subject.aim.sampling, steps=round(dose))
                if arm == "fewer steps":
                    images, kept = subject.as_it_stands(sampling)
                    yield Outcome(dose=dose, part=arm, images=images, kept=kept, label=label)
                    continue
                changes = patch_of(subject.material, f"{arm} {dose:g}")
                parameters = subject.backbone.parameters(changes.__contains__)
                weights = edited_weights({name: p.data for name, p in parameters.items()}, changes)
                unguided = replace(sampling, guidance_scale=1.0)
                with exchanged(parameters, weights):
                    images, kept = subject.sampled(unguided), subject.sampled_kept(unguided)
                yield Outcome(dose=dose, part=arm, images=images, kept=kept, comparable=False, label=label)

    def _patch(self, backbone: Backbone, aim: Aim, arm: Arm, steps: int) -> dict[str, LowRankChange]:
        """Return the patch of the original with which so many steps without guidance do as the guided ones."""
        generator = torch.Generator().manual_seed(aim.seed + 12)
        loss = self._loss(backbone, self._captions(aim, arm), aim, steps, generator)
        matrices = {name for name, p in backbone.parameters(backbone.sites().__contains__).items() if p.ndim == 2}
        optimisation = Optimisation(steps=self.updates, lr=self.lr, rank=self.rank)
        changes = finetune(backbone, matrices.__contains__, loss, optimisation, seed=aim.seed)
        return {name: change for name, change in changes.items() if isinstance(change, LowRankChange)}

    def _captions(self, aim: Aim, arm: Arm) -> list[str]:
        """Return the prompt of each trajectory: of kept concepts, and of the concept in turn where it has a part."""
        kept = list(dict.fromkeys(prompt for _, prompt, _ in aim.kept)) or [
            fill(template, name) for template in templates("object")[1:6] for name in aim.siblings
        ]
        sets = [kept] if arm == "patch" else [kept, list(aim.prompts)]
        return [sets[i % len(sets)][i // len(sets) % len(sets[i % len(sets)])] for i in range(self.trajectories)]

    def _loss(
        self, backbone: Backbone, captions: Sequence[str], aim: Aim, steps: int, generator: torch.Generator
    ) -> Loss:
        schedule, states = backbone.schedule, backbone.encode(captions)
        levels = student_levels(backbone, steps)
        latents = noise([generator] * len(captions), backbone.latent_shape())
        befores, goals = [], []
        for i, timestep in enumerate(levels[:-1]):
            run = between(timestep, levels[i + 1], self.substeps)
            after = trajectory_latents(
                backbone,
                latents,
                states,
                backbone.unconditional(),
                steps=len(run),
                guidance_scale=max(aim.sampling.guidance_scale, 1.0),
                stops=[len(run) - 1],
                timesteps=run,
            )[len(run) - 1]
            before = latents.to(after)
            goals.append(one_step_prediction(schedule, before, after, run[0], run[-1]))
            befores.append(before)
            latents = after
        begun, goal = torch.stack(befores), torch.stack(goals)

        def loss(student: Student, step: int, draws: torch.Generator) -> Float[Tensor, ""]:
            stage = int(torch.randint(len(begun), (), generator=draws))
            rows = torch.randint(len(captions), (self.batch_size,), generator=draws)
            read = states.select(rows.tolist())
            noisy, timestep = begun[stage][rows.to(begun.device)], levels[stage]
            predicted = student(scheduled_prediction, backbone, noisy, timestep, read)
            return F.mse_loss(predicted, goal[stage][rows.to(goal.device)])

        return loss


def student_levels(backbone: Backbone, steps: int) -> Float[Tensor, " levels"] | Int[Tensor, " levels"]:
    """Return the levels that a sampler visits in so many steps, and the clean end; of the pipeline's own scheduler."""
    levels = backbone.schedule.timesteps(steps)
    if not levels.is_floating_point():
        scheduler = copy.deepcopy(backbone.pipe.scheduler)
        scheduler.set_timesteps(steps)
        # Some schedulers count in fractions, some visit a level twice.
        levels = torch.as_tensor(scheduler.timesteps).cpu().round().to(levels.dtype)
    return torch.cat([levels.cpu(), levels.new_zeros(1)]).unique_consecutive()


def between(start: Tensor, end: Tensor, substeps: int) -> Tensor:
    """Return levels from one to the next in equal parts, both ends included; integers where the ends are."""
    levels = start + (end - start) * torch.linspace(0, 1, substeps + 1, dtype=torch.float64)
    return (levels if start.is_floating_point() else levels.round()).to(start.dtype)


def one_step_prediction(
    schedule: NoiseSchedule, before: Tensor, after: Tensor, start: Tensor, end: Tensor
) -> Float[Tensor, "n c h w"]:
    """Return the prediction by which one deterministic step takes `before` to `after`."""
    one, zero = torch.ones_like(before[:1, :1, :1, :1]), torch.zeros_like(before[:1, :1, :1, :1])
    kept, added = schedule.step(zero, one, start, end), schedule.step(one, zero, start, end)
    return (after - kept * before) / added


def patch_of(material: Mapping[str, Tensor], prefix: str) -> dict[str, LowRankChange]:
    """Return the patch that the material holds under a prefix."""
    start = f"{prefix} up "
    names = [key.removeprefix(start) for key in material if key.startswith(start)]
    return {
        name: LowRankChange(up=material[f"{prefix} up {name}"], down=material[f"{prefix} down {name}"])
        for name in names
    }
