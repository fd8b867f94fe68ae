"""Hooks between a pipeline's loop and its denoiser, at every step of any diffusers pipeline.

The loop of a pipeline scales its latents (`scheduler.scale_model_input`), asks the denoiser, and hands latents and
prediction to `scheduler.step`. Whoever changes the latents must reach all three. Here the denoiser is hooked as a
module and the scheduler's methods are shadowed on the instance, so no loop is written again and whatever diffusers adds
to one is kept: image to image, inpainting, several images a prompt, callbacks, offloading.
"""

import copy
import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor, nn

from ..backbones import backbone_of
from ..backbones.loaded import called_denoiser
from ..errors import InputError
from .batches import Latents, Output, Stepping, Value, cloned, rows_of, sample_of, with_first, with_sample


@dataclass(kw_only=True)
class Denoising:
    """One call of the denoiser by a pipeline's loop.

    Attributes:
        step: Index of the step in the schedule, from 0.
        total: Number of steps of the schedule.
        first: Whether this is the first step of the loop, which may begin in the middle of the schedule.
        timestep: As the loop gave it to the denoiser.
        latents: Before the scheduler's scaling, one for each image; as earlier hooks of the same step left them.
        guided: Whether the denoiser is asked for unconditional predictions as well (classifier-free guidance).
    """

    step: int
    total: int
    first: bool
    timestep: Tensor
    latents: Latents
    guided: bool
    _denoiser: nn.Module
    _scale: Callable[[Tensor, Tensor], Tensor]
    _sample: Tensor
    _args: tuple[Any, ...]
    _kwargs: Mapping[str, Any]
    _link: "_Link"

    def conditional(self, value: Value) -> Value:
        """Return the part of a batch of the denoiser's that belongs to the prompts; tensors inside are found."""
        return rows_of(value, len(self._sample), self._part)

    @property
    def arguments(self) -> dict[str, Any]:
        """The denoiser's arguments for the prompts, by name."""
        return self.conditional(self.batch_arguments)

    @property
    def resting(self) -> bool:
        """True while a further prediction is made, beside the loop's own."""
        return self._link.resting

    @property
    def batch_arguments(self) -> dict[str, Any]:
        """The denoiser's arguments for the whole batch, by name."""
        return dict(self._kwargs)

    def replace_arguments(self, **replaced: object) -> None:
        """Replace arguments of the denoiser for the whole batch; to be called before it."""
        self._kwargs = {**self._kwargs, **replaced}

    @property
    def _part(self) -> slice:
        """The rows of the prompts: the second block of the batch under classifier-free guidance, else the first."""
        n = len(self.latents)
        return slice(n, 2 * n) if self.guided else slice(0, n)

    def scaled(self, latents: Latents) -> Tensor:
        """Return latents as the denoiser takes them."""
        return self._scale(latents, self.timestep)

    def predict(self, latents: Latents, **replaced: object) -> Tensor:
        """Return the denoiser's output for the prompts at other latents, with gradient; no hook is called.

        Args:
            latents: Before scaling, one for each image.
            replaced: The denoiser's arguments that take the place of the loop's.
        """
        sample = self._with_latents(self.conditional(self._sample), latents)
        kwargs = {**self.arguments, "return_dict": False, **replaced}
        with self._link.at_rest():
            return self._denoiser(sample, *self.conditional(self._args), **kwargs)[0]

    def predict_all(self, latents: Latents) -> Tensor:
        """Return the denoiser's output for the whole batch of the loop, at other latents; no hook is called."""
        repeats = len(self._sample) // len(latents)
        sample = self._with_latents(self._sample, torch.cat([latents] * repeats))
        with self._link.at_rest():
            return self._denoiser(sample, *self._args, **{**self._kwargs, "return_dict": False})[0]

    def _with_latents(self, sample: Tensor, latents: Latents) -> Tensor:
        """Return a sample with these latents, scaled; an inpainting denoiser's further channels stay."""
        channels = latents.shape[1]
        return torch.cat([self.scaled(latents).to(sample.dtype), sample[:, channels:]], dim=1)


