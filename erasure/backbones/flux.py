"""FLUX.1: T5's states, CLIP's sentence vector, latents packed two by two."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from diffusers import DiffusionPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from jaxtyping import Float
from torch import Tensor

from .base import Ability
from .conditioning import Conditioning
from .joint import JointTransformer
from .loaded import unwrapped
from .sampling_loop import SamplingLoop
from .schedule import Timestep

# What the pipeline's call reads of T5's tokens unless told otherwise.
_T5_TOKENS = 512
# Side of the latents that diffusers gives every pipeline, since FLUX's files hold none.
_DIFFUSERS_SIDE = 128


@dataclass(frozen=True, eq=False)
class Flux(JointTransformer):
    """A backbone of the FLUX.1 classes; see `Backbone` for its members.

    A guidance-distilled model predicts at an embedded guidance of 1, where its output is nearest to that of a model
    without distillation. A pipeline with the side that diffusers gives to all gets that of its autoencoder, which is
    the same one for the released models.
    """

    covered: ClassVar[tuple[str, ...]] = ("FLUX.1",)
    abilities: ClassVar[frozenset[Ability]] = JointTransformer.abilities.union(("guidance", "map guidance"))
    loop: ClassVar[SamplingLoop] = SamplingLoop(unconditional="two calls")
    original_names: ClassVar[Mapping[str, str]] = {
        "context_embedder": "txt_in",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    }
    # Names of the original release beside it, which kohya's scripts have, are read without effect (diffusers 0.42).
    lora_prefix: ClassVar[str] = "lora_transformer_"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pipe.default_sample_size == _DIFFUSERS_SIDE:
            self.pipe.default_sample_size = self.pipe.vae.config.sample_size // self.pipe.vae_scale_factor

    @classmethod
    def covers(cls, pipe: DiffusionPipeline) -> bool:
        """Return True if the pipeline has the family's transformer and text encoders."""
        transformer = unwrapped(getattr(pipe, "transformer", None))
        return isinstance(transformer, FluxTransformer2DModel) and hasattr(pipe, "text_encoder_2")

    @property
    def family(self) -> str:
        return "flux"

    @property
    def text_position(self) -> Literal["first", "last"]:
        return "first"

    @property
    def distilled(self) -> bool:
        return bool(self._config["guidance_embeds"])

    @property
    def _readers(self) -> dict[str, int]:
        return {"text_encoder_2": self._length}

    @property
    def _length(self) -> int:
        return self._t5_length(self.pipe.tokenizer_2, _T5_TOKENS)

    def call_arguments(
        self, latents: Tensor, conditioning: Conditioning, negative: Conditioning | None, guidance_scale: float
    ) -> dict[str, Any]:
        # A distilled model is guided by its embedding, any other one by a second pass.
        negative = None if self.distilled else negative
        arguments = super().call_arguments(self.packed(latents), conditioning, negative, guidance_scale)
        arguments["true_cfg_scale"] = 1.0 if negative is None else guidance_scale
        return {**arguments, "max_sequence_length": self._length}

    def unpacked(self, latents: Tensor, height: int | None = None, width: int | None = None) -> Tensor:
        _, rows, columns = self.latent_shape(height, width)
        return self._unpacked(latents, rows, columns)

    def latents_in(self, sample: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        rows, columns = (int(arguments["img_ids"][:, axis].max()) + 1 for axis in (1, 2))
        return self._unpacked(sample, self.packing * rows, self.packing * columns)

    def text_arguments(self, conditioning: Conditioning, arguments: Mapping[str, Any]) -> dict[str, Any]:
        states = conditioning.states
        return {**super().text_arguments(conditioning, arguments), "txt_ids": states.new_zeros(states.shape[1], 3)}

    def predict(
        self, latents: Float[Tensor, "n c h w"], timestep: Timestep, conditioning: Conditioning
    ) -> Float[Tensor, "n c h w"]:
        latents = latents.to(self.device, self.dtype)
        n, _, height, width = latents.shape
        assert conditioning.pooled is not None  # noqa: S101 - of this family's own encoding
        level = timestep.to(latents).expand(n) / self.schedule.total
        output = self._transformer(
            hidden_states=self.packed(latents),
            timestep=level,
            guidance=torch.ones(n, device=latents.device) if self._config["guidance_embeds"] else None,
            pooled_projections=conditioning.pooled.to(latents),
            encoder_hidden_states=conditioning.states.to(latents),
            txt_ids=torch.zeros(conditioning.states.shape[1], 3).to(latents),
            img_ids=self.pipe._prepare_latent_image_ids(n, height // 2, width // 2, latents.device, latents.dtype),
            return_dict=False,
        )[0]
        return self._unpacked(output, height, width)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        sides = self._latent_sides(self.pipe.default_sample_size, height, width, self.packing)
        return (self._config["in_channels"] // self.packing**2, sides[0], sides[1])

    def packed(self, latents: Tensor) -> Tensor:
        n, channels, height, width = latents.shape
        return self.pipe._pack_latents(latents.contiguous(), n, channels, height, width)

    def _unpacked(self, latents: Float[Tensor, "n tokens dim"], height: int, width: int) -> Float[Tensor, "n c h w"]:
        factor = self.pipe.vae_scale_factor
        return self.pipe._unpack_latents(latents, height * factor, width * factor, factor)

    def _embeddings(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        states, pooled, _ = self._encode_prompt(list(prompts), max_sequence_length=self._length)
        assert states is not None and pooled is not None  # noqa: S101, PT018 - of prompts
        return states, pooled

    def _set_timesteps(self, scheduler: Any, steps: int) -> None:
        config = scheduler.config
        limits = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        shift = calculate_shift(self._image_tokens, *(config[name] for name in limits))
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift)
