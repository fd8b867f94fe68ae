"""CogVideoX: T5's states in one sequence with the video; predicts v."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from .conditioning import TEXT, Conditioning
from .schedule import Discrete, NoiseSchedule, Timestep
from .sites import Role, attention_roles
from .templated import Layout
from .video import VideoTransformer

_TOKENS = 226


@dataclass(frozen=True, eq=False)
class CogVideoX(VideoTransformer):
    """A backbone of the CogVideoX classes; see `Backbone` for its members."""

    covered: ClassVar[tuple[str, ...]] = ("CogVideoX",)
    name: ClassVar[str] = "cogvideox"
    transformers: ClassVar[tuple[str, ...]] = ("CogVideoXTransformer3DModel",)
    streams: ClassVar[Mapping[Role, str]] = {"text.in": TEXT}
    roles: ClassVar[Mapping[str, Role]] = {
        "patch_embed.text_proj.*": "text.in",
        "patch_embed.*": "in",
        "time_embedding.*": "time",
        **attention_roles("*.attn1", "shared"),
        "*.ff.*": "shared.in",
    }
    encode_options: ClassVar[Mapping[str, Any]] = {"do_classifier_free_guidance": False}
    schedule_kind: ClassVar[type[NoiseSchedule]] = Discrete

    def __post_init__(self) -> None:
        scheduler = self.pipe.scheduler
        if not hasattr(scheduler, "alphas_cumprod") or scheduler.config.get("prediction_type") != "v_prediction":
            kind = type(scheduler).__name__
            raise InputError(f"scheduler: expected one of v-prediction, got {kind}. Use the model's own.")

    @property
    def schedule(self) -> NoiseSchedule:
        alphas: Tensor = self.pipe.scheduler.alphas_cumprod
        return Discrete(alphas_cumprod=alphas.to(self.device, torch.float32), prediction_type="v_prediction")

    @property
    def layout(self) -> Layout:
        return Layout(longest=_TOKENS, width=_TOKENS, reads_padding=True, causal=False)

    def _output(self, latents: Tensor, timestep: Timestep, conditioning: Conditioning) -> Tensor:
        height, width = (side * self.pipe.vae_scale_factor_spatial for side in latents.shape[-2:])
        rotary = self._config["use_rotary_positional_embeddings"]
        return self._transformer(
            hidden_states=latents[:, None],
            encoder_hidden_states=conditioning.states,
            timestep=timestep,
            image_rotary_emb=self.pipe._prepare_rotary_positional_embeddings(height, width, 1, self.device)
            if rotary
            else None,
            return_dict=False,
        )[0][:, 0]