Before = Callable[[Denoising], Latents]
"""Returns the latents that the step goes on with, of the shape and dtype of those it got."""
After = Callable[[Denoising, Tensor], Tensor]
"""Returns the output that the loop gets in place of the denoiser's, for the whole batch."""
Stepped = Callable[[Denoising, Stepping], Latents]
"""Returns the latents that the loop gets in place of the scheduler's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Hook:
    rows: Callable[[], int]
    before: Before | None
    after: After | None
    stepped: Stepped | None


@contextmanager
def around_each_step(
    pipe: DiffusionPipeline,
    *,
    rows: Callable[[], int],
    before: Before | None = None,
    after: After | None = None,
    stepped: Stepped | None = None,
    flow: bool = False,
) -> Generator[None]:
    """Call functions around the denoiser at each step of the pipeline's loop, for the length of a `with`.

    Several can be in force at once; they are called in the order they were entered. Shallow copies of the pipeline
    share them, also with a scheduler copied deeply.

    Args:
        pipe: A diffusers pipeline with a UNet, or one of flow matching that asks for both predictions in one call.
        rows: Returns the number of images; 0 leaves the step alone.
        before: Called before the denoiser.
        after: Called after it.
        stepped: Called after the scheduler's step.
        flow: Whether the functions are those of flow matching too.
    """
    check_scheduler(pipe, flow=flow)
    link = _Link.of(pipe)
    hook = _Hook(rows=rows, before=before, after=after, stepped=stepped)
    link.hooks.append(hook)
    try:
        with link.connected(pipe):
            yield
    finally:
        link.hooks.remove(hook)


def check_scheduler(pipe: DiffusionPipeline, *, flow: bool = False) -> None:
    """Raise InputError for a pipeline whose scheduler is of flow matching, but for those that `flow` allows."""
    if hasattr(pipe.scheduler, "scale_model_input"):
        return
    if not (flow and "guidance" in backbone_of(pipe).abilities):
        raise InputError(
            f"guidance: expected a pipeline whose scheduler scales the denoiser's input, got {type(pipe).__name__} with"
            f" {type(pipe.scheduler).__name__}. Flow matching is not covered yet."
        )


_SHADOWED = ("set_timesteps", "scale_model_input", "step")


@dataclass(eq=False)
class _Link:
    """State shared by the hooks of one pipeline's scheduler and denoiser."""

    hooks: list[_Hook] = field(default_factory=list)
    users: int = 0
    sample: Tensor | None = None
    updated: Latents | None = None
    scheduler: Any = None
    calls: int = 0
    first: int | None = None
    entered: list[Denoising | None] = field(default_factory=list)
    done: Denoising | None = None
    untouched: Any = None
    resting: bool = False

    @classmethod
    def of(cls, pipe: DiffusionPipeline) -> "_Link":
        """Return the link that the pipeline's scheduler has already, or a new one."""
        shadow = vars(pipe.scheduler).get("step")
        return shadow.link if isinstance(shadow, _Shadow) else cls()

    @contextmanager
    def at_rest(self) -> Generator[None]:
        """Call no hook: what runs inside is not the loop's."""
        before, self.resting = self.resting, True
        try:
            yield
        finally:
            self.resting = before

    @contextmanager
    def connected(self, pipe: DiffusionPipeline) -> Generator[None]:
        """Put the hooks in place, for the first of several users."""
        self.users += 1
        try:
            if self.users > 1:
                yield
                return
            scheduler = pipe.scheduler
            methods = [name for name in _SHADOWED if hasattr(scheduler, name)]
            shadowed = {name: vars(scheduler)[name] for name in methods if name in vars(scheduler)}
            denoiser = called_denoiser(pipe)
            handles = [
                denoiser.register_forward_pre_hook(self._enter, with_kwargs=True),
                denoiser.register_forward_hook(self._leave),
            ]
            try:
                for name in methods:
                    setattr(scheduler, name, _Shadow(scheduler, name, self, shadowed.get(name)))
                yield
            finally:
                for name in methods:
                    vars(scheduler).pop(name, None)
                vars(scheduler).update(shadowed)
                for handle in handles:
                    handle.remove()
        finally:
            self.users -= 1

    def begin(self, scheduler: SchedulerMixin) -> None:
        """A new schedule was set."""
        self.scheduler, self.calls, self.first, self.sample, self.updated = scheduler, 0, None, None, None
        self.entered.clear()
        self.done = self.untouched = None

    def _enter(
        self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self.resting or not (self._scales or self._in_loop):
            return None
        sample, args, kwargs = sample_of(args, kwargs)
        if not self._scales:  # of flow matching: the denoiser takes the loop's latents as they are
            self.sample, self.updated = sample, None
        if self.sample is None:
            return None
        call = self._denoising(denoiser, sample, args, kwargs)
        self.entered.append(call)
        if call is None:
            return None
        start = call.latents
        for hook in self.hooks:
            if hook.before is not None and hook.rows():
                call.latents = hook.before(call).detach()
        if call.latents is not start:
            self.updated = call.latents
            repeats = len(sample) // len(start)
            sample = call._with_latents(sample, torch.cat([call.latents] * repeats))
        return (sample, *args), call.batch_arguments

    def _leave(self, denoiser: nn.Module, args: tuple[Any, ...], output: Output) -> Output | None:
        if self.resting or not self.entered:
            return None
        call = self.entered.pop()
        if call is None:
            return None
        self.done = call

        def changed(plain: Tensor) -> Tensor:
            for hook in self.hooks:
                if hook.after is not None and hook.rows():
                    plain = hook.after(call, plain)
            return plain

        return with_first(output, changed)

    def _denoising(
        self, denoiser: nn.Module, sample: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Denoising | None:
        """Return the call, or None where no hook wants it."""
        n = max((hook.rows() for hook in self.hooks), default=0)
        unscaled = self.sample
        if not n or unscaled is None:
            return None
        if len(sample) % n or len(unscaled) != len(sample):
            raise InputError(
                f"guidance: expected the denoiser to be asked for {n} images, got {len(sample)} latents."
                " Encode the prompts of this call while the guidance is in force."
            )
        timestep = torch.as_tensor(args[0] if args else kwargs["timestep"])
        return Denoising(
            first=self.calls == 0,
            step=self._step_at(timestep),
            total=len(self.scheduler.timesteps),
            timestep=timestep,
            latents=unscaled[:n],
            guided=len(sample) > n,
            _denoiser=denoiser,
            _scale=self.scaled,
            _sample=sample,
            _args=args,
            _kwargs=kwargs,
            _link=self,
        )

    @property
    def _scales(self) -> bool:
        """Whether the scheduler scales the denoiser's input, by which a loop is noticed."""
        return hasattr(self.scheduler, "scale_model_input")

    @property
    def _in_loop(self) -> bool:
        """Whether steps of the schedule that was set are left."""
        return self.scheduler is not None and (self.first or 0) + self.calls < len(self.scheduler.timesteps)

    def scaled(self, latents: Tensor, timestep: Tensor) -> Tensor:
        if not self._scales:
            return latents
        with self.at_rest():
            return self.scheduler.scale_model_input(latents, timestep)

    def after_step(self, result: Output, prediction: Tensor, options: Mapping[str, Any]) -> Output:
        """Return the result of the scheduler's step after the hooks."""
        call, self.done = self.done, None
        if call is None:
            return result

        def changed(latents: Latents) -> Latents:
            for hook in self.hooks:
                if hook.stepped is not None and hook.rows():
                    step = Stepping(prediction=prediction, previous=latents, scheduler=self.untouched, options=options)
                    latents = hook.stepped(call, step)
            return latents

        return with_first(result, changed)

    def before_step(self, scheduler: SchedulerMixin) -> None:
        """Keep a copy of the scheduler as it is before the first step, for those who make steps of their own."""
        if self.untouched is None and any(hook.stepped for hook in self.hooks):
            with self.at_rest():
                self.untouched = copy.deepcopy(scheduler)
            for name in _SHADOWED:
                vars(self.untouched).pop(name, None)

    def _step_at(self, timestep: Tensor) -> int:
        """Return the place in the schedule: an image-to-image loop begins in the middle, some schedules repeat."""
        if self.first is None:
            timesteps = torch.as_tensor(self.scheduler.timesteps).cpu()
            self.first = int((timesteps == timestep.reshape(-1)[0].cpu()).int().argmax())
        place = self.first + self.calls
        self.calls += 1
        return place


class _Shadow:
    """Stand-in for a scheduler's method on the instance; a deep copy of the scheduler has one of its own."""

    def __init__(self, scheduler: SchedulerMixin, name: str, link: _Link, shadowed: Callable[..., Any] | None) -> None:
        self.scheduler, self.name, self.link, self.shadowed = scheduler, name, link, shadowed
        # Pipelines look at the signatures of these methods to see what they take.
        self.__signature__ = inspect.signature(self._of_class)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Shadow":
        return _Shadow(copy.deepcopy(self.scheduler, memo), self.name, self.link, self.shadowed)

    @property
    def _method(self) -> Callable[..., Any]:
        """The method that was there: the class's, or what somebody else had put in its place."""
        return self._of_class if self.shadowed is None else self.shadowed

    @property
    def _of_class(self) -> Callable[..., Any]:
        return getattr(type(self.scheduler), self.name).__get__(self.scheduler)

    def __call__(self, *args: Any, **kwargs: Any) -> object:
        link = self.link
        if self.name == "set_timesteps":
            link.begin(self.scheduler)
        elif self.name == "scale_model_input" and not link.resting:
            link.scheduler = self.scheduler
            link.sample, link.updated = args[0] if args else kwargs["sample"], None
        elif self.name == "step":
            if link.updated is not None:
                args, kwargs = with_sample(args, kwargs, link.updated)
            link.sample, link.updated = None, None
            return self._stepped(args, kwargs)
        return self._method(*args, **kwargs)

    def _stepped(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Output:
        self.link.before_step(self.scheduler)
        bound = self.__signature__.bind(*args, **kwargs).arguments
        options = {key: value for key, value in bound.items() if key not in ("model_output", "timestep", "sample")}
        if "generator" in options:
            options["generator"] = cloned(options["generator"])
        return self.link.after_step(self._method(*args, **kwargs), bound["model_output"], options)
