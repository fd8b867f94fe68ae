"""PixArt-alpha and PixArt-Sigma: T5's states, projected once for the cross-attention of all blocks; predict noise."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from .base import Ability
from .conditioning import TEXT, Conditioning
from .declared import DeclaredTransformer
from .sampling_loop import SamplingLoop
from .schedule import Discrete, NoiseSchedule, Timestep
from .sites import Role, attention_roles
from .templated import Layout

_SIGMA_TOKENS, _ALPHA_TOKENS = 300, 120


@dataclass(frozen=True, eq=False)
class PixArt(DeclaredTransformer):
    """A backbone of the PixArt classes; see `Backbone` for its members.

    Rows of closed forms are the projected states, which all keys and values read, as in Stable Diffusion.
    """

    covered: ClassVar[tuple[str, ...]] = ("PixArt-alpha", "PixArt-Sigma")
    name: ClassVar[str] = "pixart"
    abilities: ClassVar[frozenset[Ability]] = frozenset(
        ("images", "maps", "guidance", "layer guidance", "low memory", "mixed lengths")
    )
    transformers: ClassVar[tuple[str, ...]] = ("PixArtTransformer2DModel",)
    streams: ClassVar[Mapping[Role, str]] = {"cross.k": TEXT, "cross.v": TEXT}
    roles: ClassVar[Mapping[str, Role]] = {
        **attention_roles("*.attn1", "self"),
        **attention_roles("*.attn2", "cross"),
        "caption_projection.*": "text.in",
        "adaln_single.*": "time",
    }
    text_only: ClassVar[tuple[str, ...]] = ("caption_projection.*",)
    between: ClassVar[tuple[str, ...]] = ("caption_projection",)
    encode_options: ClassVar[Mapping[str, Any]] = {"do_classifier_free_guidance": False}
    mask_name: ClassVar[str] = "prompt_attention_mask"
    loop: ClassVar[SamplingLoop] = SamplingLoop(mask="encoder_attention_mask")
    packing: ClassVar[int] = 1
    schedule_kind: ClassVar[type[NoiseSchedule]] = Discrete

    def __post_init__(self) -> None:
        scheduler = self.pipe.scheduler
        if not hasattr(scheduler, "alphas_cumprod") or scheduler.config.get("prediction_type") != "epsilon":
            kind = type(scheduler).__name__
            raise InputError(f"scheduler: expected one of discrete timesteps, got {kind}. Use the model's own.")

    @property
    def schedule(self) -> NoiseSchedule:
        alphas: Tensor = self.pipe.scheduler.alphas_cumprod
        return Discrete(alphas_cumprod=alphas.to(self.device, torch.float32), prediction_type="epsilon")

    @property
    def layout(self) -> Layout:
        tokens = _SIGMA_TOKENS if "Sigma" in type(self.pipe).__name__ else _ALPHA_TOKENS
        return Layout(longest=tokens, width=tokens, causal=False)

    def templated(self, prompt: str) -> str:
        return prompt.lower().strip()

    def call_arguments(
        self, latents: Tensor, conditioning: Conditioning, negative: Conditioning | None, guidance_scale: float
    ) -> dict[str, Any]:
        scale = guidance_scale if negative is not None else 1.0
        arguments = super().call_arguments(latents, conditioning, negative, scale)
        return {**arguments, "negative_prompt": None, "use_resolution_binning": False}

    def _output(
        self, latents: Float[Tensor, "n c h w"], timestep: Timestep, conditioning: Conditioning
    ) -> Float[Tensor, "n c h w"]:
        output = self._transformer(
            latents,
            timestep=timestep,
            added_cond_kwargs=self._sizes(latents),
            **self.text_arguments(conditioning, {}),
            return_dict=False,
        )[0]
        return output[:, : latents.shape[1]]  # the rest is a learned variance

    def _sizes(self, latents: Tensor) -> dict[str, Tensor | None]:
        """Return the size and aspect ratio that the largest models are told."""
        if self._config["sample_size"] != 128:
            return {"resolution": None, "aspect_ratio": None}
        height, width = (side * self.pipe.vae_scale_factor for side in latents.shape[-2:])
        sizes = {"resolution": [height, width], "aspect_ratio": [height / width]}
        return {name: latents.new_tensor(size).expand(len(latents), -1) for name, size in sizes.items()}

    def _set_timesteps(self, scheduler: Any, steps: int) -> None:
        scheduler.set_timesteps(steps)
