"""The one optimisation loop of every trained eraser.

The pipeline keeps its own weights throughout: the weights under training, the student, live beside it in float32 and
stand in for the pipeline's only while `Student.__call__` runs. So original and student are one model in memory plus
what is trained, and there is nothing to restore when something fails.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from ..backbones.base import Backbone
from ..edits import DenseChange, LowRankChange
from ..errors import InputError, SolveError
from ..progress import OnProgress, Progress

P = ParamSpec("P")
R = TypeVar("R")

Optimizer = Literal["adam", "adamw"]


class Student:
    """The weights under training, dense or as low-rank patches of the pipeline's."""

    def __init__(
        self,
        backbone: Backbone,
        which: Callable[[str], bool],
        rank: int | None,
        generator: torch.Generator,
        last_rows: Mapping[str, int] | None = None,
    ) -> None:
        last_rows = last_rows or {}
        self._originals = {
            name: parameter
            for name, parameter in backbone.parameters(lambda name: which(name) or name in last_rows).items()
            if rank is None or parameter.ndim > 1  # a vector has no low rank
        }
        if not self._originals:
            raise InputError("finetune.which: expected parameters to train, got none. Choose names that the model has.")
        self._dense: dict[str, Tensor] = {}
        self._ups: dict[str, Tensor] = {}
        self._downs: dict[str, Tensor] = {}
        self._tails: dict[str, Tensor] = {}
        for name, original in self._originals.items():
            if name in last_rows:
                self._tails[name] = original[-last_rows[name] :].detach().float().clone().requires_grad_()
            elif rank is None:
                self._dense[name] = original.detach().float().clone().requires_grad_()
            else:
                rows, columns = original.flatten(1).shape
                down = torch.randn(rank, columns, generator=generator) / rank  # as LoRA: the patch starts at zero
                self._downs[name] = down.to(original.device).requires_grad_()
                self._ups[name] = torch.zeros(rows, rank, device=original.device, requires_grad=True)
        self._scope = _Scope(backbone, self._originals)

    def __call__(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Return `function(*args, **kwargs)` computed while the pipeline's models have the student's weights."""
        return functional_call(self._scope, self.weights(), (function, args, kwargs))

    @property
    def trained(self) -> list[Tensor]:
        """The leaves that the optimiser moves, float32."""
        return [*self.weighed, *self.rows]

    @property
    def weighed(self) -> list[Tensor]:
        """Those of them that are or patch whole weights."""
        return [*self._dense.values(), *self._ups.values(), *self._downs.values()]

    @property
    def rows(self) -> list[Tensor]:
        """Those of them that are last rows of a weight."""
        return list(self._tails.values())

    def weights(self) -> dict[str, Tensor]:
        """Return the weights by full parameter name, with gradient, in the dtype of the model."""
        dense = {name: weight.to(self._originals[name].dtype) for name, weight in self._dense.items()}
        patched = {
            name: (original.float() + (self._ups[name] @ self._downs[name]).view_as(original)).to(original.dtype)
            for name, original in self._originals.items()
            if name in self._ups
        }
        grown = {
            name: torch.cat([self._originals[name][: -len(tail)], tail.to(self._originals[name].dtype)])
            for name, tail in self._tails.items()
        }
        return dense | patched | grown

    def shifts(self) -> dict[str, Tensor]:
        """Return how far each weight is from the pipeline's, by full parameter name, float32 with gradient.

        Of what is trained in its last rows only, that of those rows.
        """
        return {name: self._shift(name, original) for name, original in self._originals.items()}

    def _shift(self, name: str, original: Tensor) -> Tensor:
        if name in self._dense:
            return self._dense[name] - original.float()
        if name in self._tails:
            return self._tails[name] - original[-len(self._tails[name]) :].float()
        return (self._ups[name] @ self._downs[name]).view_as(original)

    def changes(self) -> dict[str, DenseChange | LowRankChange]:
        """Return what was learned, by full parameter name, as float32 on the CPU; see `shifts` for last rows."""
        return {
            name: (
                LowRankChange(up=self._ups[name].detach().cpu(), down=self._downs[name].detach().cpu())
                if name in self._ups
                else DenseChange(delta=self._shift(name, original).detach().cpu())
            )
            for name, original in self._originals.items()
        }


Loss = Callable[[Student, int, torch.Generator], Float[Tensor, ""]]
"""What a step minimises, from the student, the step from 0, and the generator of the step's draws."""


@dataclass(frozen=True, kw_only=True)
class Preservation:
    """A further term of the loss.

    Attributes:
        loss: As the main loss, with draws of its own: adding a term leaves those of the others as they were.
        weight: Against the main loss, >= 0; at 0 the term is not computed.
    """

    loss: Loss
    weight: float


def finetune(
    backbone: Backbone,
    which: Callable[[str], bool],
    loss: Loss,
    *,
    steps: int,
    lr: float,
    rank: int | None = None,
    optimizer: Optimizer = "adamw",
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    clear_gradients: bool = True,
    preservation: Sequence[Preservation] = (),
    stop: Callable[[Student, int], bool] | None = None,
    last_rows: Mapping[str, int] | None = None,
    last_rows_lr: float | None = None,
    on_progress: OnProgress | None = None,
    seed: int = 0,
) -> dict[str, DenseChange | LowRankChange]:
    """Return the weight changes that minimise `loss` plus the weighted preservation terms.

    The pipeline is left as it was, bit for bit, also by an exception; only trained weights get gradients. Everything
    random comes from `seed`. Each term is differentiated in turn, so that one graph is held at a time. Masters and
    moments are float32; gradients through a float16 model are scaled against underflow.

    Args:
        backbone: The model.
        which: Accepts the full names of the parameters to train.
        loss: The main term; scalar.
        steps: How many updates, >= 0.
        lr: Constant learning rate, > 0.
        rank: Train a patch `up @ down` of this rank in each matrix or kernel instead of the weights; vectors are left
            out.
        optimizer: "adamw" or "adam", with PyTorch's defaults.
        weight_decay: Of the optimiser, towards zero weights (towards a zero patch with `rank`).
        clip_norm: Scale the gradient of all trained weights down to this norm where it is longer, > 0.
        clear_gradients: Whether each update follows its own step's gradient; else the sum of all so far, as in training
            scripts that never clear it.
        preservation: Further terms.
        stop: Asked after each update, with the number of updates made, whether to end here.
        last_rows: Parameters of which the last so many rows are trained, in full whatever the rank, and no other: the
            words that were added to a table. The change returned for one has just those rows.
        last_rows_lr: Their learning rate, > 0; None is `lr`.
        on_progress: Receives each update with its loss and weighted terms.
        seed: Of the generators handed to the losses and of the patches' start.

    Raises:
        InputError: A setting out of range, or no parameter to train.
        SolveError: The loss is no longer finite.
    """
    _check(steps=steps, lr=lr, rank=rank, clip_norm=clip_norm)
    seeds = torch.Generator().manual_seed(seed)
    terms = [(1.0, loss), *((term.weight, term.loss) for term in preservation)]
    start, *draws = (
        torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=seeds))) for _ in range(len(terms) + 1)
    )
    student = Student(backbone, which, rank, start, last_rows)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    rows_lr = lr if last_rows_lr is None else last_rows_lr
    groups = [{"params": student.weighed}, {"params": student.rows, "lr": rows_lr}]
    moving = kind([group for group in groups if group["params"]], lr=lr, weight_decay=weight_decay)
    scaler = torch.amp.GradScaler(backbone.device.type, enabled=backbone.dtype == torch.float16)
    with _at_rest(backbone):
        for step in range(steps):
            parts: list[float] = []
            for (weight, term), generator in zip(terms, draws, strict=True):
                if weight:
                    value = weight * term(student, step, generator)
                    student(scaler.scale(value).backward)  # gradient checkpointing runs parts of the forward again
                    parts.append(value.item())
                else:
                    parts.append(0.0)
            total = sum(parts)
            if not torch.isfinite(torch.tensor(total)):
                raise SolveError(f"finetune: expected a finite loss, got {total} at step {step + 1}. Lower lr.")
            if clip_norm is not None:
                scaler.unscale_(moving)
                nn.utils.clip_grad_norm_(student.trained, clip_norm)
            scaler.step(moving)
            scaler.update()
            if clear_gradients:
                moving.zero_grad()
            enough = step + 1 < steps and stop is not None and stop(student, step + 1)
            if on_progress is not None:
                end = step + 1 if enough else steps
                on_progress(Progress(done=step + 1, total=end, loss=total, parts=tuple(parts)))
            if enough:
                break
    return student.changes()


