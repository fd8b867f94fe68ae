"""A resumable optimisation: the loop of every trained stage."""

import contextlib
import csv
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ...progress import OnProgress, Progress
from .recipe import Recipe

SECONDS_BETWEEN_SAVES = 90.0
StageLoss = Callable[[np.random.Generator, int], Tensor]
"""Loss of one step, from the generator of the step's draws and the step from 0."""


class Float32Attention(TorchFunctionMode):
    """Attention in float32 under autocast: on the CPU its bfloat16 backward pass takes ten times as long."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[Tensor] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Call `func`, with float32 query, key and value if it is attention."""
        del types
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(query.device.type, enabled=False):
            return func(*map(_as_float32, args), **{name: _as_float32(value) for name, value in kwargs.items()})


def _as_float32(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


@contextlib.contextmanager
def _precision(recipe: Recipe) -> Iterator[None]:
    """Run a loss in the recipe's precision."""
    if recipe.precision == "float32":
        yield
        return
    kind = torch.device(recipe.device).type
    with torch.autocast(kind, torch.bfloat16), Float32Attention() if kind == "cpu" else contextlib.nullcontext():
        yield


@dataclass(kw_only=True)
class Loop:
    """One resumable optimisation.

    Attributes:
        stage: Name of the state's file and of the progress bar.
        modules: Modules that are saved and resumed; their parameters that require a gradient are trained.
        loss: Loss of a step; all its draws come from the generator it receives.
        minutes: Length in minutes, over all resumptions.
        lr: Highest learning rate.
        average: Decay of the moving average of the weights; 0 keeps none.
        steps: Length in steps, over all resumptions; None: as many as the minutes allow.
        show: Called with the step after every tenth of the length, to write samples.
        shadow: Averaged weights.
        since: Step and seconds at which the optimiser was new.
    """

    recipe: Recipe
    stage: str
    modules: dict[str, nn.Module]
    loss: StageLoss
    minutes: float
    lr: float
    average: float = 0.0
    steps: int | None = None
    show: Callable[[int], None] | None = None
    shadow: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    since: tuple[int, float] = (0, 0.0)

    @property
    def path(self) -> Path:
        return self.recipe.out / "state" / f"{self.stage}.pt"

    def run(self, on_progress: OnProgress | None = None) -> None:
        """Train until the minutes are spent; return at once if an earlier call spent them.

        A stage that is not among the recipe's and was trained before is left as it is: later stages depend on it.
        """
        trained = [p for m in self.modules.values() for p in m.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        step, spent = self._resume(optimizer)
        if not optimizer.state:  # a new optimiser needs a warm-up, and its rate falls over the remaining length
            self.since = (step, spent)
        active = self.stage in self.recipe.stages or step == 0
        saved, recent = spent, []
        while active and (share := self._share(step, spent)) < 1:
            began = time.monotonic()
            recent.append(self._step(optimizer, trained, step, share))
            step += 1
            spent += time.monotonic() - began
            if on_progress is not None:
                on_progress(self._progress(step, spent, float(np.mean(recent[-50:]))))
            if step % 50 == 0:
                self._log(step, spent, float(np.mean(recent[-50:])))
            if self.show and int(10 * share) < int(10 * self._share(step, spent)):
                self.show(step)
            if spent - saved > SECONDS_BETWEEN_SAVES:
                self._save(optimizer, step, spent)
                saved = spent
        if active:
            self._save(optimizer, step, spent)
        if self.average:
            for name, module in self.modules.items():
                module.load_state_dict(self.shadow[name])

    def _step(
        self, optimizer: torch.optim.Optimizer, trained: Sequence[nn.Parameter], step: int, share: float
    ) -> float:
        """Update the weights once and return the loss."""
        for group in optimizer.param_groups:
            group["lr"] = (
                self.lr
                * min(1.0, (step - self.since[0] + 1) / 100)
                * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
            )
        name = f"{self.recipe.seed}:{self.stage}:{step}".encode()
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name).digest()[:8], "little"))
        with _precision(self.recipe):
            loss = self.loss(rng, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        self._average(step + 1)
        return loss.item()

    def _share(self, step: int, spent: float) -> float:
        """Return the completed share of the length since the optimiser was new; the loop ends at 1."""
        cold, begun = self.since
        if self.steps is not None:
            return (step - cold) / max(self.steps - cold, 1) if step < self.steps else 1.0
        return (spent - begun) / max(self.minutes * 60 - begun, 1e-9)

    def _progress(self, step: int, spent: float, loss: float) -> Progress:
        """Return a report in steps if the length is in steps, else in seconds."""
        done, total = (step, self.steps) if self.steps is not None else (int(spent), math.ceil(self.minutes * 60))
        return Progress(done, total, self.stage, loss=loss, note=f"step {step}  loss {loss:.4f}")

    def _average(self, step: int) -> None:
        if not self.average:
            return
        decay = min(self.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, module in self.modules.items():
                state = module.state_dict()
                shadow = self.shadow.setdefault(name, {k: v.clone() for k, v in state.items()})
                for key, value in state.items():
                    shadow[key].lerp_(value, 1 - decay) if value.is_floating_point() else shadow[key].copy_(value)

    def _resume(self, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
        if not self.path.exists():
            return 0, 0.0
        state = torch.load(self.path, map_location=self.recipe.device, weights_only=True)
        for name, module in self.modules.items():
            if name in state["modules"]:  # a text tower from a finished model has lost its image tower
                module.load_state_dict(state["modules"][name], strict="optimizer" in state)
        if state.get("optimizer"):
            optimizer.load_state_dict(state["optimizer"])
        self.shadow = state["shadow"]
        self.since = state.get("since", (0, 0.0))
        return state["step"], state["seconds"]

    def _save(self, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
        state = {"modules": {n: m.state_dict() for n, m in self.modules.items()}, "shadow": self.shadow}
        facts = {"step": step, "seconds": seconds, "since": self.since}
        write_state(self.path, {**state, "optimizer": optimizer.state_dict(), **facts})

    def _log(self, step: int, seconds: float, loss: float) -> None:
        path = self.recipe.out / "losses" / f"{self.stage}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", newline="") as file:
            csv.writer(file).writerow([step, round(seconds, 1), round(loss, 6)])


def write_state(path: Path, state: Tensor | dict[str, object]) -> None:
    """Write a stage's state, or what it learns from, atomically: an interruption leaves the previous one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)
