"""Transformers with joint attention, trained by flow matching: what Stable Diffusion 3 and FLUX share."""

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from diffusers import ModelMixin
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from .base import Ability
from .conditioning import POOLED, TEXT, Conditioning, EncodedTokens, Stream, concatenate, first_end_of_text, tokenized
from .loaded import LoadedModel, unwrapped
from .schedule import Flow, NoiseSchedule
from .sites import Role, joint_transformer_role

# Bytes of an encoder's scores of attention on a CPU, of which some copies are in memory: four prompts of T5-XXL's.
_SCORES = 2**28


@dataclass(frozen=True, eq=False)
class JointTransformer(LoadedModel):
    """Base of the families; their encoders read padding, so every state is always encoded."""

    denoiser_name: ClassVar[str] = "transformer"
    abilities: ClassVar[frozenset[Ability]] = frozenset(
        ("images", "maps", "clip", "lora", "low memory", "mixed lengths")
    )
    schedule_kind: ClassVar[type[NoiseSchedule]] = Flow
    streams: ClassVar[Mapping[Role, str]] = {"text.in": TEXT, "pooled.in": POOLED}
    # Number of latents along a side that are one token of the image.
    packing: ClassVar[int] = 2

    def __post_init__(self) -> None:
        config = self.pipe.scheduler.config
        if not (hasattr(config, "base_shift") or config.get("use_flow_sigmas", False)):  # of flow matching
            class_name = type(self.pipe.scheduler).__name__
            raise InputError(f"scheduler: expected one of flow matching, got {class_name}. Use the model's own.")

    @classmethod
    def role_of(cls, name: str) -> Role:
        return joint_transformer_role(name)

    @property
    @abstractmethod
    def text_position(self) -> Literal["first", "last"]:
        """Whether the text's tokens come first or last in the joint sequence."""

    @property
    @abstractmethod
    def _readers(self) -> dict[str, int]:
        """The text encoders whose states follow one another in the text stream, with the length of their rows."""

    @abstractmethod
    def _embeddings(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return states and sentence vectors of prompts as the pipeline encodes them."""

    @property
    def _config(self) -> Mapping[str, Any]:
        return unwrapped(self.pipe.transformer).config

    @property
    def _transformer(self) -> ModelMixin:
        return unwrapped(self.pipe.transformer)

    def text_encoders(self) -> dict[str, PreTrainedModel]:
        names = [name for name in self.pipe.components if name.startswith("text_encoder")]
        modules = {name: getattr(self.pipe, name) for name in names}
        return {name: unwrapped(module) for name, module in modules.items() if module is not None}

    def tokenizers(self) -> dict[str, PreTrainedTokenizerBase]:
        return {name: getattr(self.pipe, _tokenizer_of(name)) for name in self.text_encoders()}

    def token_limits(self) -> dict[str, int]:
        limits = super().token_limits()
        return {name: min(limit, self._readers.get(name, limit)) for name, limit in limits.items()}

    @property
    def schedule(self) -> NoiseSchedule:
        def sigmas(steps: int) -> Float[Tensor, " steps"]:
            scheduler = copy.deepcopy(self.pipe.scheduler)
            self._set_timesteps(scheduler, steps)
            return scheduler.sigmas[:steps].to("cpu", torch.float32)

        return Flow(sigmas=sigmas, total=self.pipe.scheduler.config.num_train_timesteps)

    @property
    def _image_tokens(self) -> int:
        _, height, width = self.latent_shape()
        return (height // self.packing) * (width // self.packing)

    @property
    def _at_once(self) -> int:
        scores = [
            4 * self.text_encoders()[name].config.get_text_config().num_attention_heads * length**2
            for name, length in self._readers.items()
        ]
        most = super()._at_once
        return most if self.device.type != "cpu" else max(1, min(most, _SCORES // max(scores)))

    def encode_ids(self, ids: Int[Tensor, "n tokens"]) -> Conditioning:
        raise InputError(
            f"ids: expected a model whose text encoders share one vocabulary, got {self.family}. Encode prompts."
        )

    @torch.no_grad()
    def _encode_distinct(self, prompts: Sequence[str], trailing: bool) -> Conditioning:
        lots = [prompts[start : start + self._at_once] for start in range(0, len(prompts), self._at_once)]
        return concatenate([self._encoded(list(lot)) for lot in lots])

    def _encoded(self, prompts: list[str]) -> Conditioning:
        states, pooled = self._embeddings(prompts)
        tokens = tuple(self._tokens(encoder, prompts, length) for encoder, length in self._readers.items())
        streams = {
            TEXT: Stream(states=states.to(self.device, self.dtype), tokens=tokens),
            POOLED: Stream(states=pooled[:, None].to(self.device, self.dtype)),
        }
        return Conditioning(prompts=tuple(prompts), streams=streams)

    def _encode_prompt(self, *args: object, **kwargs: object) -> tuple[Any, ...]:
        with self.weights_present(*self.text_encoders()) as device:
            further = {} if device is None else {"device": device}
            # Of the class: a guidance follows the calls of the instance's.
            return cast("Any", type(self.pipe)).encode_prompt(self.pipe, *args, **kwargs, **further)

    def _tokens(self, encoder: str, prompts: Sequence[str], length: int) -> EncodedTokens:
        tokenizer = getattr(self.pipe, _tokenizer_of(encoder))
        ids, offsets = tokenized(tokenizer, prompts, length)
        module = self.text_encoders()[encoder]
        return EncodedTokens(
            encoder=encoder,
            ids=ids,
            ends=first_end_of_text(ids, tokenizer),
            offsets=offsets,
            causal="T5" not in type(module).__name__,
        )

    def _t5_length(self, tokenizer: PreTrainedTokenizerBase, longest: int) -> int:
        """Return the number of T5's tokens, of which the pipeline's call reads at most `longest`."""
        return min(longest, tokenizer.model_max_length)


def _tokenizer_of(encoder: str) -> str:
    return encoder.replace("text_encoder", "tokenizer")
