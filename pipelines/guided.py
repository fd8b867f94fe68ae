"""Guidances as diffusers pipelines: guidance as a part of the call of an ordinary pipeline."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, fields
from typing import Any, TypeVar, cast

from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from erasure.backbones.sd import StableDiffusion
from erasure.backbones.sdxl import StableDiffusionXL
from erasure.errors import InputError
from erasure.guidance.adavd import AdaVDGuidance
from erasure.guidance.attend_and_excite import AttendAndExcite
from erasure.guidance.base import Guidance
from erasure.guidance.localised import LocalisedRemoval
from erasure.guidance.negative_prompt import NegativePromptGuidance
from erasure.guidance.safree import SAFREEGuidance
from erasure.guidance.semantic_surgery import SemanticSurgeryGuidance
from erasure.guidance.sld import SafeLatentDiffusion

from .signatures import with_call


class GuidedMixin:
    """Stable Diffusion with one of the guidances: its call takes the concepts and the settings of the guidance.

    The call is that of the base pipeline, with its parameters and results, and these further keyword arguments; without
    `concepts` it is the base pipeline's call, with the recorded guidance of an exported model.

    Args:
        concepts: Words or phrases as they stand in the prompts; a prompt without any is sampled as by the base.
        preserve, anchor, alpha, ...: The settings of the guidance; the signature has them all.

    Raises:
        InputError: Settings without concepts, settings out of range, embeddings in the place of prompts; it is a
            ValueError.
    """

    guidance: Any  # a class of guidances with concepts
    backbone: type[StableDiffusion]
    # Settings of the removals of an exported model, which act in every call.
    recorded: tuple[dict[str, Any], ...] = ()

    def __call__(self, *args: object, concepts: Sequence[str] | None = None, **kwargs: object) -> Any:
        call: Callable[..., Any] = super().__call__  # pyright: ignore[reportAttributeAccessIssue] - the base pipeline's
        settings: dict[str, Any] = {name: kwargs.pop(name) for name in _settings(self.guidance) if name in kwargs}
        if concepts is None:
            if settings:
                raise InputError(
                    f"concepts: expected the words to act on, got none, but {', '.join(settings)}."
                    " Name them, as in concepts=['cat']."
                )
            with self._recorded_in_force():
                return call(*args, **kwargs)
        if isinstance(concepts, str):
            raise InputError(f"concepts: expected a list of words, got {concepts!r}. Write concepts=[{concepts!r}].")
        lists: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
        }
        with (
            self._recorded_in_force(),
            self.guidance(concepts=tuple(concepts), **lists).applied_to(cast(DiffusionPipeline, self)),
        ):
            return call(*args, **kwargs)

    @contextmanager
    def _recorded_in_force(self) -> Iterator[None]:
        with ExitStack() as stack:
            for settings in self.recorded:
                stack.enter_context(self.guidance(**settings).applied_to(cast(DiffusionPipeline, self)))
            yield


GuidedClass = TypeVar("GuidedClass", bound=type[GuidedMixin])


def _settings(guidance: type[Guidance]) -> dict[str, Any]:
    """Return a guidance's settings with their defaults, the concepts apart."""
    return {item.name: item.default for item in fields(guidance) if item.default is not MISSING}


def _with_guided_signature(pipeline: GuidedClass) -> GuidedClass:
    """Give a pipeline class a call that shows what it takes, however the base's call changes."""
    settings = {"concepts": None, **_settings(pipeline.guidance)}
    further = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default) for name, default in settings.items()
    ]
    return with_call(pipeline, GuidedMixin.__call__, further)


@_with_guided_signature
class StableDiffusionLocalisedPipeline(GuidedMixin, StableDiffusionPipeline):
    """Text to image with Stable Diffusion 1.x and 2.x, and removal where a concept is; see `LocalisedRemoval`."""

    guidance = LocalisedRemoval
    backbone = StableDiffusion


