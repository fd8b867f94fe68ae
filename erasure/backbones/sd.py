"""Stable Diffusion 1.x and 2.x, and whatever else has their classes: one CLIP text encoder, one UNet."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import TextualInversionLoaderMixin
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel

from ..errors import InputError, unknown_name
from .conditioning import PADDED, TextStates, first_end_of_text, tokenized
from .schedule import Discrete, PredictionType, Timestep
from .sites import Role, Site, has_role, sites_of, unet_role

Read = TypeVar("Read")

# Prompts at once. A CPU is no faster with more, which take memory: at this number a third of an encoder's own.
_ENCODED_ON_CPU, _ENCODED = 16, 64
# Values read of each weight for the fingerprint: training moves every tensor, so a few of each tell models apart.
_FINGERPRINT_VALUES = 64


@dataclass(frozen=True, eq=False)
class StableDiffusion:
    """A backbone of the Stable Diffusion 1.x and 2.x classes; see `Backbone` for what its members give."""

    covered: ClassVar[tuple[str, ...]] = ("Stable Diffusion 1.x", "Stable Diffusion 2.x")

    pipe: Any

    def __post_init__(self) -> None:
        _ = self.prediction_type  # a scheduler that cannot be used is refused at once

    @classmethod
    def covers(cls, pipe: Any) -> bool:
        """Whether the pipeline has one CLIP text encoder and a UNet with cross-attention."""
        return (
            isinstance(unwrapped(getattr(pipe, "unet", None)), UNet2DConditionModel)
            and isinstance(unwrapped(getattr(pipe, "text_encoder", None)), CLIPTextModel)
            and getattr(pipe, "text_encoder_2", None) is None
        )

    @property
    def family(self) -> str:
        # 2.x reads the 1024-wide OpenCLIP; a small model of its kind is told by what it predicts.
        is_second = self._unet.config.cross_attention_dim == 1024 or self.prediction_type == "v_prediction"
        return "sd2" if is_second else "sd1"

    @property
    def device(self) -> torch.device:
        return self._unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self._unet.dtype

    @property
    def prediction_type(self) -> PredictionType:
        found = self.pipe.scheduler.config.prediction_type
        if found not in ("epsilon", "v_prediction"):
            raise InputError(
                f"scheduler.prediction_type: expected 'epsilon' or 'v_prediction', got {found!r}. Use another."
            )
        return found

    @property
    def alphas_cumprod(self) -> Float[Tensor, " t"]:
        return self.pipe.scheduler.alphas_cumprod.to(self.device, torch.float32)

    @property
    def schedule(self) -> Discrete:
        return Discrete(alphas_cumprod=self.alphas_cumprod, prediction_type=self.prediction_type)

    def sites(self, roles: Collection[Role] | None = None, *, reads: str | None = None) -> dict[str, Site]:
        names = [name for name, _ in self._unet.named_parameters()]
        streams = {"cross.k": "text", "cross.v": "text", "pooled.in": "pooled"}
        every = sites_of(names, "unet", unet_role, streams, self._pooled_columns)
        return {
            name: site
            for name, site in every.items()
            if (roles is None or has_role(site, roles)) and (reads is None or site.reads == reads)
        }

    @property
    def _pooled_columns(self) -> Mapping[Role, int]:
        """The leading columns of the first projection of the sentence vector; the others read sizes."""
        return {}

    @property
    def denoiser(self) -> nn.Module:
        return self._unet

    @property
    def _unet(self) -> Any:
        return unwrapped(self.pipe.unet)

    def components(self) -> dict[str, nn.Module]:
        """Return the modules that an edit may change, by name."""
        return {"unet": self._unet, "text_encoder": unwrapped(self.pipe.text_encoder)}

    def component(self, name: str) -> nn.Module:
        if name not in self.components():
            raise unknown_name("component", name, self.components())
        return self.components()[name]

    def tokenizers(self) -> dict[str, Any]:
        return {"text_encoder": self.pipe.tokenizer}

    def encode(self, prompts: Sequence[str], *, trailing: bool = True) -> TextStates:
        if isinstance(prompts, str) or not prompts:
            raise InputError(f"prompts: expected a sequence of texts, got {prompts!r}. Put them in a list.")
        distinct = list(dict.fromkeys(prompts))
        encoded = self._encode_distinct(distinct, trailing)
        if len(distinct) == len(prompts):
            return encoded
        at = {prompt: row for row, prompt in enumerate(distinct)}
        return encoded.select([at[prompt] for prompt in prompts])

    def encode_ids(self, ids: Int[Tensor, "n tokens"]) -> TextStates:
        tokenizer = self.pipe.tokenizer
        if ids.shape[1] != tokenizer.model_max_length:
            raise InputError(
                f"ids: expected rows of {tokenizer.model_max_length} tokens, got {ids.shape[1]}. Pad or cut them."
            )
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        return self._assembled(texts, ids, (((0, 0),) * ids.shape[1],) * len(ids), self._states_of_ids(ids))

    def unconditional(self) -> TextStates:
        return self.encode([""])

    def text_projections(self) -> dict[str, nn.Linear]:
        return {
            f"unet.{name}": module
            for name, module in self._unet.named_modules()
            if name.endswith(("attn2.to_k", "attn2.to_v"))
        }

    def parameters(self, which: Callable[[str], bool]) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self._named_parameters() if which(name)}

    def predict(
        self, latents: Float[Tensor, "n c h w"], timestep: Timestep, states: TextStates
    ) -> Float[Tensor, "n c h w"]:
        latents = latents.to(self.device, self.dtype)
        return self._unet(
            latents,
            timestep.to(self.device).expand(len(latents)),
            encoder_hidden_states=states.states.to(self.device, self.dtype),
            added_cond_kwargs=self._added_conditions(latents, states),
            return_dict=False,
        )[0]

    def to_epsilon(
        self,
        output: Float[Tensor, "n c h w"],
        latents: Float[Tensor, "n c h w"],
        timestep: Timestep,
    ) -> Float[Tensor, "n c h w"]:
        if self.prediction_type == "epsilon":
            return output
        signal = self.alphas_cumprod[timestep.to(self.device)].reshape(-1, 1, 1, 1)
        # v = sqrt(alpha) eps - sqrt(1 - alpha) x0 and x = sqrt(alpha) x0 + sqrt(1 - alpha) eps (arXiv:2202.00512)
        return (signal.sqrt() * output + (1 - signal).sqrt() * latents.to(output)).to(output.dtype)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        native, factor = self._unet.config.sample_size, self.pipe.vae_scale_factor
        for side, size in (("height", height), ("width", width)):
            if size is not None and (size <= 0 or size % factor):
                raise InputError(f"{side}: expected a multiple of {factor} pixels, got {size!r}. Round it.")
        sides = [native if size is None else size // factor for size in (height, width)]
        return (self._unet.config.in_channels, sides[0], sides[1])

    def fingerprint(self) -> str:
        names, samples = [], []
        for name, parameter in sorted(self._named_parameters()):
            names.append(f"{name} {tuple(parameter.shape)}")
            samples.append(self._spread_values(name, parameter.detach()))
        digest = hashlib.sha256("\n".join(names).encode())
        digest.update(torch.cat(samples).cpu().numpy().tobytes())
        return digest.hexdigest()

    def _spread_values(self, name: str, weight: Tensor) -> Tensor:
        """Return what the fingerprint has of a parameter."""
        return _spread(weight)

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for component, module in self.components().items():
            for name, parameter in module.named_parameters():
                yield f"{component}.{name}", parameter

    @torch.no_grad()
    def _encode_distinct(self, prompts: Sequence[str], trailing: bool) -> TextStates:
        texts = [textual_inversion_applied(self.pipe, prompt, self.pipe.tokenizer) for prompt in prompts]
        ids, offsets = tokenized(self.pipe.tokenizer, texts)
        if not trailing:
            return self._encode_to_end(texts, ids, offsets)
        return self._assembled(texts, ids, offsets, self._states_of(ids, texts))

    def _encode_to_end(
        self, texts: Sequence[str], ids: Int[Tensor, "n tokens"], offsets: tuple[tuple[tuple[int, int], ...], ...]
    ) -> TextStates:
        """Encode rows no further than their end of text, those of like length together."""
        ends = first_end_of_text(ids, self.pipe.tokenizer)
        order = ends.argsort(stable=True)
        longest = int(ends.max()) + 1
        rows: list[int] = order.tolist()
        states, pooled = self._states_of(ids[order], [texts[row] for row in rows], trailing=False)
        behind = (torch.arange(longest) > ends[order, None]).to(states.device)
        states = states[:, :longest].masked_fill(behind[..., None], torch.nan)
        sorted_by_length = self._assembled(
            [texts[row] for row in rows],
            ids[order, :longest],
            tuple(offsets[row][:longest] for row in rows),
            (states, pooled),
        )
        return sorted_by_length.select(order.argsort().tolist())

    def _assembled(
        self,
        texts: Sequence[str],
        ids: Int[Tensor, "n tokens"],
        offsets: tuple[tuple[tuple[int, int], ...], ...],
        encoded: tuple[Tensor, Tensor | None],
    ) -> TextStates:
        states, pooled = encoded
        return TextStates(
            prompts=tuple(texts),
            states=states,
            pooled=pooled,
            ids=ids,
            eot=first_end_of_text(ids, self.pipe.tokenizer),
            offsets=offsets,
        )

    def _states_of(
        self, ids: Int[Tensor, "n tokens"], texts: Sequence[str], *, trailing: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        mask = self.pipe.tokenizer(list(texts), **PADDED).attention_mask if self._masked else None
        return self._last_states(ids, mask, None if trailing else self._reach(ids, self.pipe.tokenizer)), None

    def _states_of_ids(self, ids: Int[Tensor, "n tokens"]) -> tuple[Tensor, Tensor | None]:
        within = torch.arange(ids.shape[1]) <= first_end_of_text(ids, self.pipe.tokenizer)[:, None]
        return self._last_states(ids, within.long() if self._masked else None), None

    @property
    def _masked(self) -> bool:
        """Whether the encoder leaves padding out.

        It is attended to, as in training, except by a model whose own configuration asks for a mask.
        """
        config: Any = self.components()["text_encoder"].config
        return bool(getattr(config, "use_attention_mask", False))

    def _reach(self, ids: Int[Tensor, "n tokens"], tokenizer: Any) -> list[int]:
        """Return for each lot of prompts how many tokens there are up to its last end of text."""
        return [int(first_end_of_text(part, tokenizer).max()) + 1 for part in ids.split(self._at_once)]

    def _last_states(
        self,
        ids: Int[Tensor, "n tokens"],
        mask: Int[Tensor, "n tokens"] | None,
        reach: Sequence[int] | None = None,
    ) -> Tensor:
        """Return the states of the text encoder, of each lot of prompts no further than its reach; see `joined`."""
        parts = ids.split(self._at_once)
        masks = [None] * len(parts) if mask is None else mask.split(self._at_once)
        ends = [ids.shape[1]] * len(parts) if reach is None else reach

        def states(encoder: Any) -> Tensor:
            outputs = (
                encoder(
                    part[:, :end].to(encoder.device),
                    attention_mask=None if within is None else within[:, :end].to(encoder.device),
                    return_dict=True,
                )
                for part, within, end in zip(parts, masks, ends, strict=True)
            )
            return joined([output.last_hidden_state.to(self.device, self.dtype) for output in outputs])

        return self._read_by("text_encoder", states)

    @property
    def _at_once(self) -> int:
        """How many prompts are encoded at once."""
        return _ENCODED_ON_CPU if self.device.type == "cpu" else _ENCODED

    def _read_by(self, name: str, read: Callable[[Any], Read]) -> Read:
        """Return what is read by a text encoder."""
        return read(self.components()[name])

    def _added_conditions(self, latents: Tensor, states: TextStates) -> dict[str, Tensor] | None:
        return None


def textual_inversion_applied(pipe: Any, prompt: str, tokenizer: Any) -> str:
    """Return the prompt with learned tokens of several vectors written out, as diffusers' pipelines do."""
    if isinstance(pipe, TextualInversionLoaderMixin):
        return str(pipe.maybe_convert_prompt(prompt, tokenizer))
    return prompt


def joined(lots: Sequence[Tensor]) -> Float[Tensor, "n tokens dim"]:
    """Return the rows of lots (n, tokens, dim), with zeros behind those of lots with fewer tokens."""
    longest = max(states.shape[1] for states in lots)
    return torch.cat([F.pad(states, (0, 0, 0, longest - states.shape[1])) for states in lots])


def unwrapped(module: Any) -> Any:
    """Return the module that torch.compile wrapped, or the module itself."""
    return getattr(module, "_orig_mod", module)


def spread_step(entries: int) -> int:
    """Return how far apart the entries of a tensor of that many are that the fingerprint has."""
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
