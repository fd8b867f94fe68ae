"""Stable Diffusion XL: two CLIP text encoders side by side, a sentence vector, and sizes as conditions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Int
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ..errors import InputError
from ..text import TextStates, first_end_of_text, tokenized
from .sd import StableDiffusion, textual_inversion_applied, unwrapped


@dataclass(frozen=True, eq=False)
class StableDiffusionXL(StableDiffusion):
    """A backbone of the Stable Diffusion XL classes; see `Backbone` for what its members give."""

    covered: ClassVar[tuple[str, ...]] = ("Stable Diffusion XL",)

    @classmethod
    def covers(cls, pipe: Any) -> bool:
        """Whether the pipeline has both CLIP text encoders and a UNet."""
        return (
            isinstance(unwrapped(getattr(pipe, "unet", None)), UNet2DConditionModel)
            and isinstance(unwrapped(getattr(pipe, "text_encoder", None)), CLIPTextModel)
            and isinstance(unwrapped(getattr(pipe, "text_encoder_2", None)), CLIPTextModelWithProjection)
        )

    @property
    def family(self) -> str:
        return "sdxl"

    def components(self) -> dict[str, nn.Module]:
        return {**super().components(), "text_encoder_2": unwrapped(self.pipe.text_encoder_2)}

    def tokenizers(self) -> dict[str, Any]:
        return {**super().tokenizers(), "text_encoder_2": self.pipe.tokenizer_2}

    def unconditional(self) -> TextStates:
        empty = self.encode([""])
        if not self.pipe.config.force_zeros_for_empty_prompt or empty.pooled is None:
            return empty
        return replace(empty, states=torch.zeros_like(empty.states), pooled=torch.zeros_like(empty.pooled))

    def _states_of(
        self, ids: Int[Tensor, "n tokens"], texts: Sequence[str], *, trailing: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        second = [textual_inversion_applied(self.pipe, text, self.pipe.tokenizer_2) for text in texts]
        ids_2, _ = tokenized(self.pipe.tokenizer_2, second)
        if not trailing:
            pairs = ((ids, self.pipe.tokenizer), (ids_2, self.pipe.tokenizer_2))
            length = max(int(first_end_of_text(each, tokenizer).max()) + 1 for each, tokenizer in pairs)
            ids, ids_2 = ids[:, :length], ids_2[:, :length]
        return self._states_of_both(ids, ids_2)

    def _states_of_ids(self, ids: Int[Tensor, "n tokens"]) -> tuple[Tensor, Tensor | None]:
        first, second = self.pipe.tokenizer, self.pipe.tokenizer_2
        if first.get_vocab() != second.get_vocab():
            raise InputError("ids: expected a model whose two tokenizers share a vocabulary, got one whose do not.")
        padding = torch.arange(ids.shape[1]) > first_end_of_text(ids, first)[:, None]
        return self._states_of_both(ids, ids.masked_fill(padding, second.pad_token_id))

    def _states_of_both(
        self, ids: Int[Tensor, "n tokens"], ids_2: Int[Tensor, "n tokens"]
    ) -> tuple[Tensor, Tensor | None]:
        components: dict[str, Any] = self.components()
        outputs = [
            encoder(ids.to(encoder.device), output_hidden_states=True, return_dict=True)
            for encoder, ids in ((components["text_encoder"], ids), (components["text_encoder_2"], ids_2))
        ]
        # SDXL reads the last layer but one of both encoders, before the final norm (arXiv:2307.01952, table 1).
        states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return states.to(self.device, self.dtype), outputs[1].text_embeds.to(self.device, self.dtype)

    def _added_conditions(self, latents: Tensor, states: TextStates) -> dict[str, Tensor] | None:
        if states.pooled is None:
            raise InputError("states: expected a sentence vector, got none. Encode the prompts with this model.")
        height, width = (side * self.pipe.vae_scale_factor for side in latents.shape[-2:])
        # Original size, crop corner, target size: a picture that was neither scaled nor cut.
        sizes = torch.tensor([[height, width, 0, 0, height, width]], device=latents.device, dtype=latents.dtype)
        return {"text_embeds": states.pooled.to(latents), "time_ids": sizes.expand(len(latents), -1)}
