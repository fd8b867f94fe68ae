"""Stable Diffusion 1.x and 2.x, and other models of their classes: one CLIP text encoder, one UNet."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..io.text import composed
from .base import Ability
from .conditioning import (
    PADDED,
    POOLED,
    TEXT,
    Conditioning,
    EncodedTokens,
    Stream,
    first_end_of_text,
    tokenized,
)
from .loaded import LoadedModel, joined, textual_inversion_applied, unwrapped
from .picked import PickedStates, PickedTexts, Place, PlacesOf
from .schedule import Discrete, NoiseSchedule, PredictionType, Timestep
from .sites import Role, unet_role
from .token_tree import TokenTree, attends_by_sdpa, read_places, read_tree

Answer = TypeVar("Answer")


@dataclass(frozen=True, eq=False)
class StableDiffusion(LoadedModel):
    """A backbone of the Stable Diffusion 1.x and 2.x classes; see `Backbone` for its members."""

    covered: ClassVar[tuple[str, ...]] = ("Stable Diffusion 1.x", "Stable Diffusion 2.x")
    denoiser_name: ClassVar[str] = "unet"
    reads_clip: ClassVar[bool] = True
    abilities: ClassVar[frozenset[Ability]] = frozenset(
        (
            *("images", "maps", "guidance", "layer guidance", "map guidance", "unet guidance"),
            *("clip", "token ids", "lora", "low memory", "mixed lengths"),
        )
    )
    schedule_kind: ClassVar[type[NoiseSchedule]] = Discrete
    streams: ClassVar[Mapping[Role, str]] = {"cross.k": TEXT, "cross.v": TEXT}

    def __post_init__(self) -> None:
        _ = self.prediction_type  # a scheduler that cannot be used is refused at once
        if not hasattr(self.pipe.scheduler, "alphas_cumprod"):
            kind = type(self.pipe.scheduler).__name__
            raise InputError(
                f"scheduler: expected one of discrete timesteps, got {kind}. Use the model's own scheduler."
            )

    @classmethod
    def covers(cls, pipe: DiffusionPipeline) -> bool:
        """Return True if the pipeline has one CLIP text encoder and a UNet with cross-attention."""
        return (
            isinstance(unwrapped(getattr(pipe, "unet", None)), UNet2DConditionModel)
            and isinstance(unwrapped(getattr(pipe, "text_encoder", None)), CLIPTextModel)
            and getattr(pipe, "text_encoder_2", None) is None
        )

    @property
    def family(self) -> str:
        # 1.x reads the 768-wide CLIP, 2.x the 1024-wide OpenCLIP; a small model is recognised by its v-prediction.
        width = self._unet.config["cross_attention_dim"]
        is_second = width == 1024 or (width != 768 and self.prediction_type == "v_prediction")
        return "sd2" if is_second else "sd1"

    @property
    def prediction_type(self) -> PredictionType:
        prediction_type = self.pipe.scheduler.config.get("prediction_type")
        if prediction_type not in ("epsilon", "v_prediction"):
            raise InputError(
                f"scheduler.prediction_type: expected 'epsilon' or 'v_prediction', got {prediction_type!r} of"
                f" {type(self.pipe.scheduler).__name__}. Use the model's own scheduler."
            )
        return prediction_type

    @property
    def schedule(self) -> Discrete:
        alphas: Tensor = self.pipe.scheduler.alphas_cumprod
        return Discrete(alphas_cumprod=alphas.to(self.device, torch.float32), prediction_type=self.prediction_type)

    @property
    def _unet(self) -> UNet2DConditionModel:
        return unwrapped(self.pipe.unet)

    @classmethod
    def role_of(cls, name: str) -> Role:
        return unet_role(name)

    def text_encoders(self) -> dict[str, PreTrainedModel]:
        return {"text_encoder": unwrapped(self.pipe.text_encoder)}

    def tokenizers(self) -> dict[str, PreTrainedTokenizerBase]:
        return {"text_encoder": self.pipe.tokenizer}

    def encode_ids(self, ids: Int[Tensor, "n tokens"]) -> Conditioning:
        tokenizer = self.pipe.tokenizer
        if ids.shape[1] != tokenizer.model_max_length:
            raise InputError(
                f"ids: expected rows of {tokenizer.model_max_length} tokens, got {ids.shape[1]}. Pad or cut them."
            )
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        return self._assembled(texts, ids, (((0, 0),) * ids.shape[1],) * len(ids), self._states_of_ids(ids))

    def predict(
        self, latents: Float[Tensor, "n c h w"], timestep: Timestep, conditioning: Conditioning
    ) -> Float[Tensor, "n c h w"]:
        device, dtype = self.device, self.dtype
        latents = latents.to(device, dtype)
        return self._unet(
            latents,
            timestep.to(device).expand(len(latents)),
            encoder_hidden_states=conditioning.states.to(device, dtype),
            added_cond_kwargs=self._added_conditions(latents, conditioning),
            return_dict=False,
        )[0]

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        sides = self._latent_sides(self._unet.config["sample_size"], height, width)
        return (self._unet.config["in_channels"], sides[0], sides[1])

    @property
    def picked_at_once(self) -> int | None:
        encoders = self.text_encoders().values()
        exact = self.device.type == "cpu" and self.dtype == torch.float32  # else attention has other kernels
        in_tree = exact and not self._masked and all(map(attends_by_sdpa, encoders))
        return None if in_tree else super().picked_at_once

    @torch.no_grad()
    def pick(self, prompts: Sequence[str], places_of: PlacesOf) -> PickedTexts:
        if self.picked_at_once is not None:
            return super().pick(prompts, places_of)
        tokenizer = self.pipe.tokenizer
        texts = tuple(textual_inversion_applied(self.pipe, composed(prompt), tokenizer) for prompt in prompts)
        ids, offsets = tokenized(tokenizer, texts)
        ends = first_end_of_text(ids, tokenizer)
        tokens = EncodedTokens(encoder="text_encoder", ids=ids, ends=ends, offsets=offsets)
        places = sorted(set(places_of(texts, tokens)))
        reach: list[int] = (ends + 1).tolist()
        for row, position in places:
            reach[row] = max(reach[row], position + 1)
        states, vectors = self._picked(texts, ids, reach, places)
        picked = PickedStates(states=states, number={place: i for i, place in enumerate(places)})
        return PickedTexts(prompts=texts, parts={TEXT: ((tokens, picked),)}, vectors=vectors)

    def _picked(
        self, texts: Sequence[str], ids: Int[Tensor, "n tokens"], reach: Sequence[int], places: Sequence[Place]
    ) -> tuple[Float[Tensor, "k dim"], dict[str, Float[Tensor, "n dim"]]]:
        """Return the states at some places of prompts, each read so far, and the prompts' sentence vectors."""
        states, _ = self._read_places("text_encoder", self.pipe.tokenizer, ids, reach, places)
        return states, {}

    def _read_places(
        self,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        ids: Int[Tensor, "n tokens"],
        reach: Sequence[int],
        places: Sequence[Place],
    ) -> tuple[Tensor, Tensor]:
        """Return the states of an encoder at some places, and the last state of each prompt that it pools."""
        ends: list[int] = first_end_of_text(ids, tokenizer).tolist()
        rows = [row[: max(far, end + 1)] for row, far, end in zip(ids.tolist(), reach, ends, strict=True)]
        return self._read_by(name, lambda encoder: read_places(encoder, rows, places, self._read_tree))

    def _read_tree(self, encoder: PreTrainedModel, tree: TokenTree) -> tuple[Tensor, Tensor]:
        """Return the states of a tree's nodes that the denoiser reads, and the encoder's last."""
        last = read_tree(encoder, tree).last_hidden_state
        return last, last

    @torch.no_grad()
    def _encode_distinct(self, prompts: Sequence[str], trailing: bool) -> Conditioning:
        texts = [textual_inversion_applied(self.pipe, prompt, self.pipe.tokenizer) for prompt in prompts]
        ids, offsets = tokenized(self.pipe.tokenizer, texts)
        if not trailing:
            return self._encode_to_end(texts, ids, offsets)
        return self._assembled(texts, ids, offsets, self._states_of(ids, texts))

    def _encode_to_end(
        self, texts: Sequence[str], ids: Int[Tensor, "n tokens"], offsets: tuple[tuple[tuple[int, int], ...], ...]
    ) -> Conditioning:
        """Encode rows no further than their end of text, those of like length together."""
        ends = first_end_of_text(ids, self.pipe.tokenizer)
        order = ends.argsort(stable=True)
        longest = int(ends.max()) + 1
        rows: list[int] = order.tolist()
        states, pooled = self._states_of(ids[order], [texts[row] for row in rows], trailing=False)
        behind = (torch.arange(longest) > ends[order, None]).to(states.device)
        states = states[:, :longest].masked_fill(behind[..., None], torch.nan)
        sorted_by_length = self._assembled(
            [texts[row] for row in rows],
            ids[order, :longest],
            tuple(offsets[row][:longest] for row in rows),
            (states, pooled),
        )
        return sorted_by_length.select(order.argsort().tolist())

    def _assembled(
        self,
        texts: Sequence[str],
        ids: Int[Tensor, "n tokens"],
        offsets: tuple[tuple[tuple[int, int], ...], ...],
        encoded: tuple[Tensor, Tensor | None],
    ) -> Conditioning:
        states, pooled = encoded
        tokens = EncodedTokens(
            encoder="text_encoder", ids=ids, ends=first_end_of_text(ids, self.pipe.tokenizer), offsets=offsets
        )
        streams = {TEXT: Stream(states=states, tokens=(tokens,))}
        if pooled is not None:
            streams[POOLED] = Stream(states=pooled[:, None])
        return Conditioning(prompts=tuple(texts), streams=streams)

    def _states_of(
        self, ids: Int[Tensor, "n tokens"], texts: Sequence[str], *, trailing: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        mask = self.pipe.tokenizer(list(texts), **PADDED).attention_mask if self._masked else None
        return self._last_states(ids, mask, None if trailing else self._reach(ids, self.pipe.tokenizer)), None

    def _states_of_ids(self, ids: Int[Tensor, "n tokens"]) -> tuple[Tensor, Tensor | None]:
        within = torch.arange(ids.shape[1]) <= first_end_of_text(ids, self.pipe.tokenizer)[:, None]
        return self._last_states(ids, within.long() if self._masked else None), None

    @property
    def _masked(self) -> bool:
        """True if the encoder leaves padding out.

        It is attended to, as in training, except by a model whose own configuration asks for a mask.
        """
        config = self.text_encoders()["text_encoder"].config
        return bool(getattr(config, "use_attention_mask", False))

    def _reach(self, ids: Int[Tensor, "n tokens"], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Return for each lot of prompts the number of tokens up to its last end of text."""
        return [int(first_end_of_text(part, tokenizer).max()) + 1 for part in ids.split(self._at_once)]

    def _last_states(
        self,
        ids: Int[Tensor, "n tokens"],
        mask: Int[Tensor, "n tokens"] | None,
        reach: Sequence[int] | None = None,
    ) -> Tensor:
        """Return the states of the text encoder, of each lot of prompts no further than its reach; see `joined`."""
        parts = ids.split(self._at_once)
        masks = [None] * len(parts) if mask is None else mask.split(self._at_once)
        ends = [ids.shape[1]] * len(parts) if reach is None else reach

        def states(encoder: PreTrainedModel) -> Tensor:
            outputs = (
                encoder(
                    part[:, :end].to(encoder.device),
                    attention_mask=None if within is None else within[:, :end].to(encoder.device),
                    return_dict=True,
                )
                for part, within, end in zip(parts, masks, ends, strict=True)
            )
            return joined([output.last_hidden_state.to(self.device, self.dtype) for output in outputs])

        return self._read_by("text_encoder", states)

    def _read_by(self, name: str, read: Callable[[PreTrainedModel], Answer]) -> Answer:
        """Return the result of a function of a text encoder."""
        with self.weights_present(name):
            return read(self.text_encoders()[name])

    def _set_timesteps(self, scheduler: Any, steps: int) -> None:
        scheduler.set_timesteps(steps)

    def _added_conditions(self, latents: Tensor, conditioning: Conditioning) -> dict[str, Tensor] | None:
        return None