@_with_guided_signature
class StableDiffusionXLLocalisedPipeline(GuidedMixin, StableDiffusionXLPipeline):
    """Text to image with Stable Diffusion XL, and removal where a concept is; see `LocalisedRemoval`."""

    guidance = LocalisedRemoval
    backbone = StableDiffusionXL


@_with_guided_signature
class StableDiffusionAttendExcitePipeline(GuidedMixin, StableDiffusionPipeline):
    """Text to image with Stable Diffusion 1.x and 2.x, and Attend-and-Excite; see `AttendAndExcite`."""

    guidance = AttendAndExcite
    backbone = StableDiffusion


@_with_guided_signature
class StableDiffusionXLAttendExcitePipeline(GuidedMixin, StableDiffusionXLPipeline):
    """Text to image with Stable Diffusion XL, and Attend-and-Excite; see `AttendAndExcite`."""

    guidance = AttendAndExcite
    backbone = StableDiffusionXL


@_with_guided_signature
class StableDiffusionNegativePromptPipeline(GuidedMixin, StableDiffusionPipeline):
    """Text to image with Stable Diffusion 1.x and 2.x, concepts as negative prompt; see `NegativePromptGuidance`."""

    guidance = NegativePromptGuidance
    backbone = StableDiffusion


@_with_guided_signature
class StableDiffusionXLNegativePromptPipeline(GuidedMixin, StableDiffusionXLPipeline):
    """Text to image with Stable Diffusion XL, concepts as negative prompt; see `NegativePromptGuidance`."""

    guidance = NegativePromptGuidance
    backbone = StableDiffusionXL


@_with_guided_signature
class StableDiffusionSldPipeline(GuidedMixin, StableDiffusionPipeline):
    """Text to image with Stable Diffusion 1.x and 2.x, and guidance away from concepts; see `SafeLatentDiffusion`."""

    guidance = SafeLatentDiffusion
    backbone = StableDiffusion


@_with_guided_signature
class StableDiffusionXLSldPipeline(GuidedMixin, StableDiffusionXLPipeline):
    """Text to image with Stable Diffusion XL, and guidance away from concepts; see `SafeLatentDiffusion`."""

    guidance = SafeLatentDiffusion
    backbone = StableDiffusionXL


@_with_guided_signature
class StableDiffusionSafreePipeline(GuidedMixin, StableDiffusionPipeline):
    """Text to image with Stable Diffusion 1.x and 2.x, without concepts' subspace; see `SAFREEGuidance`."""

    guidance = SAFREEGuidance
    backbone = StableDiffusion


@_with_guided_signature
class StableDiffusionXLSafreePipeline(GuidedMixin, StableDiffusionXLPipeline):
    """Text to image with Stable Diffusion XL, without concepts' subspace; see `SAFREEGuidance`."""

    guidance = SAFREEGuidance
    backbone = StableDiffusionXL


@_with_guided_signature
class StableDiffusionSemanticSurgeryPipeline(GuidedMixin, StableDiffusionPipeline):
    """Text to image with Stable Diffusion 1.x and 2.x, less concepts' directions; see `SemanticSurgeryGuidance`."""

    guidance = SemanticSurgeryGuidance
    backbone = StableDiffusion


@_with_guided_signature
class StableDiffusionXLSemanticSurgeryPipeline(GuidedMixin, StableDiffusionXLPipeline):
    """Text to image with Stable Diffusion XL, less concepts' directions; see `SemanticSurgeryGuidance`."""

    guidance = SemanticSurgeryGuidance
    backbone = StableDiffusionXL


@_with_guided_signature
class StableDiffusionAdavdPipeline(GuidedMixin, StableDiffusionPipeline):
    """Text to image with Stable Diffusion 1.x and 2.x, values without concepts; see `AdaVDGuidance`."""

    guidance = AdaVDGuidance
    backbone = StableDiffusion


@_with_guided_signature
class StableDiffusionXLAdavdPipeline(GuidedMixin, StableDiffusionXLPipeline):
    """Text to image with Stable Diffusion XL, values without concepts; see `AdaVDGuidance`."""

    guidance = AdaVDGuidance
    backbone = StableDiffusionXL
