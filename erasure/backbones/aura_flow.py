"""AuraFlow: states of an encoder like T5, zeros for padding, behind eight learned tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from .base import Ability
from .conditioning import TEXT, Conditioning
from .declared import DeclaredTransformer
from .schedule import Timestep
from .sites import Role, attention_roles
from .templated import Layout


@dataclass(frozen=True, eq=False)
class AuraFlow(DeclaredTransformer):
    """A backbone of the AuraFlow classes; see `Backbone` for its members."""

    covered: ClassVar[tuple[str, ...]] = ("AuraFlow",)
    name: ClassVar[str] = "aura-flow"
    abilities: ClassVar[frozenset[Ability]] = frozenset(("images", "guidance", "lora", "low memory", "mixed lengths"))
    transformers: ClassVar[tuple[str, ...]] = ("AuraFlowTransformer2DModel",)
    streams: ClassVar[Mapping[Role, str]] = {"text.in": TEXT}
    roles: ClassVar[Mapping[str, Role]] = {
        **attention_roles("single_transformer_blocks.*.attn", "shared"),
        "time_step_*": "time",
        "register_tokens": "other",
    }
    encode_options: ClassVar[Mapping[str, Any]] = {"do_classifier_free_guidance": False}
    mask_name: ClassVar[str] = "prompt_attention_mask"

    @property
    def layout(self) -> Layout:
        return Layout(longest=256, width=256, causal=False)

    def _output(
        self, latents: Float[Tensor, "n c h w"], timestep: Timestep, conditioning: Conditioning
    ) -> Float[Tensor, "n c h w"]:
        return self._transformer(
            latents,
            timestep=timestep.to(latents) / self.schedule.total,
            **self.text_arguments(conditioning, {}),
            return_dict=False,
        )[0]

    def _set_timesteps(self, scheduler: Any, steps: int) -> None:
        scheduler.set_timesteps(steps)
