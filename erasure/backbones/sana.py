"""SANA: a language model's states behind a long instruction, projected once for the cross-attention of all blocks."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .base import Ability
from .conditioning import TEXT, Conditioning, Stream
from .declared import DeclaredTransformer
from .sampling_loop import SamplingLoop
from .schedule import Timestep
from .sites import Role, attention_roles
from .templated import Layout, templated_tokens

_TOKENS = 300


@dataclass(frozen=True, eq=False)
class Sana(DeclaredTransformer):
    """A backbone of the SANA classes; see `Backbone` for its members.

    Rows of closed forms are the projected states, which all keys and values read, as in Stable Diffusion.
    """

    covered: ClassVar[tuple[str, ...]] = ("SANA",)
    name: ClassVar[str] = "sana"
    abilities: ClassVar[frozenset[Ability]] = DeclaredTransformer.abilities.union(("layer guidance",))
    transformers: ClassVar[tuple[str, ...]] = ("SanaTransformer2DModel",)
    streams: ClassVar[Mapping[Role, str]] = {"cross.k": TEXT, "cross.v": TEXT}
    roles: ClassVar[Mapping[str, Role]] = {
        **attention_roles("*.attn1", "self"),
        **attention_roles("*.attn2", "cross"),
        "caption_projection.*": "text.in",
        "caption_norm.*": "norm",
        "time_embed.*": "time",
        "patch_embed.*": "in",
        "*.ff.*": "ff.in",
    }
    text_only: ClassVar[tuple[str, ...]] = ("caption_projection.*",)
    between: ClassVar[tuple[str, ...]] = ("caption_projection", "caption_norm")
    mask_name: ClassVar[str] = "prompt_attention_mask"
    loop: ClassVar[SamplingLoop] = SamplingLoop(mask="encoder_attention_mask")
    packing: ClassVar[int] = 1

    @property
    def _instruction(self) -> list[str]:
        return inspect.signature(type(self.pipe).__call__).parameters["complex_human_instruction"].default

    @property
    def layout(self) -> Layout:
        length = len(self.pipe.tokenizer.encode("\n".join(self._instruction)))
        # The first state, which is the start of text's, and the last 299.
        return Layout(longest=length + _TOKENS - 2, dropped=length - 2, width=_TOKENS)

    def templated(self, prompt: str) -> str:
        return "\n".join(self._instruction) + _prepared(prompt)

    def unconditional(self) -> Conditioning:
        return self.negative([""])

    def negative(self, prompts: Sequence[str]) -> Conditioning:
        """Return negative prompts, which the pipeline reads without its instruction."""
        layout = replace(self.layout, longest=_TOKENS, dropped=0)
        tokens = templated_tokens(self.pipe.tokenizer, "text_encoder", prompts, _prepared, layout)
        with torch.no_grad():
            states = self._encode_prompt(list(prompts), do_classifier_free_guidance=False)[0]
        assert states is not None  # noqa: S101 - of prompts
        states = states.to(self.device, self.dtype)
        return Conditioning(prompts=tuple(prompts), streams={TEXT: Stream(states=states, tokens=(tokens,))})

    def call_arguments(
        self, latents: Tensor, conditioning: Conditioning, negative: Conditioning | None, guidance_scale: float
    ) -> dict[str, Any]:
        arguments = super().call_arguments(latents, conditioning, negative, guidance_scale)
        return {**arguments, "negative_prompt": None, "use_resolution_binning": False}

    def _states(self, prompts: list[str]) -> Float[Tensor, "n tokens dim"]:
        states = self._encode_prompt(
            prompts, do_classifier_free_guidance=False, complex_human_instruction=self._instruction
        )[0]
        assert states is not None  # noqa: S101 - of prompts
        return states

    def _output(
        self, latents: Float[Tensor, "n c h w"], timestep: Timestep, conditioning: Conditioning
    ) -> Float[Tensor, "n c h w"]:
        output = self._transformer(
            latents,
            timestep=timestep * self._config["timestep_scale"],
            **self.text_arguments(conditioning, {}),
            return_dict=False,
        )[0]
        return output[:, : latents.shape[1]]  # of a learned variance the rest

    def _set_timesteps(self, scheduler: Any, steps: int) -> None:
        scheduler.set_timesteps(steps)


def _prepared(prompt: str) -> str:
    """Return a prompt as the pipeline prepares it."""
    return prompt.lower().strip()
