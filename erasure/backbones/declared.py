"""Transformers of many families: what one file each declares, as data more than as code."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal, cast

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from .base import Ability
from .conditioning import TEXT, Conditioning, EncodedTokens, Stream
from .joint import JointTransformer
from .loaded import unwrapped
from .schedule import Timestep
from .sites import Role, joint_transformer_role
from .templated import Layout, templated_tokens


@dataclass(frozen=True, eq=False)
class DeclaredTransformer(JointTransformer):
    """Base of the families; see `Backbone` for its members.

    Attributes:
        name: Name of the family.
        transformers: Names of the transformer's classes in diffusers.
        roles: Roles of parameters, by patterns of their names inside the denoiser, the first that fits; others have the
            role of `joint_transformer_role`.
        text_only: Patterns of further linear layers that see the text alone, behind its readers.
        position: Whether the text's tokens come first or last in the joint sequence.
        between: Modules of the denoiser that the states go through, in order, before the layers that read them.
        encode_options: Further arguments of the pipeline's `encode_prompt`.
        mask_name: Name of the text's mask in the pipeline's call; "" where it takes none.
        latent_layout: Layout of the latents that the pipeline's call takes.
    """

    abilities: ClassVar[frozenset[Ability]] = frozenset(
        ("images", "maps", "guidance", "lora", "low memory", "mixed lengths")
    )
    name: ClassVar[str]
    transformers: ClassVar[tuple[str, ...]]
    roles: ClassVar[Mapping[str, Role]] = {}
    text_only: ClassVar[tuple[str, ...]] = ()
    position: ClassVar[Literal["first", "last"]] = "first"
    between: ClassVar[tuple[str, ...]] = ()
    encode_options: ClassVar[Mapping[str, Any]] = {}
    mask_name: ClassVar[str] = ""
    latent_layout: ClassVar[Literal["plain", "packed"]] = "plain"

    @classmethod
    def covers(cls, pipe: DiffusionPipeline) -> bool:
        """Return True if the pipeline has the family's transformer."""
        # By name: an import of each family's modules takes time that other families need not spend.
        return type(unwrapped(getattr(pipe, "transformer", None))).__name__ in getattr(cls, "transformers", ())

    @classmethod
    def role_of(cls, name: str) -> Role:
        fitting = (role for pattern, role in cls.roles.items() if fnmatchcase(name, pattern))
        return next(fitting, None) or joint_transformer_role(name)

    @classmethod
    def is_text_only(cls, name: str) -> bool:
        """Return True for the name of a layer that sees the text alone, behind its readers."""
        return any(fnmatchcase(name, pattern) for pattern in cls.text_only)

    @property
    def family(self) -> str:
        return self.name

    @property
    def text_position(self) -> Literal["first", "last"]:
        return self.position

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """The place of a text's tokens in the states."""

    def templated(self, prompt: str) -> str:
        """Return the text that the encoder reads for a prompt."""
        return prompt

    def _states(self, prompts: list[str]) -> Float[Tensor, "n tokens dim"]:
        """Return the states of prompts, as the pipeline encodes them."""
        states = self._encode_prompt(prompts, **self.encode_options)[0]
        assert states is not None  # noqa: S101 - of prompts
        return states

    def _as_read(self, streams: Mapping[str, Stream]) -> Mapping[str, Stream]:
        states = streams[TEXT].states
        with self.weights_present(*(f"{self.denoiser_name}.{module}" for module in self.between)):
            for module in self.between:
                states = self._transformer.get_submodule(module)(states)
        return {**streams, TEXT: replace(streams[TEXT], states=states.detach())}

    @abstractmethod
    def _output(
        self, latents: Float[Tensor, "n c h w"], timestep: Timestep, conditioning: Conditioning
    ) -> Float[Tensor, "n c h w"]:
        """Return the denoiser's output as the loop gets it; latents are on its device and of its type."""

    @property
    def _readers(self) -> dict[str, int]:
        return {"text_encoder": self.layout.longest}

    def _embeddings(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError  # of families that read a sentence vector

    def _encoded(self, prompts: list[str]) -> Conditioning:
        tokens = self._tokens("text_encoder", prompts, self.layout.longest)
        states = self._states(list(prompts)).to(self.device, self.dtype)[:, : tokens.ids.shape[1]]
        return Conditioning(prompts=tuple(prompts), streams={TEXT: Stream(states=states, tokens=(tokens,))})

    def _tokens(self, encoder: str, prompts: Sequence[str], length: int) -> EncodedTokens:
        return templated_tokens(self.tokenizers()[encoder], encoder, prompts, self.templated, self.layout)

    def predict(
        self, latents: Float[Tensor, "n c h w"], timestep: Timestep, conditioning: Conditioning
    ) -> Float[Tensor, "n c h w"]:
        latents = latents.to(self.device, self.dtype)
        timestep = timestep.to(self.device).expand(len(latents))
        output = self._output(latents, timestep, conditioning.to(self.device, self.dtype))
        return output if self.loop.sign > 0 else -output

    def text_arguments(self, conditioning: Conditioning, arguments: Mapping[str, Any]) -> dict[str, Any]:
        mask = {self.loop.mask: mask_of(conditioning)} if self.loop.mask else {}
        return {"encoder_hidden_states": conditioning.states, **mask}

    def call_arguments(
        self, latents: Tensor, conditioning: Conditioning, negative: Conditioning | None, guidance_scale: float
    ) -> dict[str, Any]:
        if self.latent_layout == "packed":
            latents = self._packed(latents)
        arguments = super().call_arguments(latents, conditioning, negative, guidance_scale)
        if self.mask_name:
            arguments[self.mask_name] = self._mask(conditioning)
            if negative is not None:
                arguments[f"negative_{self.mask_name}"] = self._mask(negative)
        return arguments

    def _mask(self, conditioning: Conditioning) -> Tensor:
        """Return the mask that goes with the states."""
        return mask_of(conditioning)

    def unpacked(self, latents: Tensor, height: int | None = None, width: int | None = None) -> Tensor:
        if self.latent_layout == "plain":
            return latents
        _, rows, columns = self.latent_shape(height, width)
        return self._unpacked(latents, rows, columns)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        sides = self._latent_sides(self._native_side, height, width, self.packing)
        channels = self._config["in_channels"]
        return (channels // self.packing**2 if self.latent_layout == "packed" else channels, sides[0], sides[1])

    @property
    def _native_side(self) -> object:
        default = getattr(self.pipe, "default_sample_size", None)
        return self._config["sample_size"] if default is None else default

    def _packed(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n tokens dim"]:
        return F.pixel_unshuffle(latents, self.packing).flatten(2).transpose(1, 2)

    def _unpacked(self, latents: Float[Tensor, "n tokens dim"], height: int, width: int) -> Float[Tensor, "n c h w"]:
        rows = latents.transpose(1, 2).unflatten(2, (height // self.packing, width // self.packing))
        return F.pixel_shuffle(rows, self.packing)

    def _set_timesteps(self, scheduler: Any, steps: int) -> None:
        evenly = torch.linspace(1.0, 1 / steps, steps).tolist()
        scheduler.set_timesteps(sigmas=evenly, mu=self._shift(scheduler.config, steps))

    def _shift(self, config: Mapping[str, Any], steps: int) -> float:
        """Return the shift that the pipeline gives a scheduler, linear in the number of image tokens."""
        return linear_shift(self._image_tokens, config)


def linear_shift(tokens: int, config: Mapping[str, Any]) -> float:
    """Return the value at a number of tokens of the line through a scheduler's two shifts."""
    fewest, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, largest = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (largest - least) / (most - fewest)
    return cast("float", tokens * slope + (least - slope * fewest))


def mask_of(conditioning: Conditioning) -> Int[Tensor, "n tokens"]:
    """Return 1 for the states that the denoiser reads, those of a template too, and 0 for padding behind them."""
    states, [tokens] = conditioning.states, conditioning.streams[TEXT].tokens
    stops = torch.tensor([tokens.span(row).stop for row in range(len(conditioning))])
    return (torch.arange(states.shape[1]) < stops[:, None]).long().to(states.device)
