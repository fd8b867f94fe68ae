"""FLUX.2 dev and klein: several layers of a language model side by side, latents of two by two patches."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from .base import Ability
from .conditioning import TEXT, Conditioning
from .declared import DeclaredTransformer
from .loaded import unwrapped
from .schedule import Timestep
from .sites import Role, attention_roles
from .templated import Layout


@dataclass(frozen=True, eq=False)
class Flux2(DeclaredTransformer):
    """A backbone of the FLUX.2 dev classes; see `Backbone` for its members.

    The model is guidance-distilled; it predicts at an embedded guidance of 1, like FLUX.1 dev.
    """

    covered: ClassVar[tuple[str, ...]] = ("FLUX.2 dev",)
    name: ClassVar[str] = "flux2"
    abilities: ClassVar[frozenset[Ability]] = DeclaredTransformer.abilities - {"guidance"}
    transformers: ClassVar[tuple[str, ...]] = ("Flux2Transformer2DModel",)
    streams: ClassVar[Mapping[Role, str]] = {"text.in": TEXT}
    roles: ClassVar[Mapping[str, Role]] = {
        "time_guidance_embed.*": "time",
        "*_modulation*": "modulation",
        "single_transformer_blocks.*.attn.to_qkv_mlp_proj.*": "shared.in",
        "single_transformer_blocks.*.attn.to_out.*": "shared.out",
        **attention_roles("single_transformer_blocks.*.attn", "shared"),
        "*.ff.linear_out.*": "ff.out",
        "*.ff_context.linear_out.*": "ff.text.out",
    }
    original_names: ClassVar[Mapping[str, str]] = {"context_embedder": "txt_in"}
    lora_prefix: ClassVar[str] = "lora_unet_"
    latent_layout: ClassVar[Literal["plain", "packed"]] = "packed"

    @classmethod
    def covers(cls, pipe: DiffusionPipeline) -> bool:
        """Return True if the pipeline has the family's transformer and encoder."""
        return super().covers(pipe) and "Mistral" in type(unwrapped(getattr(pipe, "text_encoder", None))).__name__

    def last_layers(self) -> Mapping[str, int]:
        read = inspect.signature(self.pipe.encode_prompt).parameters["text_encoder_out_layers"].default
        return {"text_encoder": max(read)}

    @property
    def layout(self) -> Layout:
        longest = self.pipe.tokenizer_max_length
        return Layout(longest=longest, width=longest, left=True, reads_padding=True, special=False)

    @property
    def distilled(self) -> bool:
        return True

    def tokenizers(self) -> dict[str, PreTrainedTokenizerBase]:
        return {"text_encoder": self.pipe.tokenizer.tokenizer}

    def templated(self, prompt: str) -> str:
        roles = (("system", self.pipe.system_message), ("user", prompt.replace("[IMG]", "")))
        chat = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in roles]
        return str(self.pipe.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=False))

    def text_arguments(self, conditioning: Conditioning, arguments: Mapping[str, Any]) -> dict[str, Any]:
        states = conditioning.states
        return {"encoder_hidden_states": states, "txt_ids": self.pipe._prepare_text_ids(states).to(states.device)}

    def call_arguments(
        self, latents: Tensor, conditioning: Conditioning, negative: Conditioning | None, guidance_scale: float
    ) -> dict[str, Any]:
        arguments = super().call_arguments(latents, conditioning, None, guidance_scale)
        return {**arguments, "latents": F.pixel_unshuffle(latents, self.packing)}

    def _output(
        self, latents: Float[Tensor, "n c h w"], timestep: Timestep, conditioning: Conditioning
    ) -> Float[Tensor, "n c h w"]:
        n, _, height, width = latents.shape
        output = self._transformer(
            hidden_states=self._packed(latents),
            timestep=timestep.to(latents) / self.schedule.total,
            guidance=latents.new_ones(n).float() if self._config["guidance_embeds"] else None,
            img_ids=self.pipe._prepare_latent_ids(F.pixel_unshuffle(latents, self.packing)).to(latents.device),
            **self.text_arguments(conditioning, {}),
            return_dict=False,
        )[0]
        return self._unpacked(output, height, width)

    def _shift(self, config: Mapping[str, Any], steps: int) -> float:
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return compute_empirical_mu(image_seq_len=self._image_tokens, num_steps=steps)
