"""Qwen-Image: a language model's states of the prompt in a fixed instruction, through a norm; packed latents."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from .conditioning import TEXT, Conditioning
from .declared import DeclaredTransformer
from .sampling_loop import SamplingLoop
from .schedule import Timestep
from .sites import Role
from .templated import Layout


@dataclass(frozen=True, eq=False)
class QwenImage(DeclaredTransformer):
    """A backbone of the Qwen-Image classes; see `Backbone` for its members."""

    covered: ClassVar[tuple[str, ...]] = ("Qwen-Image",)
    name: ClassVar[str] = "qwen-image"
    loop: ClassVar[SamplingLoop] = SamplingLoop(unconditional="two calls", mask="encoder_hidden_states_mask")
    transformers: ClassVar[tuple[str, ...]] = ("QwenImageTransformer2DModel",)
    streams: ClassVar[Mapping[Role, str]] = {"text.in": TEXT}
    roles: ClassVar[Mapping[str, Role]] = {
        "txt_in.*": "text.in",
        "txt_norm.*": "norm",
        "img_in.*": "in",
        "*.img_mlp.net.2.*": "ff.out",
        "*.img_mlp.*": "ff.in",
        "*.txt_mlp.net.2.*": "ff.text.out",
        "*.txt_mlp.*": "ff.text.in",
        "*_mod.*": "modulation",
    }
    between: ClassVar[tuple[str, ...]] = ("txt_norm",)
    original_names: ClassVar[Mapping[str, str]] = {"txt_in": "txt_in"}
    lora_prefix: ClassVar[str] = "lora_unet_"
    mask_name: ClassVar[str] = "prompt_embeds_mask"
    latent_layout: ClassVar[Literal["plain", "packed"]] = "packed"

    @property
    def layout(self) -> Layout:
        dropped = self.pipe.prompt_template_encode_start_idx
        return Layout(longest=self.pipe.tokenizer_max_length + dropped, dropped=dropped)

    def templated(self, prompt: str) -> str:
        return self.pipe.prompt_template_encode.format(prompt)

    def unconditional(self) -> Conditioning:
        return self.encode([" "])

    def call_arguments(
        self, latents: Tensor, conditioning: Conditioning, negative: Conditioning | None, guidance_scale: float
    ) -> dict[str, Any]:
        arguments = super().call_arguments(latents, conditioning, negative, guidance_scale)
        scale = arguments.pop("guidance_scale")
        scale = scale if negative is not None else 1.0
        embedded = {"guidance_scale": 1.0} if self._config["guidance_embeds"] else {}
        return {**arguments, **embedded, "true_cfg_scale": scale}

    def _output(
        self, latents: Float[Tensor, "n c h w"], timestep: Timestep, conditioning: Conditioning
    ) -> Float[Tensor, "n c h w"]:
        n, _, height, width = latents.shape
        guidance = latents.new_ones(n).float() if self._config["guidance_embeds"] else None
        output = self._transformer(
            hidden_states=self._packed(latents),
            timestep=timestep / self.schedule.total,
            guidance=guidance,
            img_shapes=[[(1, height // self.packing, width // self.packing)]] * n,
            **self.text_arguments(conditioning, {}),
            return_dict=False,
        )[0]
        return self._unpacked(output, height, width)
