"""Z-Image and Z-Image-Turbo: a language model's states of a chat, through a norm; one stream for image and text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .base import Ability
from .conditioning import TEXT, Conditioning
from .declared import DeclaredTransformer
from .sampling_loop import SamplingLoop
from .schedule import Timestep
from .sites import Role, attention_roles
from .templated import Layout, chat_text

_PIXELS = 1024  # the pipeline's own size


@dataclass(frozen=True, eq=False)
class ZImage(DeclaredTransformer):
    """A backbone of the Z-Image classes; see `Backbone` for its members."""

    covered: ClassVar[tuple[str, ...]] = ("Z-Image",)
    name: ClassVar[str] = "z-image"
    abilities: ClassVar[frozenset[Ability]] = frozenset(("images", "guidance", "lora", "low memory", "mixed lengths"))
    loop: ClassVar[SamplingLoop] = SamplingLoop(unconditional="last", axes={"x": None, "cap_feats": None}, sign=-1)
    transformers: ClassVar[tuple[str, ...]] = ("ZImageTransformer2DModel",)
    streams: ClassVar[Mapping[Role, str]] = {"text.in": TEXT}
    roles: ClassVar[Mapping[str, Role]] = {
        "cap_embedder.1.*": "text.in",
        "cap_embedder.0.*": "norm",
        **attention_roles("context_refiner.*.attention", "refiner"),
        **attention_roles("noise_refiner.*.attention", "self"),
        **attention_roles("layers.*.attention", "shared"),
        "context_refiner.*": "refiner.in",
        "layers.*.feed_forward.*": "shared.in",
        "*.feed_forward.*": "ff.in",
        "*adaLN_modulation*": "modulation",
        "t_embedder.*": "time",
        "all_x_embedder.*": "in",
        "all_final_layer.*": "out",
    }
    original_names: ClassVar[Mapping[str, str]] = {"cap_embedder.1": "cap_embedder.1"}
    lora_prefix: ClassVar[str] = "lora_unet_"
    between: ClassVar[tuple[str, ...]] = ("cap_embedder.0",)
    text_only: ClassVar[tuple[str, ...]] = ("context_refiner.*",)

    def last_layers(self) -> Mapping[str, int]:
        return {"text_encoder": -1}

    @property
    def layout(self) -> Layout:
        return Layout(longest=512)

    def templated(self, prompt: str) -> str:
        return chat_text(self.pipe.tokenizer, prompt, thinks=True)

    def call_arguments(
        self, latents: Tensor, conditioning: Conditioning, negative: Conditioning | None, guidance_scale: float
    ) -> dict[str, Any]:
        arguments = super().call_arguments(latents.float(), conditioning, negative, guidance_scale)
        # The pipeline adds its scale to the 1 of the prompt.
        arguments["guidance_scale"] = 0.0 if negative is None else guidance_scale - 1
        arguments["prompt_embeds"] = _listed(conditioning)
        return {**arguments, "negative_prompt_embeds": [] if negative is None else _listed(negative)}

    def text_arguments(self, conditioning: Conditioning, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {"cap_feats": _listed(conditioning)}

    def _states(self, prompts: list[str]) -> Float[Tensor, "n tokens dim"]:
        states = self._encode_prompt(prompts, do_classifier_free_guidance=False)[0]
        assert states is not None  # noqa: S101 - of prompts
        return pad_sequence(list(states), batch_first=True)

    def _output(
        self, latents: Float[Tensor, "n c h w"], timestep: Timestep, conditioning: Conditioning
    ) -> Float[Tensor, "n c h w"]:
        signal = 1 - timestep.float() / self.schedule.total
        images = list(latents[:, :, None].unbind())
        output = self._transformer(images, signal, **self.text_arguments(conditioning, {}), return_dict=False)[0]
        return torch.stack(list(output))[:, :, 0]

    @property
    def _native_side(self) -> object:
        return getattr(self.pipe, "default_sample_size", _PIXELS // self.pipe.vae_scale_factor)


def _listed(conditioning: Conditioning) -> list[Tensor]:
    """Return the states of each prompt without padding."""
    [tokens] = conditioning.streams[TEXT].tokens
    return [states[: tokens.span(row).stop] for row, states in enumerate(conditioning.states)]
