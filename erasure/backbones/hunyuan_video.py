"""HunyuanVideo: a language model's states behind an instruction, their mean, and CLIP's sentence vector."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from .conditioning import POOLED, TEXT, Conditioning, Stream
from .declared import mask_of
from .loaded import unwrapped
from .schedule import Timestep
from .sites import Role, attention_roles
from .templated import Layout
from .video import VideoTransformer

_TOKENS = 256
_GUIDANCE = 1000.0  # an embedded guidance of 1, in the unit of the pipeline


@dataclass(frozen=True, eq=False)
class HunyuanVideo(VideoTransformer):
    """A backbone of the HunyuanVideo text-to-video classes; see `Backbone` for its members.

    Two layers read the text: one row by row, and one the mean of the rows, of which a map is the mean of the mapped.
    """

    covered: ClassVar[tuple[str, ...]] = ("HunyuanVideo",)
    name: ClassVar[str] = "hunyuan-video"
    transformers: ClassVar[tuple[str, ...]] = ("HunyuanVideoTransformer3DModel",)
    streams: ClassVar[Mapping[Role, str]] = {"text.in": TEXT, "text.mean": TEXT, "pooled.in": POOLED}
    roles: ClassVar[Mapping[str, Role]] = {
        "context_embedder.proj_in.*": "text.in",
        "context_embedder.time_text_embed.text_embedder.linear_1.weight": "text.mean",
        "context_embedder.time_text_embed.*": "time",
        **attention_roles("context_embedder.token_refiner.*.attn", "refiner"),
        "context_embedder.*": "refiner.in",
    }
    text_only: ClassVar[tuple[str, ...]] = (
        "context_embedder.time_text_embed.text_embedder.linear_2",
        "context_embedder.token_refiner.refiner_blocks.0.attn.to_*",
        "time_text_embed.text_embedder.linear_2",
    )
    position: ClassVar[Literal["first", "last"]] = "last"
    side: ClassVar[Sequence[int]] = (90, 160)

    @classmethod
    def covers(cls, pipe: DiffusionPipeline) -> bool:
        """Return True if the pipeline has the family's transformer, and it makes videos of texts."""
        config = getattr(unwrapped(getattr(pipe, "transformer", None)), "config", {})
        return super().covers(pipe) and config.get("image_condition_type") is None

    @property
    def _template(self) -> Mapping[str, Any]:
        return inspect.signature(self.pipe.encode_prompt).parameters["prompt_template"].default

    @property
    def layout(self) -> Layout:
        dropped = self._template["crop_start"]
        return Layout(longest=_TOKENS + dropped, dropped=dropped, width=_TOKENS)

    def last_layers(self) -> Mapping[str, int]:
        return {"text_encoder": -2}

    def templated(self, prompt: str) -> str:
        return str(self._template["template"].format(prompt))

    def _encoded(self, prompts: list[str]) -> Conditioning:
        states, pooled, _ = self._encode_prompt(list(prompts), max_sequence_length=_TOKENS)
        assert states is not None and pooled is not None  # noqa: S101, PT018 - of prompts
        tokens = self._tokens("text_encoder", prompts, self.layout.longest)
        streams = {
            TEXT: Stream(states=states.to(self.device, self.dtype), tokens=(tokens,)),
            POOLED: Stream(states=pooled[:, None].to(self.device, self.dtype)),
        }
        return Conditioning(prompts=tuple(prompts), streams=streams)

    def _output(self, latents: Tensor, timestep: Timestep, conditioning: Conditioning) -> Tensor:
        guidance = torch.full((len(latents),), _GUIDANCE).to(latents) if self._config["guidance_embeds"] else None
        return self._transformer(
            hidden_states=latents[:, :, None],
            timestep=timestep,
            encoder_hidden_states=conditioning.states,
            encoder_attention_mask=mask_of(conditioning),
            pooled_projections=conditioning.pooled,
            guidance=guidance,
            return_dict=False,
        )[0][:, :, 0]
