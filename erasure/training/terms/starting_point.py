"""L1-SP and L2-SP (arXiv:1802.01483) for removals in sequence (CUIG, arXiv:2511.07970)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...losses.regularisation import l1_sp, l2_sp
from ...registry import Exactness
from ..context import TrainingTask
from ..finetune import Loss
from ..student import Student
from .base import Term


@dataclass(frozen=True, kw_only=True)
class StartingPoint(Term):
    """Distance of the trained weights from where this removal found them.

        "l2":  1/P sum_p (theta_p - ref_p)^2        "l1":  1/P sum_p |theta_p - ref_p|

    over the P trained scalars; of a patch it is the product `up @ down`, not the factors. The reference is the start of
    this training: the distance to the model before the first removal would pull earlier removals back.

    The published weights, 25,000 and 50, go with its learning rate of 2e-6: another one asks for another weight, about
    that at which the penalty equals the erasing loss at the end of a training without it.

    Attributes:
        form: Squares, "l2", or absolute values, "l1".
        towards: Weights at the "start" of this removal, or those of the "reference", which for `tune` in a ledger is
            the model before the first removal.
        weight: Factor against the main loss, >= 0.
    """

    name: ClassVar[str] = "starting-point"
    source: ClassVar[str] = "arXiv:2511.07970"
    exactness: ClassVar[Exactness] = "published"
    presets: ClassVar[Mapping[str, Mapping[Any, Mapping[str, Any]]]] = {"form": {"l1": {"weight": 50.0}}}

    form: Literal["l2", "l1"] = "l2"
    towards: Literal["start", "reference"] = "start"
    weight: Annotated[float, Field(ge=0)] = 25_000.0

    def loss(self, task: TrainingTask) -> Loss:
        distance = l2_sp if self.form == "l2" else l1_sp
        if self.towards == "start":
            return lambda student, step, generator: distance(student.shifts())
        weights = task.backbone.parameters(task.trained)
        with task.reference():
            reference = {name: weight.detach().float().clone() for name, weight in weights.items()}

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            offsets = {name: weights[name].detach().float() - reference[name] for name in reference}
            return distance({name: shift + offsets[name] for name, shift in student.shifts().items()})

        return loss
