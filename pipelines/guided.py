"""Guidances as diffusers pipelines: guidance as a part of the call of an ordinary pipeline."""

import hashlib
import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar, cast

from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from huggingface_hub import hf_hub_download  # pyright: ignore[reportUnknownVariableType] - untyped dicts
from safetensors.torch import load
from torch import Tensor

from erasure.backbones.sd import StableDiffusion
from erasure.backbones.sdxl import StableDiffusionXL
from erasure.errors import InputError
from erasure.guidance.adavd import AdaVDGuidance
from erasure.guidance.attend_and_excite import AttendAndExcite
from erasure.guidance.base import Guidance
from erasure.guidance.capsule import CapsuleGuidance
from erasure.guidance.casteer import CASteerGuidance
from erasure.guidance.localised import LocalisedRemoval
from erasure.guidance.negative_prompt import NegativePromptGuidance
from erasure.guidance.safree import SAFREEGuidance
from erasure.guidance.semantic_surgery import SemanticSurgeryGuidance
from erasure.guidance.sld import SafeLatentDiffusion
from erasure.guidance.spm import SPMGuidance

from .signatures import with_call

TENSORS = "guidance.safetensors"
"""File of an export with the tensors of its removals."""


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
    # Settings of the removals of an exported model, which act in every call, and the hash of the file of their tensors.
    recorded: tuple[dict[str, Any], ...] = ()
    recorded_tensors: str = ""

    def __call__(self, *args: object, concepts: Sequence[str] | None = None, **kwargs: object) -> Any:
        # The base pipeline's, which a mixin cannot name.
        base = super().__call__  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]
        call = cast("Callable[..., Any]", base)
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
            name: tuple(cast("list[Any]", value)) if isinstance(value, list) else value
            for name, value in settings.items()
        }
        with (
            self._recorded_in_force(),
            self.guidance(concepts=tuple(concepts), **lists).applied_to(cast(DiffusionPipeline, self)),
        ):
            return call(*args, **kwargs)

    @contextmanager
    def _recorded_in_force(self) -> Generator[None]:
        tensors: Mapping[str, Tensor] = {}
        if self.recorded_tensors:
            tensors = _fitted(cast(DiffusionPipeline, self), self.recorded_tensors)
        with ExitStack() as stack:
            for i, settings in enumerate(self.recorded):
                fitted = {name: _below(f"guidance.{i}.{name}.", tensors) for name in self.guidance.fitted}
                stack.enter_context(self.guidance(**settings, **fitted).applied_to(cast(DiffusionPipeline, self)))
            yield


def _fitted(pipe: DiffusionPipeline, sha256: str) -> Mapping[str, Tensor]:
    """Return the tensors of the removals of an exported model, from the file beside its weights.

    Raises:
        InputError: The file is missing, or is not the one that was exported.
    """
    folder = Path(str(pipe.name_or_path))
    try:
        path = folder / TENSORS if folder.is_dir() else Path(hf_hub_download(str(pipe.name_or_path), TENSORS))
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(
            f"pipeline: expected {TENSORS} in {str(pipe.name_or_path)!r}, got {type(error).__name__}. Load the whole"
            " export, from where it was written to."
        ) from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise InputError(f"{path}: expected the sha256 {sha256[:12]}, got {digest[:12]}. Export the model again.")
    return load(content)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


GuidedClass = TypeVar("GuidedClass", bound=type[GuidedMixin])


def _settings(guidance: type[Guidance]) -> dict[str, Any]:
    """Return a guidance's settings with their defaults, the concepts apart."""
    factories = {item.name: item.default_factory() for item in fields(guidance) if item.default_factory is not MISSING}
    return {item.name: item.default for item in fields(guidance) if item.default is not MISSING} | factories


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


@_with_guided_signature
class StableDiffusionCasteerPipeline(GuidedMixin, StableDiffusionPipeline):
    """Text to image with Stable Diffusion 1.x and 2.x, concepts' directions mirrored; see `CASteerGuidance`."""

    guidance = CASteerGuidance
    backbone = StableDiffusion


@_with_guided_signature
class StableDiffusionXLCasteerPipeline(GuidedMixin, StableDiffusionXLPipeline):
    """Text to image with Stable Diffusion XL, concepts' directions mirrored; see `CASteerGuidance`."""

    guidance = CASteerGuidance
    backbone = StableDiffusionXL


@_with_guided_signature
class StableDiffusionCapsulePipeline(GuidedMixin, StableDiffusionPipeline):
    """Text to image with Stable Diffusion 1.x and 2.x, concepts' directions gated away; see `CapsuleGuidance`."""

    guidance = CapsuleGuidance
    backbone = StableDiffusion


@_with_guided_signature
class StableDiffusionXLCapsulePipeline(GuidedMixin, StableDiffusionXLPipeline):
    """Text to image with Stable Diffusion XL, concepts' directions gated away; see `CapsuleGuidance`."""

    guidance = CapsuleGuidance
    backbone = StableDiffusionXL


@_with_guided_signature
class StableDiffusionSpmPipeline(GuidedMixin, StableDiffusionPipeline):
    """Text to image with Stable Diffusion 1.x and 2.x, patches by the prompt; see `SPMGuidance`."""

    guidance = SPMGuidance
    backbone = StableDiffusion


@_with_guided_signature
class StableDiffusionXLSpmPipeline(GuidedMixin, StableDiffusionXLPipeline):
    """Text to image with Stable Diffusion XL, patches by the prompt; see `SPMGuidance`."""

    guidance = SPMGuidance
    backbone = StableDiffusionXL
