"""LTX-Video: T5's states, projected once for the cross-attention of all blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .conditioning import TEXT, Conditioning
from .declared import mask_of
from .schedule import Timestep
from .sites import Role, attention_roles
from .templated import Layout
from .video import VideoTransformer

_TOKENS = 128


@dataclass(frozen=True, eq=False)
class LTXVideo(VideoTransformer):
    """A backbone of the LTX-Video classes; see `Backbone` for its members."""

    covered: ClassVar[tuple[str, ...]] = ("LTX-Video",)
    name: ClassVar[str] = "ltx"
    transformers: ClassVar[tuple[str, ...]] = ("LTXVideoTransformer3DModel",)
    streams: ClassVar[Mapping[Role, str]] = {"cross.k": TEXT, "cross.v": TEXT}
    roles: ClassVar[Mapping[str, Role]] = {
        **attention_roles("*.attn1", "self"),
        **attention_roles("*.attn2", "cross"),
        "caption_projection.*": "text.in",
        "time_embed.*": "time",
        "proj_in.*": "in",
    }
    lora_prefix: ClassVar[str] = "diffusion_model."
    text_only: ClassVar[tuple[str, ...]] = ("caption_projection.*",)
    between: ClassVar[tuple[str, ...]] = ("caption_projection",)
    encode_options: ClassVar[Mapping[str, Any]] = {"do_classifier_free_guidance": False}
    scale_name: ClassVar[str] = "vae_spatial_compression_ratio"
    side: ClassVar[Sequence[int]] = (16, 22)

    @property
    def layout(self) -> Layout:
        return Layout(longest=_TOKENS, width=_TOKENS, causal=False)

    def _output(self, latents: Tensor, timestep: Timestep, conditioning: Conditioning) -> Tensor:
        height, width = latents.shape[-2:]
        output = self._transformer(
            hidden_states=latents.flatten(2).transpose(1, 2),
            encoder_hidden_states=conditioning.states,
            timestep=timestep,
            encoder_attention_mask=mask_of(conditioning),
            num_frames=1,
            height=height,
            width=width,
            return_dict=False,
        )[0]
        return output.transpose(1, 2).unflatten(2, (height, width))
