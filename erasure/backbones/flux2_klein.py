"""FLUX.2 klein: FLUX.2 with a smaller language model and a guidance of its own."""

from dataclasses import dataclass
from typing import Any, ClassVar

from diffusers import DiffusionPipeline
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .autoencoder import to_denoiser
from .base import Ability
from .conditioning import Conditioning
from .flux2 import Flux2
from .loaded import unwrapped
from .sampling_loop import SamplingLoop
from .templated import Layout, chat_text


@dataclass(frozen=True, eq=False)
class Flux2Klein(Flux2):
    """A backbone of the FLUX.2 klein classes; see `Backbone` for its members."""

    covered: ClassVar[tuple[str, ...]] = ("FLUX.2 klein",)
    name: ClassVar[str] = "flux2-klein"
    abilities: ClassVar[frozenset[Ability]] = Flux2.abilities.union(("guidance",))
    loop: ClassVar[SamplingLoop] = SamplingLoop(unconditional="two calls")

    @classmethod
    def covers(cls, pipe: DiffusionPipeline) -> bool:
        """Return True if the pipeline has the family's transformer and encoder."""
        encoder = type(unwrapped(getattr(pipe, "text_encoder", None))).__name__
        return super(Flux2, cls).covers(pipe) and encoder.startswith("Qwen3")

    @property
    def layout(self) -> Layout:
        longest = self.pipe.tokenizer_max_length
        return Layout(longest=longest, width=longest, reads_padding=True)

    @property
    def distilled(self) -> bool:
        return bool(self.pipe.config["is_distilled"])

    def tokenizers(self) -> dict[str, PreTrainedTokenizerBase]:
        return {"text_encoder": self.pipe.tokenizer}

    def templated(self, prompt: str) -> str:
        return chat_text(self.pipe.tokenizer, prompt, thinks=False)

    def call_arguments(
        self, latents: Tensor, conditioning: Conditioning, negative: Conditioning | None, guidance_scale: float
    ) -> dict[str, Any]:
        arguments = super().call_arguments(latents, conditioning, negative, guidance_scale)
        if negative is None or self.distilled:
            return {**arguments, "guidance_scale": 1.0}
        return {**arguments, "negative_prompt_embeds": negative.states}

    def unpacked(self, latents: Tensor, height: int | None = None, width: int | None = None) -> Tensor:
        # The call returns them as the autoencoder takes them: the statistics of its batch norm are taken back.
        return to_denoiser(self.pipe.vae, latents)
