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
from ..backbones.base import Ability, Backbone
from ..backbones.loaded import called_denoiser
from ..errors import InputError
from .batches import Latents, Output, Stepping, cloned, sample_of, with_first, with_sample
from .denoising import Denoising

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
    flow: Ability | None = None,
) -> Generator[None]:
    """Call functions around the denoiser at each step of the pipeline's loop, for the length of a `with`.

    Several can be in force at once; they are called in the order they were entered. Shallow copies of the pipeline
    share them, also with a scheduler copied deeply.

    Args:
        pipe: A diffusers pipeline with a UNet, or one of flow matching.
        rows: Returns the number of images; 0 leaves the step alone.
        before: Called before the denoiser.
        after: Called after it.
        stepped: Called after the scheduler's step.
        flow: Ability of the models of flow matching that the functions are for too; None is for none.
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


def check_scheduler(pipe: DiffusionPipeline, *, flow: Ability | None = None) -> None:
    """Raise InputError for a pipeline whose scheduler is of flow matching, but for models with the ability `flow`."""
    if hasattr(pipe.scheduler, "scale_model_input"):
        return
    if flow is None or flow not in backbone_of(pipe).abilities:
        raise InputError(
            f"guidance: expected a pipeline whose scheduler scales the denoiser's input, got {type(pipe).__name__} with"
            f" {type(pipe.scheduler).__name__}. Flow matching is not covered yet."
        )


_SHADOWED = ("set_timesteps", "scale_model_input", "step")


@dataclass(eq=False)
class _Link:
    """State shared by the hooks of one pipeline's scheduler and denoiser."""

    backbone: Backbone | None  # of flow matching, whose latents may be packed
    hooks: list[_Hook] = field(default_factory=list)
    users: int = 0
    sample: Tensor | None = None
    updated: Tensor | None = None
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
        scales = hasattr(pipe.scheduler, "scale_model_input")
        return shadow.link if isinstance(shadow, _Shadow) else cls(backbone=None if scales else backbone_of(pipe))

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
        if self.resting:
            return None
        sample, args, kwargs = sample_of(args, kwargs)
        if (
            self.backbone is not None and sample is self.sample
        ):  # the second call of a step, for the unconditional prompt
            return (sample if self.updated is None else self.updated.to(sample.dtype), *args), kwargs
        if not (self._scales or self._in_loop):
            return None
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
            self.updated = call.latents if self.backbone is None else self.backbone.packed(call.latents)
            repeats = len(sample) // len(start)
            sample = call.with_latents(sample, torch.cat([call.latents] * repeats))
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
            latents=unscaled[:n] if self.backbone is None else self.backbone.latents_in(unscaled[:n], kwargs),
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
        if self.backbone is not None:
            return self.backbone.packed(latents)
        with self.at_rest():
            return self.scheduler.scale_model_input(latents, timestep)

    def after_step(self, result: Output, prediction: Tensor, options: Mapping[str, Any]) -> Output:
        """Return the result of the scheduler's step after the hooks."""
        call, self.done = self.done, None
        if call is None or not any(hook.stepped for hook in self.hooks):
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
            level = timestep.reshape(-1)[0].cpu()
            if self.backbone is not None and not (timesteps == level).any():  # some denoisers take shares of the whole
                level = timesteps[(timesteps - level * self.backbone.schedule.total).abs().argmin()]
            self.first = int((timesteps == level).int().argmax())
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
