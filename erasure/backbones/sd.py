"""Stable Diffusion 1.x and 2.x, and whatever else has their classes: one CLIP text encoder, one UNet."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import TextualInversionLoaderMixin
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel

from ..errors import InputError, unknown_name
from ..text import PADDED, TextStates, first_end_of_text, tokenized
from .base import PredictionType

_ENCODE_BATCH = 64
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
        chunks = [self._states_of_ids(part) for part in ids.split(_ENCODE_BATCH)]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        return self._assembled(texts, ids, (((0, 0),) * ids.shape[1],) * len(ids), chunks)

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
        self, latents: Float[Tensor, "n c h w"], timestep: Int[Tensor, "..."], states: TextStates
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
        timestep: Int[Tensor, "..."],
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
            samples.append(_spread_values(parameter.detach()))
        digest = hashlib.sha256("\n".join(names).encode())
        digest.update(torch.cat(samples).cpu().numpy().tobytes())
        return digest.hexdigest()

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
        chunks = [
            self._states_of(ids[start : start + _ENCODE_BATCH], texts[start : start + _ENCODE_BATCH])
            for start in range(0, len(texts), _ENCODE_BATCH)
        ]
        return self._assembled(texts, ids, offsets, chunks)

    def _encode_to_end(
        self, texts: Sequence[str], ids: Int[Tensor, "n tokens"], offsets: tuple[tuple[tuple[int, int], ...], ...]
    ) -> TextStates:
        """Encode rows no further than their end of text, those of like length together."""
        ends = first_end_of_text(ids, self.pipe.tokenizer)
        longest = int(ends.max()) + 1
        lengths: list[int] = ends.tolist()
        order = sorted(range(len(texts)), key=lengths.__getitem__)
        chunks = []
        for start in range(0, len(order), _ENCODE_BATCH):
            rows = order[start : start + _ENCODE_BATCH]
            states, pooled = self._states_of(ids[rows], [texts[row] for row in rows], trailing=False)
            behind = torch.arange(longest) > ends[rows][:, None]
            states = F.pad(states[:, :longest], (0, 0, 0, longest - min(longest, states.shape[1])))
            chunks.append((states.masked_fill(behind[..., None].to(states.device), torch.nan), pooled))
        assembled = self._assembled(
            [texts[row] for row in order],
            ids[order, :longest],
            tuple(offsets[row][:longest] for row in order),
            chunks,
        )
        at = {row: place for place, row in enumerate(order)}
        return assembled.select([at[row] for row in range(len(order))])

    def _assembled(
        self,
        texts: Sequence[str],
        ids: Int[Tensor, "n tokens"],
        offsets: tuple[tuple[tuple[int, int], ...], ...],
        chunks: Sequence[tuple[Tensor, Tensor | None]],
    ) -> TextStates:
        pooled = [pooled for _, pooled in chunks if pooled is not None]
        return TextStates(
            prompts=tuple(texts),
            states=torch.cat([states for states, _ in chunks]),
            pooled=torch.cat(pooled) if pooled else None,
            ids=ids,
            eot=first_end_of_text(ids, self.pipe.tokenizer),
            offsets=offsets,
        )

    def _states_of(
        self, ids: Int[Tensor, "n tokens"], texts: Sequence[str], *, trailing: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        mask = self.pipe.tokenizer(list(texts), **PADDED).attention_mask if self._masked else None
        if not trailing:
            length = int(first_end_of_text(ids, self.pipe.tokenizer).max()) + 1
            ids, mask = ids[:, :length], None if mask is None else mask[:, :length]
        return self._last_states(ids, mask), None

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

    def _last_states(self, ids: Int[Tensor, "n tokens"], mask: Int[Tensor, "n tokens"] | None) -> Tensor:
        encoder: Any = self.components()["text_encoder"]
        if mask is not None:
            mask = mask.to(encoder.device)
        states = encoder(ids.to(encoder.device), attention_mask=mask, return_dict=True).last_hidden_state
        return states.to(self.device, self.dtype)

    def _added_conditions(self, latents: Tensor, states: TextStates) -> dict[str, Tensor] | None:
        return None


def textual_inversion_applied(pipe: Any, prompt: str, tokenizer: Any) -> str:
    """Return the prompt with learned tokens of several vectors written out, as diffusers' pipelines do."""
    if isinstance(pipe, TextualInversionLoaderMixin):
        return str(pipe.maybe_convert_prompt(prompt, tokenizer))
    return prompt


def unwrapped(module: Any) -> Any:
    """Return the module that torch.compile wrapped, or the module itself."""
    return getattr(module, "_orig_mod", module)


def _spread_values(weight: Tensor) -> Tensor:
    """Return some entries of a tensor, spread evenly in logical order, as float16.

    By index rather than by reshaping, which would copy a tensor in channels-last order whole.
    """
    if weight.device.type == "meta":
        raise InputError("fingerprint: expected weights in memory, got a model offloaded to disk. Load it whole.")
    step = -(-weight.numel() // _FINGERPRINT_VALUES)
    if weight.is_contiguous():
        return weight.view(-1)[::step].to(torch.float16)
    flat = torch.arange(0, weight.numel(), step, device=weight.device)
    return weight[torch.unravel_index(flat, weight.shape)].to(torch.float16)
