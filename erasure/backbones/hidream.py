"""HiDream-I1: T5's states, a layer of Llama's for each block, and the sentence vectors of two CLIP encoders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .base import Ability
from .conditioning import POOLED, TEXT, Conditioning, EncodedTokens, Stream
from .declared import DeclaredTransformer, linear_shift
from .sampling_loop import SamplingLoop
from .schedule import Timestep
from .sites import Role, Site, attention_roles
from .templated import Layout, templated_tokens

_TOKENS = 128


@dataclass(frozen=True, eq=False)
class HiDream(DeclaredTransformer):
    """A backbone of the HiDream-I1 classes; see `Backbone` for its members.

    Each layer of Llama that a block reads is a stream: "llama.3" is the fourth.
    """

    covered: ClassVar[tuple[str, ...]] = ("HiDream-I1",)
    name: ClassVar[str] = "hidream"
    abilities: ClassVar[frozenset[Ability]] = frozenset(
        ("images", "guidance", "clip", "lora", "low memory", "mixed lengths")
    )
    loop: ClassVar[SamplingLoop] = SamplingLoop(axes={"encoder_hidden_states_llama3": 1}, sign=-1)
    transformers: ClassVar[tuple[str, ...]] = ("HiDreamImageTransformer2DModel",)
    streams: ClassVar[Mapping[Role, str]] = {"text.in": TEXT, "pooled.in": POOLED}
    roles: ClassVar[Mapping[str, Role]] = {
        "caption_projection.*": "text.in",
        "p_embedder.pooled_embedder.linear_1.weight": "pooled.in",
        "p_embedder.*": "pooled",
        "t_embedder.*": "time",
        "final_layer.*": "out",
        **{f"double_stream_blocks.*.attn1.to_{p}_t.*": f"joint.text.{p}" for p in ("q", "k", "v", "out")},
        **attention_roles("double_stream_blocks.*.attn1", "joint"),
        **attention_roles("single_stream_blocks.*.attn1", "shared"),
        "*.adaLN_modulation.*": "modulation",
        "double_stream_blocks.*.ff_t.*": "ff.text.in",
        "double_stream_blocks.*.ff_i.*": "ff.in",
        "single_stream_blocks.*.ff_i.*": "shared.in",
    }
    lora_prefix: ClassVar[str] = "diffusion_model."
    text_only: ClassVar[tuple[str, ...]] = ("p_embedder.pooled_embedder.linear_2",)
    position: ClassVar[Literal["first", "last"]] = "last"

    def last_layers(self) -> Mapping[str, int]:
        return {"text_encoder_4": max(self._config["llama_layers"]) + 1}

    @property
    def layout(self) -> Layout:
        return Layout(longest=_TOKENS, width=_TOKENS, reads_padding=True, causal=False)

    @classmethod
    def stream_names(cls) -> tuple[str, ...]:
        return (*super().stream_names(), "llama.N")

    def sites(self, roles: Any = None, *, reads: str | None = None) -> dict[str, Site]:
        layers = [f"llama.{layer}" for layer in self._config["llama_layers"]]
        streams = {f"transformer.caption_projection.{i}.linear.weight": layer for i, layer in enumerate(layers)}
        sites = super().sites(roles)
        named = {name: replace(site, reads=streams.get(name, site.reads)) for name, site in sites.items()}
        return {name: site for name, site in named.items() if reads is None or site.reads == reads}

    def call_arguments(
        self, latents: Tensor, conditioning: Conditioning, negative: Conditioning | None, guidance_scale: float
    ) -> dict[str, Any]:
        arguments = {"latents": latents, "guidance_scale": 1.0 if negative is None else guidance_scale}
        for prefix, rows in (("", conditioning), ("negative_", negative)):
            if rows is not None:
                arguments[f"{prefix}prompt_embeds_t5"] = rows.states
                arguments[f"{prefix}prompt_embeds_llama3"] = self._llama(rows)
                arguments[f"{prefix}pooled_prompt_embeds"] = rows.pooled
        return arguments

    def text_arguments(self, conditioning: Conditioning, arguments: Mapping[str, Any]) -> dict[str, Any]:
        llama = self._llama(conditioning)
        layers = arguments.get("encoder_hidden_states_llama3", llama)  # the loop's has those that no block reads
        return {
            "encoder_hidden_states_t5": conditioning.states,
            "encoder_hidden_states_llama3": torch.cat(
                [llama, llama.new_zeros(len(layers) - len(llama), *llama.shape[1:])]
            ),
            "pooled_embeds": conditioning.pooled,
        }

    def _encoded(self, prompts: list[str]) -> Conditioning:
        t5, _, llama, _, pooled, _ = self._encode_prompt(
            list(prompts), do_classifier_free_guidance=False, max_sequence_length=_TOKENS
        )
        assert t5 is not None and llama is not None and pooled is not None  # noqa: S101, PT018 - of prompts
        t5_tokens, llama_tokens = (self._tokens_of(name, prompts) for name in ("text_encoder_3", "text_encoder_4"))
        layers = sorted(set(self._config["llama_layers"]))
        streams = {TEXT: (t5, t5_tokens), POOLED: (pooled[:, None], ())}
        streams |= {f"llama.{layer}": (llama[layer], llama_tokens) for layer in layers}
        placed = {
            name: Stream(states=states.to(self.device, self.dtype), tokens=tokens)
            for name, (states, tokens) in streams.items()
        }
        return Conditioning(prompts=tuple(prompts), streams=placed)

    def _tokens_of(self, encoder: str, prompts: Sequence[str]) -> tuple[EncodedTokens, ...]:
        tokenizer = self.tokenizers()[encoder]
        # The states of padding on the left average over all tokens: these are no rows.
        layout = replace(self.layout, causal=encoder == "text_encoder_4", left=tokenizer.padding_side == "left")
        return (templated_tokens(tokenizer, encoder, prompts, self.templated, layout),)

    @property
    def _readers(self) -> dict[str, int]:
        return {"text_encoder_3": _TOKENS, "text_encoder_4": _TOKENS}

    def _llama(self, conditioning: Conditioning) -> Float[Tensor, "layers n tokens dim"]:
        """Return the states of Llama's layers as the pipeline takes them; those that no block reads are zeros."""
        read = {layer: conditioning.streams[f"llama.{layer}"].states for layer in set(self._config["llama_layers"])}
        nothing = torch.zeros_like(next(iter(read.values())))
        return torch.stack([read.get(layer, nothing) for layer in range(max(read) + 1)])

    def _output(
        self, latents: Float[Tensor, "n c h w"], timestep: Timestep, conditioning: Conditioning
    ) -> Float[Tensor, "n c h w"]:
        return self._transformer(
            hidden_states=latents, timesteps=timestep, **self.text_arguments(conditioning, {}), return_dict=False
        )[0]

    def _set_timesteps(self, scheduler: Any, steps: int) -> None:
        scheduler.set_timesteps(steps, mu=linear_shift(self._transformer.max_seq, {}))
