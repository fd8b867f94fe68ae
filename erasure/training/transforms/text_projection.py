"""Gradient projection for removals in sequence (CUIG, arXiv:2511.07970)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...concept import Kind
from ...errors import InputError
from ...prompts import fill, preserved_templates, speaks_of
from ...registry import Exactness
from ..context import TrainingTask
from ..finetune import Gradient, GradientMap, StepMap
from .base import Transform


@dataclass(frozen=True, kw_only=True)
class TextProjection(Transform):
    """Steps of the layers that read text which do not change what they answer to the states of protected names.

        P = I - C (C^T C + r I)^-1 C^T,   r = max(floor, relative trace(C^T C) / m),   step <- step P

    C (d, m) has the mean state of the tokens of each protected name, over the templates of its kind: of the names that
    the concepts preserve and of the earlier targets, whose removal is then protected too. Layers that read the states
    of the text directly are projected, in float64; a patch `up @ down` has P on `down`. Their biases are held.

    Differs from the code: P acts on the step of the optimiser, which is exact for Adam and for weight decay; on the
    gradient before clipping, as there, the step leaves the allowed space. Contexts are templates instead of sentences
    by a language model.

    Attributes:
        on: Projected quantity: the "step" of the optimiser, or the "gradient", as in the code.
        earlier: Whether earlier targets are protected.
        floor: Least r, > 0.
        relative: r as a share of the mean of C^T C's diagonal, >= 0.
    """

    name: ClassVar[str] = "text-projection"
    source: ClassVar[str] = "arXiv:2511.07970"
    exactness: ClassVar[Exactness] = "reconstructed"

    on: Literal["step", "gradient"] = "step"
    earlier: bool = True
    floor: Annotated[float, Field(gt=0)] = 1e-4
    relative: Annotated[float, Field(ge=0)] = 1e-6

    def limiting(self, task: TrainingTask) -> StepMap | None:
        return self._projection(task) if self.on == "step" else None

    def prepared(self, task: TrainingTask) -> GradientMap | None:
        return _Projected(self._projection(task)) if self.on == "gradient" else None

    def _projection(self, task: TrainingTask) -> StepMap:
        """Return the map of steps.

        Raises:
            InputError: Nothing is protected, or no trained layer reads the text's states.
        """
        readers = [name for name in task.backbone.sites(reads="text") if task.trained(name)]
        if not readers:
            raise InputError(
                "text-projection: expected trained layers that read the text's states, got none."
                " Train keys and values of cross-attention."
            )
        projector = self.projector(self.protected(task)).float()
        biases = {name.removesuffix(".weight") + ".bias" for name in readers}

        def inside(step: Gradient) -> Gradient:
            limited = dict(step)
            for leaf, change in step.items():
                if leaf.name in biases:
                    limited[leaf] = torch.zeros_like(change)
                elif leaf.name in readers and leaf.part != "up":
                    limited[leaf] = change @ projector.to(change)
            return limited

        return inside

    def projector(self, states: Float[Tensor, "m dim"]) -> Float[Tensor, "dim dim"]:
        """Return P, from C^T in float64."""
        gram = states @ states.T
        ridge = max(self.floor, self.relative * float(gram.diagonal().mean()))
        inverse = torch.linalg.inv(gram + ridge * torch.eye(len(gram)).to(gram))
        return torch.eye(states.shape[1]).to(states) - states.T @ inverse @ states

    def protected(self, task: TrainingTask) -> Float[Tensor, "m dim"]:
        """Return the mean state of each protected name, float64.

        Raises:
            InputError: Nothing is protected.
        """
        kinds: dict[str, Kind] = {name: concept.kind for concept in task.concepts for name in concept.preserve}
        if self.earlier:
            kinds |= {concept.target: concept.kind for concept in task.context.targets}
        names = [name for name in kinds if not speaks_of(name, task.concepts)]
        if not names:
            raise InputError(
                "text-projection: expected preserved names or earlier targets, got none. Name what is to be preserved."
            )
        return torch.stack([self._state(task, name, preserved_templates(kinds[name])) for name in names])

    @staticmethod
    def _state(task: TrainingTask, name: str, templates: Sequence[str]) -> Float[Tensor, " dim"]:
        read = task.backbone.read([fill(template, name) for template in templates])
        rows = [read.states[row, read.word_positions(row, name)] for row in range(len(read))]
        return torch.cat(rows).double().mean(0)


class _Projected(GradientMap):
    """The projection of both gradients."""

    def __init__(self, inside: StepMap) -> None:
        self._inside = inside

    def __call__(self, erase: Gradient, keep: Gradient, step: int) -> tuple[Gradient, Gradient]:
        return self._inside(erase), self._inside(keep)
