"""Wan 2.1: UMT5's states, cut and filled with zeros that are read, projected once for the cross-attention."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..errors import InputError
from .conditioning import TEXT, Conditioning
from .schedule import Timestep
from .sites import Role, attention_roles
from .templated import Layout
from .video import VideoTransformer

_TOKENS = 512


@dataclass(frozen=True, eq=False)
class Wan(VideoTransformer):
    """A backbone of the Wan 2.1 text-to-video classes; see `Backbone` for its members."""

    covered: ClassVar[tuple[str, ...]] = ("Wan 2.1",)
    name: ClassVar[str] = "wan"
    transformers: ClassVar[tuple[str, ...]] = ("WanTransformer3DModel",)
    streams: ClassVar[Mapping[Role, str]] = {"cross.k": TEXT, "cross.v": TEXT}
    roles: ClassVar[Mapping[str, Role]] = {
        **attention_roles("*.attn1", "self"),
        **attention_roles("*.attn2", "cross"),
        "condition_embedder.text_embedder.*": "text.in",
        "condition_embedder.*": "time",
        "patch_embedding.*": "in",
        "*.ffn.net.2.*": "ff.out",
        "*.ffn.*": "ff.in",
    }
    text_only: ClassVar[tuple[str, ...]] = ("condition_embedder.text_embedder.*",)
    between: ClassVar[tuple[str, ...]] = ("condition_embedder.text_embedder",)
    encode_options: ClassVar[Mapping[str, Any]] = {
        "do_classifier_free_guidance": False,
        "max_sequence_length": _TOKENS,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if getattr(self.pipe, "transformer_2", None) is not None:
            raise InputError(
                "model: expected a Wan pipeline of one transformer, got one of two, both of which read the text."
                " Use Wan 2.1."
            )

    @property
    def layout(self) -> Layout:
        return Layout(longest=_TOKENS, width=_TOKENS, reads_padding=True, causal=False)

    def _output(self, latents: Tensor, timestep: Timestep, conditioning: Conditioning) -> Tensor:
        return self._transformer(latents[:, :, None], timestep, conditioning.states, return_dict=False)[0][:, :, 0]
