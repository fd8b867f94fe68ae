"""Mochi 1: T5's states, projected for the blocks and pooled by attention of their mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from .conditioning import TEXT, Conditioning
from .declared import mask_of
from .schedule import Timestep
from .sites import Role
from .templated import Layout
from .video import VideoTransformer

_TOKENS = 256


@dataclass(frozen=True, eq=False)
class Mochi(VideoTransformer):
    """A backbone of the Mochi 1 classes; see `Backbone` for its members.

    A pipeline that is told so reads nothing of an empty prompt; here its states are those of an empty text.
    """

    covered: ClassVar[tuple[str, ...]] = ("Mochi 1",)
    name: ClassVar[str] = "mochi"
    transformers: ClassVar[tuple[str, ...]] = ("MochiTransformer3DModel",)
    streams: ClassVar[Mapping[Role, str]] = {"text.in": TEXT, "text.mean": TEXT}
    roles: ClassVar[Mapping[str, Role]] = {
        "time_embed.caption_proj.*": "text.in",
        "time_embed.pooler.to_kv.*": "text.in",
        "time_embed.pooler.to_q.*": "text.mean",
        "time_embed.*": "time",
        "patch_embed.*": "in",
        "pos_frequencies": "in",
    }
    text_only: ClassVar[tuple[str, ...]] = ("time_embed.pooler.to_out",)
    position: ClassVar[Literal["first", "last"]] = "last"
    scale_name: ClassVar[str] = "vae_spatial_scale_factor"
    side: ClassVar[Sequence[int]] = (60, 106)

    @property
    def layout(self) -> Layout:
        return Layout(longest=_TOKENS, width=_TOKENS, causal=False)

    def _states(self, prompts: list[str]) -> Float[Tensor, "n tokens dim"]:
        # One that ends in an empty prompt would be read as empty throughout.
        states = self._encode_prompt([*prompts, "."], do_classifier_free_guidance=False, max_sequence_length=_TOKENS)[0]
        assert states is not None  # noqa: S101 - of prompts
        return states[: len(prompts)]

    def _output(self, latents: Tensor, timestep: Timestep, conditioning: Conditioning) -> Tensor:
        return -self._transformer(
            latents[:, :, None],
            conditioning.states,
            self.schedule.total - timestep,
            mask_of(conditioning),
            return_dict=False,
        )[0][:, :, 0]
