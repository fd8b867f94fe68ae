"""Chroma: FLUX.1 without the sentence vector, its modulation made by a small network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .conditioning import TEXT, Conditioning
from .declared import DeclaredTransformer
from .sampling_loop import SamplingLoop
from .schedule import Timestep
from .sites import Role
from .templated import Layout

_T5_TOKENS = 512


@dataclass(frozen=True, eq=False)
class Chroma(DeclaredTransformer):
    """A backbone of the Chroma classes; see `Backbone` for its members.

    diffusers 0.42.1 adds its mask of zeros and ones to the attention's scores, so padding is read (its issues 12116 and
    13619): every state is a row.
    """

    covered: ClassVar[tuple[str, ...]] = ("Chroma",)
    name: ClassVar[str] = "chroma"
    loop: ClassVar[SamplingLoop] = SamplingLoop(unconditional="two calls")
    transformers: ClassVar[tuple[str, ...]] = ("ChromaTransformer2DModel",)
    streams: ClassVar[Mapping[Role, str]] = {"text.in": TEXT}
    roles: ClassVar[Mapping[str, Role]] = {"distilled_guidance_layer.*": "modulation"}
    checkpoints: ClassVar[bool] = False  # the single blocks get no mask when they are computed again
    original_names: ClassVar[Mapping[str, str]] = {"context_embedder": "txt_in"}
    lora_prefix: ClassVar[str] = "lora_transformer_"
    mask_name: ClassVar[str] = "prompt_attention_mask"
    latent_layout: ClassVar[Literal["plain", "packed"]] = "packed"

    @property
    def layout(self) -> Layout:
        longest = self._t5_length(self.pipe.tokenizer, _T5_TOKENS)
        return Layout(longest=longest, width=longest, reads_padding=True, causal=False)

    def call_arguments(
        self, latents: Tensor, conditioning: Conditioning, negative: Conditioning | None, guidance_scale: float
    ) -> dict[str, Any]:
        scale = guidance_scale if negative is not None else 0.0
        arguments = super().call_arguments(latents, conditioning, negative, scale)
        return {**arguments, "max_sequence_length": self.layout.longest}

    def _mask(self, conditioning: Conditioning) -> Tensor:
        """Return the pipeline's mask, which has a 1 for one padding token too."""
        states, [tokens] = conditioning.states, conditioning.streams[TEXT].tokens
        positions = torch.arange(states.shape[1], device=states.device)
        return (positions <= tokens.ends[:, None].to(states.device) + 1).to(states)

    def text_arguments(self, conditioning: Conditioning, arguments: Mapping[str, Any]) -> dict[str, Any]:
        states, mask = conditioning.states, self._mask(conditioning)
        return {
            "encoder_hidden_states": states,
            "txt_ids": states.new_zeros(states.shape[1], 3),
            "attention_mask": torch.cat([mask, mask.new_ones(len(mask), len(arguments["img_ids"]))], dim=1),
        }

    def _states(self, prompts: list[str]) -> Float[Tensor, "n tokens dim"]:
        longest = self.layout.longest
        states = self._encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=longest)[0]
        assert states is not None  # noqa: S101 - of prompts
        return states

    def _output(
        self, latents: Float[Tensor, "n c h w"], timestep: Timestep, conditioning: Conditioning
    ) -> Float[Tensor, "n c h w"]:
        n, _, height, width = latents.shape
        places = self.pipe._prepare_latent_image_ids(
            n, height // self.packing, width // self.packing, self.device, self.dtype
        )
        output = self._transformer(
            hidden_states=self._packed(latents),
            timestep=timestep.to(latents) / self.schedule.total,
            img_ids=places,
            **self.text_arguments(conditioning, {"img_ids": places}),
            return_dict=False,
        )[0]
        return self._unpacked(output, height, width)
