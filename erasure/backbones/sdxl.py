"""Stable Diffusion XL: two CLIP text encoders side by side, a sentence vector, and sizes as conditions."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from jaxtyping import Int
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from ..errors import InputError
from .conditioning import POOLED, Conditioning, first_end_of_text, tokenized
from .loaded import joined, textual_inversion_applied, unwrapped
from .picked import Place
from .sd import StableDiffusion
from .sites import Role
from .token_tree import TokenTree, read_tree


@dataclass(frozen=True, eq=False)
class StableDiffusionXL(StableDiffusion):
    """A backbone of the Stable Diffusion XL classes; see `Backbone` for its members."""

    covered: ClassVar[tuple[str, ...]] = ("Stable Diffusion XL",)

    streams: ClassVar[Mapping[Role, str]] = {**StableDiffusion.streams, "pooled.in": POOLED}

    @classmethod
    def covers(cls, pipe: DiffusionPipeline) -> bool:
        """Return True if the pipeline has both CLIP text encoders and a UNet."""
        return (
            isinstance(unwrapped(getattr(pipe, "unet", None)), UNet2DConditionModel)
            and isinstance(unwrapped(getattr(pipe, "text_encoder", None)), CLIPTextModel)
            and isinstance(unwrapped(getattr(pipe, "text_encoder_2", None)), CLIPTextModelWithProjection)
        )

    @property
    def family(self) -> str:
        return "sdxl"

    def text_encoders(self) -> dict[str, PreTrainedModel]:
        return {**super().text_encoders(), "text_encoder_2": unwrapped(self.pipe.text_encoder_2)}

    def tokenizers(self) -> dict[str, PreTrainedTokenizerBase]:
        return {**super().tokenizers(), "text_encoder_2": self.pipe.tokenizer_2}

    def unconditional(self) -> Conditioning:
        empty = self.encode([""])
        if not self.pipe.config["force_zeros_for_empty_prompt"] or empty.pooled is None:
            return empty
        return empty.with_states(torch.zeros_like(empty.states), torch.zeros_like(empty.pooled))

    def text_arguments(self, conditioning: Conditioning, arguments: Mapping[str, Any]) -> dict[str, Any]:
        added = {"text_embeds": conditioning.pooled}
        return {"encoder_hidden_states": conditioning.states, "added_cond_kwargs": added}

    def _states_of(
        self, ids: Int[Tensor, "n tokens"], texts: Sequence[str], *, trailing: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        second = [textual_inversion_applied(self.pipe, text, self.pipe.tokenizer_2) for text in texts]
        ids_2, _ = tokenized(self.pipe.tokenizer_2, second)
        if trailing:
            return self._states_of_both(ids, ids_2)
        reaches = (self._reach(ids, self.pipe.tokenizer), self._reach(ids_2, self.pipe.tokenizer_2))
        return self._states_of_both(ids, ids_2, [max(both) for both in zip(*reaches, strict=True)])

    def _states_of_ids(self, ids: Int[Tensor, "n tokens"]) -> tuple[Tensor, Tensor | None]:
        first, second = self.pipe.tokenizer, self.pipe.tokenizer_2
        if first.get_vocab() != second.get_vocab():
            raise InputError("ids: expected a model whose two tokenizers share a vocabulary, got one whose do not.")
        padding = torch.arange(ids.shape[1]) > first_end_of_text(ids, first)[:, None]
        return self._states_of_both(ids, ids.masked_fill(padding, second.pad_token_id))

    def _states_of_both(
        self, ids: Int[Tensor, "n tokens"], ids_2: Int[Tensor, "n tokens"], reach: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        first, _ = self._last_states_but_one("text_encoder", ids, reach)
        second, pooled = self._last_states_but_one("text_encoder_2", ids_2, reach)
        # SDXL reads the last layer but one of both encoders, before the final norm (arXiv:2307.01952, table 1).
        return torch.cat([first, second], dim=-1), torch.cat(pooled)

    def _picked(
        self, texts: Sequence[str], ids: Int[Tensor, "n tokens"], reach: Sequence[int], places: Sequence[Place]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        second = self.pipe.tokenizer_2
        ids_2, _ = tokenized(second, [textual_inversion_applied(self.pipe, text, second) for text in texts])
        first, _ = self._read_places("text_encoder", self.pipe.tokenizer, ids, reach, places)
        states, pooled = self._read_places("text_encoder_2", second, ids_2, reach, places)
        return torch.cat([first, states], dim=-1), {POOLED: pooled}

    def _read_tree(self, encoder: PreTrainedModel, tree: TokenTree) -> tuple[Tensor, Tensor]:
        with _last_input(encoder) as read:
            last = read_tree(encoder, tree).last_hidden_state
        return read[0], encoder.text_projection(last) if isinstance(encoder, CLIPTextModelWithProjection) else last

    def _last_states_but_one(
        self, name: str, ids: Int[Tensor, "n tokens"], reach: Sequence[int] | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the input of an encoder's last layer, and its sentence vectors if it has any."""

        def states(encoder: PreTrainedModel) -> tuple[Tensor, list[Tensor]]:
            hidden_states, pooled = [], []
            parts = ids.split(self._at_once)
            for part, end in zip(parts, [ids.shape[1]] * len(parts) if reach is None else reach, strict=True):
                # Only what is read is kept: the states of all layers are many times as much.
                with _last_input(encoder) as read:
                    output = encoder(part[:, :end].to(encoder.device), return_dict=True)
                hidden_states.append(read[0].to(self.device, self.dtype))
                if isinstance(encoder, CLIPTextModelWithProjection):
                    pooled.append(output.text_embeds.to(self.device, self.dtype))
            return joined(hidden_states), pooled

        return self._read_by(name, states)

    @property
    def _columns(self) -> Mapping[Role, int]:
        return {"pooled.in": unwrapped(self.pipe.text_encoder_2).config.projection_dim}

    def _added_conditions(self, latents: Tensor, conditioning: Conditioning) -> dict[str, Tensor] | None:
        if conditioning.pooled is None:
            raise InputError("conditioning: expected a sentence vector, got none. Encode the prompts with this model.")
        height, width = (side * self.pipe.vae_scale_factor for side in latents.shape[-2:])
        # Original size, crop corner, target size: an image that was neither scaled nor cut.
        sizes = torch.tensor([[height, width, 0, 0, height, width]], device=latents.device, dtype=latents.dtype)
        return {"text_embeds": conditioning.pooled.to(latents), "time_ids": sizes.expand(len(latents), -1)}


@contextmanager
def _last_input(encoder: nn.Module) -> Generator[list[Tensor]]:
    """Collect the input of the encoder's last layer in a list, for the length of a `with`."""
    read: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        read.append(inputs[0])

    layer = [module for module in encoder.modules() if isinstance(module, CLIPEncoderLayer)][-1]
    hook = layer.register_forward_pre_hook(keep)
    try:
        yield read
    finally:
        hook.remove()