def below(n: int, generator: torch.Generator) -> int:
    """Draw a number from 0 to n - 1."""
    return int(torch.randint(n, (), generator=generator))


class _Scope(nn.Module):
    """Holds the models under the first part of their parameters' full names; its forward runs any function."""

    def __init__(self, backbone: Backbone, names: Iterable[str]) -> None:
        super().__init__()
        for component in dict.fromkeys(name.partition(".")[0] for name in names):
            self.add_module(component, backbone.component(component))

    def forward(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return function(*args, **kwargs)


@contextmanager
def _at_rest(backbone: Backbone) -> Iterator[None]:
    """Have the pipeline's modules neither collect gradients nor drop out; put both back on exit."""
    roots = [part for part in backbone.pipe.components.values() if isinstance(part, nn.Module)]
    modules = {module: module.training for root in roots for module in root.modules()}
    parameters = {parameter: parameter.requires_grad for root in roots for parameter in root.parameters()}
    try:
        for module in modules:
            module.training = False
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modules.items():
            module.training = training
        for parameter, required in parameters.items():
            parameter.requires_grad_(required)


def _check(*, steps: int, lr: float, rank: int | None, clip_norm: float | None) -> None:
    if steps < 0:
        raise InputError(f"finetune.steps: expected at least 0, got {steps!r}. Give how many updates to make.")
    if not lr > 0:
        raise InputError(f"finetune.lr: expected a number > 0, got {lr!r}. The papers use about 1e-5.")
    if rank is not None and rank < 1:
        raise InputError(f"finetune.rank: expected at least 1, got {rank!r}. Leave it out to train full weights.")
    if clip_norm is not None and not clip_norm > 0:
        raise InputError(f"finetune.clip_norm: expected a number > 0, got {clip_norm!r}. Leave it out not to clip.")
