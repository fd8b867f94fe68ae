"""Lumina 2: a language model's states behind a system prompt, through a norm; one stream for image and text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .base import Ability
from .conditioning import TEXT, Conditioning, Stream
from .declared import DeclaredTransformer, linear_shift
from .sampling_loop import SamplingLoop
from .schedule import Timestep
from .sites import Role, attention_roles
from .templated import Layout, templated_tokens


@dataclass(frozen=True, eq=False)
class Lumina2(DeclaredTransformer):
    """A backbone of the Lumina 2 classes; see `Backbone` for its members."""

    covered: ClassVar[tuple[str, ...]] = ("Lumina 2",)
    name: ClassVar[str] = "lumina2"
    abilities: ClassVar[frozenset[Ability]] = frozenset(("images", "guidance", "lora", "low memory", "mixed lengths"))
    loop: ClassVar[SamplingLoop] = SamplingLoop(unconditional="two calls", mask="encoder_attention_mask", sign=-1)
    transformers: ClassVar[tuple[str, ...]] = ("Lumina2Transformer2DModel",)
    streams: ClassVar[Mapping[Role, str]] = {"text.in": TEXT}
    roles: ClassVar[Mapping[str, Role]] = {
        "time_caption_embed.caption_embedder.1.*": "text.in",
        "time_caption_embed.caption_embedder.0.*": "norm",
        "time_caption_embed.*": "time",
        **attention_roles("context_refiner.*.attn", "refiner"),
        **attention_roles("noise_refiner.*.attn", "self"),
        **attention_roles("layers.*.attn", "shared"),
        "context_refiner.*": "refiner.in",
        "layers.*.feed_forward.*": "shared.in",
        "*.feed_forward.*": "ff.in",
    }
    text_only: ClassVar[tuple[str, ...]] = ("context_refiner.*",)
    between: ClassVar[tuple[str, ...]] = ("time_caption_embed.caption_embedder.0",)
    encode_options: ClassVar[Mapping[str, Any]] = {"do_classifier_free_guidance": False}
    mask_name: ClassVar[str] = "prompt_attention_mask"

    def last_layers(self) -> Mapping[str, int]:
        return {"text_encoder": -1}

    @property
    def layout(self) -> Layout:
        return Layout(longest=256, width=256)

    def templated(self, prompt: str) -> str:
        return f"{self.pipe.system_prompt} <Prompt Start> {prompt}"

    def unconditional(self) -> Conditioning:
        return self.negative([""])

    def negative(self, prompts: Sequence[str]) -> Conditioning:
        """Return negative prompts, which the pipeline reads without its system prompt."""
        tokens = templated_tokens(self.pipe.tokenizer, "text_encoder", prompts, str, self.layout)
        with torch.no_grad():
            states = self._encode_prompt(list(prompts), negative_prompt=list(prompts))[2]
        assert states is not None  # noqa: S101 - of prompts
        states = states.to(self.device, self.dtype)
        return Conditioning(prompts=tuple(prompts), streams={TEXT: Stream(states=states, tokens=(tokens,))})

    def _output(
        self, latents: Float[Tensor, "n c h w"], timestep: Timestep, conditioning: Conditioning
    ) -> Float[Tensor, "n c h w"]:
        return self._transformer(
            hidden_states=latents,
            timestep=1 - timestep / self.schedule.total,
            **self.text_arguments(conditioning, {}),
            return_dict=False,
        )[0]

    def _shift(self, config: Mapping[str, Any], steps: int) -> float:
        # diffusers takes the number of channels for that of tokens.
        return linear_shift(self._config["in_channels"], config)
