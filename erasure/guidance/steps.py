"""Hooks between a pipeline's loop and its denoiser, at every step of any diffusers pipeline.

The loop of a pipeline scales its latents (`scheduler.scale_model_input`), asks the denoiser, and hands latents and
prediction to `scheduler.step`. Whoever changes the latents must reach all three. Here the denoiser is hooked as a
module and the scheduler's methods are shadowed on the instance, so no loop is written again and whatever diffusers adds
to one is kept: image to image, inpainting, several images a prompt, callbacks, offloading.

Calls of the denoiser between two steps of a scheduler of flow matching belong to one step. The first is for the prompts
or for both predictions; in loops of two calls the second is for the unconditional ones.
"""

import copy
import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor, nn

from ..backbones import backbone_of
from ..backbones.base import Ability, Backbone
from ..backbones.loaded import called_denoiser
from ..backbones.schedule import Flow
from ..errors import InputError
from .batches import Latents, Output, Sample, Stepping, cloned, sample_of, with_first, with_sample
from .denoising import Denoising

Before = Callable[[Denoising], Latents | None]
"""Returns the latents that the step goes on with, of the shape and dtype of those it got; None for these."""
After = Callable[[Denoising, Tensor], Tensor]
"""Returns the output that the loop gets in place of the denoiser's, for the whole batch, unconditional rows first."""
Stepped = Callable[[Denoising, Stepping], Latents]
"""Returns the latents that the loop gets in place of the scheduler's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Hook:
    rows: Callable[[], int]
    before: Before | None
    after: After | None
    stepped: Stepped | None
    guided: str


@contextmanager
def around_each_step(
    pipe: DiffusionPipeline,
    *,
    rows: Callable[[], int],
    before: Before | None = None,
    after: After | None = None,
    stepped: Stepped | None = None,
    needs: Ability = "unet guidance",
    guided: str = "",
) -> Generator[None]:
    """Call functions around the denoiser at each step of the pipeline's loop, for the length of a `with`.

    Several can be in force at once; they are called in the order they were entered. Shallow copies of the pipeline
    share them, also with a scheduler copied deeply.

    Args:
        pipe: A diffusers pipeline.
        rows: Returns the number of images; 0 leaves the step alone.
        before: Called before the denoiser.
        after: Called after it.
        stepped: Called after the scheduler's step.
        needs: Ability of the models that the functions are for.
        guided: Name of a guidance that needs the unconditional predictions too: `after` is called when both are known,
            and a loop without them is refused. "" needs none.
    """
    check_covered(pipe, needs)
    link = _Link.of(pipe)
    hook = _Hook(rows=rows, before=before, after=after, stepped=stepped, guided=guided)
    link.hooks.append(hook)
    try:
        with link.connected(pipe):
            yield
    finally:
        link.hooks.remove(hook)


def check_covered(pipe: DiffusionPipeline, needs: Ability) -> None:
    """Raise InputError for a pipeline of a family without an ability."""
    if needs not in backbone_of(pipe).abilities:
        raise InputError(
            f"guidance: expected a model that this guidance is written for, got {type(pipe).__name__}. `erasure models`"
            " lists the guidances of each family."
        )


_SHADOWED = ("set_timesteps", "scale_model_input", "step")


@dataclass(eq=False)
class _Link:
    """State shared by the hooks of one pipeline's scheduler and denoiser."""

    backbone: Backbone
    hooks: list[_Hook] = field(default_factory=list)
    users: int = 0
    sample: Sample | None = None
    updated: Tensor | None = None
    scheduler: Any = None
    calls: int = 0  # first calls of a step
    calls_of_step: int = 0
    first: int | None = None
    current: Denoising | None = None
    entered: list[Denoising | None] = field(default_factory=list)
    done: Denoising | None = None
    untouched: Any = None
    resting: bool = False

    @classmethod
    def of(cls, pipe: DiffusionPipeline) -> "_Link":
        """Return the link that the pipeline's scheduler has already, or a new one."""
        shadow = vars(pipe.scheduler).get("step")
        return shadow.link if isinstance(shadow, _Shadow) else cls(backbone=backbone_of(pipe))

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
        self.done = self.current = self.untouched = None
        self.calls_of_step = 0

    def _enter(
        self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self.resting:
            return None
        sample, arguments = sample_of(denoiser, args, kwargs)
        if not self.scales:  # the denoiser takes the loop's latents as they are
            if self.calls_of_step == 0:
                if not self._in_loop:
                    return None
                self.sample, self.updated, self.current = sample, None, None
            self.calls_of_step += 1
            if self.calls_of_step > 1:
                return self._enter_again(sample, arguments)
        if self.sample is None:
            return None
        call = self.current = self._denoising(denoiser, sample, arguments)
        self.entered.append(call)
        if call is None:
            return None
        for hook in self.hooks:
            if hook.before is not None and hook.rows():
                moved = hook.before(call)
                if moved is not None and moved is not call.latents:
                    sample = call.move(moved.detach())
                    self.updated = call.latents if self.scales else self.backbone.packed(call.latents)
        return (sample,), call.batch_arguments

    def _enter_again(self, sample: Sample, arguments: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return the arguments of a further call of a step: that for the unconditional predictions, or another."""
        call = self.current
        if call is None:
            return None
        if self.updated is not None and isinstance(sample, Tensor):
            sample = torch.cat([self.updated] * (len(sample) // len(self.updated))).to(sample.dtype)
        if call.in_two_calls and self.calls_of_step == 2:
            call.guided = True
            arguments = call.unconditional_arguments(arguments)
            self.entered.append(call)
        return (sample,), arguments

    def _leave(self, denoiser: nn.Module, args: tuple[Any, ...], output: Output) -> Output | None:
        if self.resting or not self.entered:
            return None
        call = self.entered.pop()
        if call is None:
            return None
        self.done = call
        part = call.guided if call.in_two_calls else None
        hooks = [hook for hook in self.hooks if part is None or bool(hook.guided) == part]

        def change(plain: Tensor) -> Tensor:
            for hook in hooks:
                if hook.after is not None and hook.rows():
                    plain = hook.after(call, plain)
            return plain

        if any(hook.after is not None and hook.rows() for hook in hooks):
            output = call.changed(output, change)
        if call.in_two_calls and not call.guided:
            call.keep(output)
        return output

    def _denoising(self, denoiser: nn.Module, sample: Sample, arguments: dict[str, Any]) -> Denoising | None:
        """Return the call, or None where no hook wants it."""
        n = max((hook.rows() for hook in self.hooks), default=0)
        unscaled = self.sample
        if not n or unscaled is None:
            return None
        in_two_calls = self.backbone.loop.unconditional == "two calls"
        if len(sample) % n or (in_two_calls and len(sample) > n) or len(unscaled) != len(sample):
            raise InputError(
                f"guidance: expected the denoiser to be asked for {n} images, got {len(sample)} latents."
                " Encode the prompts of this call while the guidance is in force."
            )
        guided = len(sample) > n
        if not (guided or in_two_calls):
            self._refuse_unguided()
        first, place = self.calls == 0, self._step_at(arguments)
        return Denoising(
            first=first,
            step=place,
            total=len(self.scheduler.timesteps),
            timestep=self._timestep(place, arguments),
            images=n,
            guided=guided,
            _denoiser=denoiser,
            _backbone=self.backbone,
            _unpacked=lambda: self.backbone.latents_in(cast("Tensor", unscaled)[:n], arguments),
            _scale=self.scaled,
            _sample=sample,
            _arguments=arguments,
            _link=self,
        )

    def _refuse_unguided(self) -> None:
        """Raise InputError where a hook needs unconditional predictions, which this step has none of."""
        for hook in self.hooks:
            if hook.guided and hook.rows():
                raise InputError(
                    f"{hook.guided}: expected classifier-free guidance, got a loop without it. Sample with a guidance"
                    " scale above 1; a guidance-distilled model needs a negative prompt and a true_cfg_scale too."
                )

    @property
    def scales(self) -> bool:
        """Whether the loop has the scheduler scale the denoiser's input, by which it is noticed."""
        return not issubclass(self.backbone.schedule_kind, Flow)

    @property
    def _in_loop(self) -> bool:
        """Whether steps of the schedule that was set are left."""
        return self.scheduler is not None and (self.first or 0) + self.calls < len(self.scheduler.timesteps)

    def scaled(self, latents: Tensor, timestep: Tensor) -> Tensor:
        if not self.scales:
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
        """End the step's calls; before the first step, keep a copy of the scheduler for those who make steps too."""
        if self.current is not None and not self.current.guided:
            self._refuse_unguided()
        self.calls_of_step, self.current = 0, None
        if self.untouched is None and any(hook.stepped for hook in self.hooks):
            with self.at_rest():
                self.untouched = copy.deepcopy(scheduler)
            for name in _SHADOWED:
                vars(self.untouched).pop(name, None)

    def _step_at(self, arguments: Mapping[str, Any]) -> int:
        """Return the place in the schedule: an image-to-image loop begins in the middle, some schedules repeat."""
        if self.first is None:
            if self.scales:
                level = torch.as_tensor(arguments["timestep"]).reshape(-1)[0].cpu()
                self.first = int((torch.as_tensor(self.scheduler.timesteps).cpu() == level).int().argmax())
            else:
                # Pipelines of flow matching tell the scheduler; each tells its denoiser in a form of its own.
                self.first = int(getattr(self.scheduler, "begin_index", None) or 0)
        place = self.first + self.calls
        self.calls += 1
        return place

    def _timestep(self, place: int, arguments: Mapping[str, Any]) -> Tensor:
        """Return the timestep of the schedule."""
        if self.scales:
            return torch.as_tensor(arguments["timestep"])
        return self.scheduler.sigmas[place : place + 1] * self.backbone.schedule.total


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
        elif self.name == "scale_model_input" and link.scales and not link.resting:
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
