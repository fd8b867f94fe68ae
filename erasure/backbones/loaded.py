"""A loaded pipeline as methods see it: what every family shares."""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, TypeVar, cast

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.loaders import TextualInversionLoaderMixin
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizer, PreTrainedTokenizerBase

from ..errors import InputError, reason, unknown_name
from ..io.text import check_unicode, composed
from .base import Ability
from .conditioning import Conditioning, Stream
from .picked import PickedTexts, PlacesOf
from .sampling_loop import SamplingLoop
from .schedule import NoiseSchedule
from .sites import Role, Site, Sites, has_role, sites_of

_LONGEST_SIDE = 4096  # of latents, far above any model's

Wrapped = TypeVar("Wrapped")

# Prompts at once. A CPU is no faster with more, which take memory: at this number a third of an encoder's own.
_ENCODED_ON_CPU, _ENCODED = 16, 64
# Lots of prompts whose states are kept whole until some are picked.
_LOTS = 16
# Values read of each weight for the fingerprint: training moves every tensor, so a few of each tell models apart.
_FINGERPRINT_VALUES = 64


@dataclass(frozen=True, eq=False)
class LoadedModel(ABC):
    """Base of the families; see `Backbone` for its members.

    Attributes:
        pipe: The pipeline.
    """

    covered: ClassVar[tuple[str, ...]] = ()
    denoiser_name: ClassVar[str]
    # Streams that the weights of a role read, by role.
    streams: ClassVar[Mapping[Role, str]]
    reads_clip: ClassVar[bool] = False
    # Noise schedule of the denoiser.
    schedule_kind: ClassVar[type[NoiseSchedule]]
    abilities: ClassVar[frozenset[Ability]]
    checkpoints: ClassVar[bool] = True
    loop: ClassVar[SamplingLoop] = SamplingLoop()
    original_names: ClassVar[Mapping[str, str]] = {}
    lora_prefix: ClassVar[str] = ""

    pipe: DiffusionPipeline

    @classmethod
    @abstractmethod
    def role_of(cls, name: str) -> Role:
        """Return the role of a parameter, from its name inside the denoiser."""

    @property
    @abstractmethod
    def family(self) -> str:
        """The model family; see `Backbone`."""

    @abstractmethod
    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """Return channels, rows and columns of the latents of an image; see `Backbone`."""

    @abstractmethod
    def text_encoders(self) -> dict[str, PreTrainedModel]:
        """Return the text encoders by name."""

    @abstractmethod
    def tokenizers(self) -> dict[str, PreTrainedTokenizerBase]:
        """Return the tokenizer of each text encoder; see `Backbone`."""

    @abstractmethod
    def _encode_distinct(self, prompts: Sequence[str], trailing: bool) -> Conditioning:
        """Return the encoded prompts, no two of which are equal."""

    @abstractmethod
    def _set_timesteps(self, scheduler: Any, steps: int) -> None:
        """Set the timesteps of a scheduler as the pipeline does."""

    @property
    def distilled(self) -> bool:
        return False

    @classmethod
    def stream_names(cls) -> tuple[str, ...]:
        """Return the names of the streams of which layers read the states directly."""
        return tuple(dict.fromkeys(cls.streams.values()))

    @property
    def denoiser(self) -> ModelMixin:
        return unwrapped(getattr(self.pipe, self.denoiser_name))

    @property
    def device(self) -> torch.device:
        return self.denoiser.device if _has_hooks(self.denoiser) else next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        first = next(self.denoiser.parameters())
        mixed = getattr(self.denoiser, "_keep_in_fp32_modules", None) or not first.is_floating_point()
        return self.denoiser.dtype if mixed or _has_hooks(self.denoiser) else first.dtype

    def components(self) -> dict[str, nn.Module]:
        """Return the modules that an edit may change, by name."""
        return {self.denoiser_name: self.denoiser, **self.text_encoders()}

    def component(self, name: str) -> nn.Module:
        if name not in self.components():
            raise unknown_name("component", name, self.components())
        return self.components()[name]

    def parameters(self, which: Callable[[str], bool]) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self._named_parameters() if which(name)}

    def weights(self, which: Callable[[str], bool]) -> dict[str, Tensor]:
        return {name: parameter.data for name, parameter in self.parameters(which).items()}

    def last_layers(self) -> Mapping[str, int]:
        """Return the number of a text encoder's layers that come before a state that is read, by its name.

        Negative numbers count the layers after it. All layers of an encoder that is left out do.
        """
        return {}

    @contextmanager
    def weights_present(self, *names: str) -> Generator[torch.device | None]:
        yield None

    def sites(self, roles: Collection[Role] | None = None, *, reads: str | None = None) -> dict[str, Site]:
        names = tuple(name for name, _ in self.denoiser.named_parameters())
        return {
            name: site
            for name, site in _every_site(type(self), names, tuple(self._columns.items())).items()
            if (roles is None or has_role(site, roles)) and (reads is None or site.reads == reads)
        }

    @property
    def _columns(self) -> Mapping[Role, int]:
        """Leading columns that a stream is multiplied with, for roles whose layers read more beside it."""
        return {}

    def encode(self, prompts: Sequence[str], *, trailing: bool = True) -> Conditioning:
        if isinstance(prompts, str) or not prompts:
            raise InputError(f"prompts: expected a sequence of texts, got {prompts!r}. Put them in a list.")
        prompts = [composed(prompt) for prompt in prompts]
        for prompt in prompts:
            check_unicode(prompt, "prompts")
        distinct = list(dict.fromkeys(prompts))
        encoded = self._encode_distinct(distinct, trailing)
        if len(distinct) == len(prompts):
            return encoded
        row_of = {prompt: row for row, prompt in enumerate(distinct)}
        return encoded.select([row_of[prompt] for prompt in prompts])

    def read(self, prompts: Sequence[str], *, trailing: bool = True) -> Conditioning:
        encoded = self.encode(prompts, trailing=trailing)
        return replace(encoded, streams=self._as_read(encoded.streams))

    @property
    def picked_at_once(self) -> int | None:
        return _LOTS * self._at_once

    def pick(self, prompts: Sequence[str], places_of: PlacesOf) -> PickedTexts:
        return PickedTexts.of(self.read(prompts), places_of)

    def _as_read(self, streams: Mapping[str, Stream]) -> Mapping[str, Stream]:
        """Return the states that the readers of each stream receive."""
        return streams

    def token_limits(self) -> dict[str, int]:
        return {name: tokenizer.model_max_length for name, tokenizer in self.tokenizers().items()}

    def unconditional(self) -> Conditioning:
        return self.encode([""])

    def negative(self, prompts: Sequence[str]) -> Conditioning:
        return self.encode(prompts)

    def text_arguments(self, conditioning: Conditioning, arguments: Mapping[str, Any]) -> dict[str, Any]:
        pooled = {} if conditioning.pooled is None else {"pooled_projections": conditioning.pooled}
        return {"encoder_hidden_states": conditioning.states, **pooled}

    def call_arguments(
        self, latents: Tensor, conditioning: Conditioning, negative: Conditioning | None, guidance_scale: float
    ) -> dict[str, Any]:
        arguments = {"latents": latents, "guidance_scale": guidance_scale, "prompt_embeds": conditioning.states}
        if conditioning.pooled is not None:
            arguments["pooled_prompt_embeds"] = conditioning.pooled
        if negative is not None:
            arguments["negative_prompt_embeds"] = negative.states
            if negative.pooled is not None:
                arguments["negative_pooled_prompt_embeds"] = negative.pooled
        return arguments

    def unpacked(self, latents: Tensor, height: int | None = None, width: int | None = None) -> Tensor:
        return latents

    def packed(self, latents: Tensor) -> Tensor:
        return latents

    def latents_in(self, sample: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        return sample

    def check_steps(self, steps: int) -> None:
        scheduler = copy.deepcopy(self.pipe.scheduler)
        kind, total = type(scheduler).__name__, scheduler.config.get("num_train_timesteps", steps)
        if not 1 <= steps <= total:
            raise InputError(
                f"steps: expected 1 to {total} for the model's {kind}, got {steps!r}. Give another number."
            )
        try:
            self._set_timesteps(scheduler, steps)
            finite = _steps_through(scheduler)
        except (ValueError, ArithmeticError, LookupError, RuntimeError, AssertionError, TypeError) as error:
            raise InputError(
                f"steps: expected a number that the model's {kind} takes, got {steps!r} ({reason(error)})."
                " Give another number, or use the model's own scheduler."
            ) from error
        if not finite:
            raise InputError(
                f"steps: expected a number at which the model's {kind} stays finite, got {steps!r}. Give a smaller one."
            )

    def _latent_sides(self, native: object, height: int | None, width: int | None, packing: int = 1) -> list[int]:
        """Return height and width of the latents of an image of the given size in pixels.

        Args:
            native: The model's own, as configured: one number for both, or height and width.
            height: Height in pixels; None is the model's own.
            width: Width in pixels; None is the model's own.
            packing: Number of latents along a side that are one token.
        """
        factor = self.pipe.vae_scale_factor
        for side, size in (("height", height), ("width", width)):
            if size is not None and (size <= 0 or size % (factor * packing)):
                raise InputError(f"{side}: expected a multiple of {factor * packing} pixels, got {size!r}. Round it.")
        sides = tuple(native) if isinstance(native, Sequence) else (native, native)
        if len(sides) != 2 or not all(type(side) is int and 0 < side <= _LONGEST_SIDE for side in sides):
            raise InputError(
                f"model: expected a sample_size of one or two whole numbers from 1 to {_LONGEST_SIDE} in the denoiser's"
                f" config.json, got {native!r}. Copy the file again, or write the size of its latents."
            )
        numbers = zip(cast("tuple[int, int]", sides), (height, width), strict=True)
        return [side if size is None else size // factor for side, size in numbers]

    def fingerprint(self) -> str:
        names, samples = [], []
        for name, parameter in sorted(self._named_parameters()):
            names.append(f"{name} {tuple(parameter.shape)}")
            samples.append(self._spread_values(name, parameter.detach()))
        digest = hashlib.sha256("\n".join(names).encode())
        digest.update(torch.cat(samples).cpu().numpy().tobytes())
        return digest.hexdigest()

    def _spread_values(self, name: str, weight: Tensor) -> Tensor:
        """Return the entries of a parameter that the fingerprint has."""
        return _spread(weight)

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for component, module in self.components().items():
            for name, parameter in module.named_parameters():
                if not _is_copy(name):
                    yield f"{component}.{name}", parameter

    @property
    def _at_once(self) -> int:
        """Number of prompts that are encoded at once."""
        return _ENCODED_ON_CPU if self.device.type == "cpu" else _ENCODED


@lru_cache(maxsize=8)  # of some models; the layers that attend to text are looked up at each step of a fit
def _every_site(family: type[LoadedModel], names: tuple[str, ...], columns: tuple[tuple[Role, int], ...]) -> Sites:
    kept = [name for name in names if not _is_copy(name)]
    return sites_of(kept, family.denoiser_name, family.role_of, family.streams, dict(columns))


def _is_copy(name: str) -> bool:
    """Return True for a parameter that `fuse_qkv_projections` made of others, and that stays when it is undone."""
    if ".pooler." in name:  # of Mochi, whose keys and values are one layer of their own
        return False
    return any(f".{layer}." in name for layer in ("to_qkv", "to_kv", "to_added_qkv"))


def _has_hooks(module: nn.Module) -> bool:
    """Return True if diffusers moves or casts weights at each pass, on which a model's `device` and `dtype` depend.

    Those properties look for the hooks ten times as slowly: two milliseconds each in a UNet of Stable Diffusion.
    """
    modules = [module]
    while modules:
        module = modules.pop()
        if "_diffusers_hook" in vars(module):
            return True
        modules += filter(None, vars(module)["_modules"].values())
    return False


def _steps_through(scheduler: Any) -> bool:
    """Return True if a scheduler goes through its timesteps, for one number instead of latents, and ends finite."""
    latents = torch.ones(1, 1, 1, 1)
    with torch.random.fork_rng(devices=[]):  # some draw noise
        for timestep in scheduler.timesteps.cpu():
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(latents, timestep)
            latents = scheduler.step(torch.full_like(latents, 0.1), timestep, latents, return_dict=False)[0]
    return bool(latents.isfinite().all())


def textual_inversion_applied(pipe: DiffusionPipeline, prompt: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the prompt with learned tokens of several vectors written out, as diffusers' pipelines do."""
    # Without such tokens there is nothing to write out, and tokenizers warn of long texts.
    known = cast("PreTrainedTokenizer", tokenizer)
    if isinstance(pipe, TextualInversionLoaderMixin) and any(token.endswith("_1") for token in known.get_added_vocab()):
        return str(pipe.maybe_convert_prompt(prompt, known))
    return prompt


def joined(lots: Sequence[Tensor]) -> Float[Tensor, "n tokens dim"]:
    """Return the rows of lots (n, tokens, dim), with zeros behind those of lots with fewer tokens."""
    longest = max(states.shape[1] for states in lots)
    return torch.cat([F.pad(states, (0, 0, 0, longest - states.shape[1])) for states in lots])


def other_names(key: str) -> tuple[str, ...]:
    """Return the names that files give a parameter of a text encoder, from one of them, which comes first.

    Versions of transformers differ in the part "text_model.".
    """
    return tuple(dict.fromkeys((key, key.removeprefix("text_model."), f"text_model.{key}")))


def unwrapped(module: Wrapped) -> Wrapped:
    """Return the module that torch.compile wrapped, or the module itself."""
    return getattr(module, "_orig_mod", module)


def called_denoiser(pipe: DiffusionPipeline) -> nn.Module:
    """Return the denoiser as the pipeline's loop calls it, which torch.compile may have wrapped."""
    unet = getattr(pipe, "unet", None)
    return unet if unet is not None else pipe.transformer


def denoiser_of(pipe: DiffusionPipeline) -> nn.Module:
    """Return the pipeline's UNet or transformer."""
    return unwrapped(called_denoiser(pipe))


def is_finite(tensor: Tensor) -> bool:
    """Return True if all entries are finite; by their sum, which needs no memory."""
    return bool(tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32)).isfinite())


def not_finite(name: str) -> InputError:
    """Return the error for a weight of a model that is not finite."""
    return InputError(f"model: expected finite weights, got inf or nan in {name!r}. Load or download the model again.")


def spread_step(entries: int) -> int:
    """Return the distance between the entries of a tensor that the fingerprint has."""
    return -(-entries // _FINGERPRINT_VALUES)


def _spread(weight: Tensor) -> Tensor:
    """Return some entries of a tensor, spread evenly in logical order, as float16.

    By index rather than by reshaping, which would copy a tensor in channels-last order whole.
    """
    if weight.device.type == "meta":
        raise InputError("fingerprint: expected weights in memory, got a model offloaded to disk. Load it whole.")
    step = spread_step(weight.numel())
    if weight.is_contiguous():
        return weight.view(-1)[::step].to(torch.float16)
    flat = torch.arange(0, weight.numel(), step, device=weight.device)
    return weight[torch.unravel_index(flat, weight.shape)].to(torch.float16)
