"""CogView4: a language model's states behind padding that is read, so each prompt has a length of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .base import Ability
from .conditioning import TEXT, Conditioning
from .declared import DeclaredTransformer, mask_of
from .sampling_loop import SamplingLoop
from .schedule import Timestep
from .sites import Role, attention_roles
from .templated import Layout


@dataclass(frozen=True, eq=False)
class CogView4(DeclaredTransformer):
    """A backbone of the CogView4 classes; see `Backbone` for its members.

    The states depend on the padding, which the pipeline adds up to the longest prompt of a batch: every prompt is
    encoded and sampled as if alone. The model is told the timestep before the shift of the noise level.
    """

    covered: ClassVar[tuple[str, ...]] = ("CogView4",)
    name: ClassVar[str] = "cogview4"
    abilities: ClassVar[frozenset[Ability]] = frozenset(("images", "guidance", "lora", "low memory"))
    loop: ClassVar[SamplingLoop] = SamplingLoop(unconditional="two calls")
    transformers: ClassVar[tuple[str, ...]] = ("CogView4Transformer2DModel",)
    streams: ClassVar[Mapping[Role, str]] = {"text.in": TEXT}
    roles: ClassVar[Mapping[str, Role]] = {
        "patch_embed.text_proj.*": "text.in",
        "patch_embed.*": "in",
        "time_condition_embed.*": "time",
        **attention_roles("*.attn1", "shared"),
        "*.ff.*": "shared.in",
    }
    encode_options: ClassVar[Mapping[str, Any]] = {"do_classifier_free_guidance": False}

    def last_layers(self) -> Mapping[str, int]:
        return {"text_encoder": -1}

    @property
    def layout(self) -> Layout:
        return Layout(longest=1024, left=True, multiple=16)

    @property
    def _at_once(self) -> int:
        return 1

    def call_arguments(
        self, latents: Tensor, conditioning: Conditioning, negative: Conditioning | None, guidance_scale: float
    ) -> dict[str, Any]:
        arguments = super().call_arguments(latents, conditioning, negative, guidance_scale)
        if negative is None:
            arguments["guidance_scale"] = 1.0
        return {
            **arguments,
            **{
                name: states.states[:, : int(mask_of(states)[0].sum())]
                for name, states in (("prompt_embeds", conditioning), ("negative_prompt_embeds", negative))
                if states is not None
            },
        }

    def text_arguments(self, conditioning: Conditioning, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {"encoder_hidden_states": conditioning.states[:, : int(mask_of(conditioning).sum(1).max())]}

    def _output(
        self, latents: Float[Tensor, "n c h w"], timestep: Timestep, conditioning: Conditioning
    ) -> Float[Tensor, "n c h w"]:
        height, width = (side * self.pipe.vae_scale_factor for side in latents.shape[-2:])
        size = latents.new_tensor([[height, width]]).expand(len(latents), -1)
        lengths = mask_of(conditioning).sum(1)
        output = torch.empty_like(latents)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero().flatten()
            output = output.index_copy(
                0,
                rows,
                self._transformer(
                    hidden_states=latents[rows],
                    encoder_hidden_states=conditioning.states[rows, :length],
                    timestep=self._unshifted(timestep)[rows],
                    original_size=size[rows],
                    target_size=size[rows],
                    crop_coords=torch.zeros_like(size[rows]),
                    return_dict=False,
                )[0],
            )
        return output

    def _unshifted(self, timestep: Timestep) -> Tensor:
        """Return the timestep that the scheduler shifted to a noise level: t / (1 - t) = s / (1 - s) / mu."""
        config, total = self.pipe.scheduler.config, self.schedule.total
        level = timestep.float() / total
        mu = torch.tensor(self._shift(config, 1) if config.get("use_dynamic_shifting") else float(config["shift"]))
        mu = mu.exp() if config.get("time_shift_type") == "exponential" and config["use_dynamic_shifting"] else mu
        return total * level / (level + mu.to(level) * (1 - level))

    def _shift(self, config: Mapping[str, Any], steps: int) -> float:
        root = (self._image_tokens / config.get("base_image_seq_len", 256)) ** 0.5
        return root * config.get("max_shift", 0.75) + config.get("base_shift", 0.25)

    def _set_timesteps(self, scheduler: Any, steps: int) -> None:
        total = scheduler.config.num_train_timesteps
        whole = torch.linspace(total, 1.0, steps, dtype=torch.float64).long().double()
        scheduler.set_timesteps(
            timesteps=whole.tolist(), sigmas=(whole / total).tolist(), mu=self._shift(scheduler.config, steps)
        )
