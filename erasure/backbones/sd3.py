"""Stable Diffusion 3 and 3.5: two CLIP text encoders side by side, T5 after them, a sentence vector."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from diffusers import DiffusionPipeline, SD3Transformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from jaxtyping import Float
from torch import Tensor

from .base import Ability
from .conditioning import Conditioning
from .joint import JointTransformer
from .loaded import unwrapped
from .schedule import Timestep

# What the pipeline's call reads of T5's tokens unless told otherwise.
_T5_TOKENS = 256


@dataclass(frozen=True, eq=False)
class StableDiffusion3(JointTransformer):
    """A backbone of the Stable Diffusion 3 classes; see `Backbone` for its members."""

    covered: ClassVar[tuple[str, ...]] = ("Stable Diffusion 3",)
    abilities: ClassVar[frozenset[Ability]] = JointTransformer.abilities.union(("guidance", "map guidance"))

    @classmethod
    def covers(cls, pipe: DiffusionPipeline) -> bool:
        """Return True if the pipeline has the family's transformer."""
        return isinstance(unwrapped(getattr(pipe, "transformer", None)), SD3Transformer2DModel)

    @property
    def family(self) -> str:
        return "sd3"

    @property
    def text_position(self) -> Literal["first", "last"]:
        return "last"

    @property
    def _readers(self) -> dict[str, int]:
        clip = {"text_encoder": self.pipe.tokenizer_max_length}
        return clip if self.pipe.text_encoder_3 is None else {**clip, "text_encoder_3": self._length}

    @property
    def _length(self) -> int:
        tokenizer = self.pipe.tokenizer_3
        return _T5_TOKENS if tokenizer is None else self._t5_length(tokenizer, _T5_TOKENS)

    def call_arguments(
        self, latents: Tensor, conditioning: Conditioning, negative: Conditioning | None, guidance_scale: float
    ) -> dict[str, Any]:
        arguments = super().call_arguments(latents, conditioning, negative, guidance_scale)
        return {**arguments, "max_sequence_length": self._length}

    def predict(
        self, latents: Float[Tensor, "n c h w"], timestep: Timestep, conditioning: Conditioning
    ) -> Float[Tensor, "n c h w"]:
        latents = latents.to(self.device, self.dtype)
        assert conditioning.pooled is not None  # noqa: S101 - of this family's own encoding
        return self._transformer(
            hidden_states=latents,
            timestep=timestep.to(latents.device).expand(len(latents)),
            encoder_hidden_states=conditioning.states.to(latents),
            pooled_projections=conditioning.pooled.to(latents),
            return_dict=False,
        )[0]

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        sides = self._latent_sides(self._config["sample_size"], height, width, self._config["patch_size"])
        return (self._config["in_channels"], sides[0], sides[1])

    def _embeddings(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        states, _, pooled, _ = self._encode_prompt(
            list(prompts), None, None, do_classifier_free_guidance=False, max_sequence_length=self._length
        )
        assert states is not None and pooled is not None  # noqa: S101, PT018 - of prompts
        return states, pooled

    def _set_timesteps(self, scheduler: Any, steps: int) -> None:
        config = scheduler.config
        shift: dict[str, float] = {}
        if config.get("use_dynamic_shifting", None):
            limits = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
            shift["mu"] = calculate_shift(self._image_tokens, *(config[name] for name in limits))
        scheduler.set_timesteps(steps, **shift)
