"""A model as erasers see it.

A method never names a model family, and a family never names a method: this protocol is all that the two share.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .conditioning import Conditioning
from .picked import PickedTexts, PlacesOf
from .sampling_loop import SamplingLoop
from .schedule import NoiseSchedule, Timestep
from .sites import Role, Sites

Ability = Literal[
    "images",
    "maps",
    "guidance",
    "layer guidance",
    "map guidance",
    "unet guidance",
    "clip",
    "token ids",
    "lora",
    "low memory",
    "mixed lengths",
]
"""An ability of the models of a family, as its file declares it.

- `images`: `sample` makes images; models of videos have closed forms, ledgers and exports alone.
- `maps`: Attention to words is captured.
- `guidance`: Guidances by the unconditional and the prompt's prediction act while images are made.
- `layer guidance`: Guidances that change what layers give act while images are made: a step's one call has every row.
- `map guidance`: Guidances by attention to words act while images are made.
- `unet guidance`: Guidances that are written for a UNet's loop act while images are made.
- `clip`: A CLIP text encoder is read, so methods that edit one apply.
- `token ids`: The text encoders share one vocabulary, so that rows of token ids are encoded, with gradient.
- `lora`: diffusers loads LoRA factors into the pipeline.
- `low memory`: Text states are read from a folder whose weights stay on the disk.
- `mixed lengths`: The pipeline's call takes prompts of different lengths together.
"""


@runtime_checkable
class Backbone(Protocol):
    """A loaded diffusers pipeline, wrapped and left unchanged."""

    @property
    def pipe(self) -> DiffusionPipeline:
        """The pipeline itself."""
        ...

    @property
    def family(self) -> str:
        """The model family: "sd1", "sd2", "sdxl", "sd3", "flux"."""
        ...

    @property
    def reads_clip(self) -> bool:
        """Whether the text states are CLIP's alone, for whose size the closed forms' settings are given.

        Those of other encoders are of other sizes, and a few large entries are common to all of them.
        """
        ...

    @property
    def schedule_kind(self) -> type[NoiseSchedule]:
        """The class of the schedule."""
        ...

    @property
    def abilities(self) -> frozenset[Ability]:
        """The abilities of the family; see `Ability`."""
        ...

    @property
    def loop(self) -> SamplingLoop:
        """The form of the calls by which the pipeline's loop asks the denoiser."""
        ...

    @property
    def distilled(self) -> bool:
        """Whether it is sampled by an embedded guidance, without an unconditional prediction."""
        ...

    @property
    def original_names(self) -> Mapping[str, str]:
        """Names of layers in the files of the original release, by their names inside the denoiser."""
        ...

    @property
    def lora_prefix(self) -> str:
        """Beginning of the names of the denoiser's layers in LoRA files of kohya's scripts or of ComfyUI.

        "" where diffusers reads no such file exactly, or the names are rules of their own.
        """
        ...

    @property
    def checkpoints(self) -> bool:
        """Whether the denoiser with gradient checkpointing computes the same values again."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the denoiser."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Type that the denoiser computes in."""
        ...

    @property
    def schedule(self) -> NoiseSchedule:
        """The denoiser's noise levels and the form of its output."""
        ...

    def sites(self, roles: Collection[Role] | None = None, *, reads: str | None = None) -> Sites:
        """Return the parameters of the denoiser by full name, in the order of the model.

        Args:
            roles: Roles to select, "cross" including "cross.k"; None selects all.
            reads: Stream that the sites must read directly; None selects all.
        """
        ...

    @property
    def denoiser(self) -> nn.Module:
        """The UNet or transformer."""
        ...

    def component(self, name: str) -> nn.Module:
        """Return a module by the first part of its parameters' full names: "unet", "text_encoder".

        Raises:
            UnknownNameError: The model has no such part.
        """
        ...

    def tokenizers(self) -> dict[str, PreTrainedTokenizerBase]:
        """Return the tokenizer of each text encoder, by the encoder's name as a component."""
        ...

    def token_limits(self) -> dict[str, int]:
        """Return the number of tokens that each text encoder reads, special ones included, by its name."""
        ...

    def encode(self, prompts: Sequence[str], *, trailing: bool = True) -> Conditioning:
        """Return the states of the prompts, in order, as the pipeline would compute them; no gradient.

        Args:
            prompts: Texts, each of which is encoded once.
            trailing: Whether the states after a row's first end-of-text token are needed. Without them a model whose
                states depend on earlier tokens alone reads prompts of like length together and no padding: the rows
                are as long as the longest prompt, and their states after the end of text are nan. A model whose
                encoder reads padding returns every state.

        Raises:
            InputError: There are no prompts, or one text was given instead of a sequence.
        """
        ...

    def read(self, prompts: Sequence[str], *, trailing: bool = True) -> Conditioning:
        """Return the prompts with the states that the layers receive that read them; see `encode`.

        They differ from those of `encode` where a norm or a projection of the text alone comes first. Rows of closed
        forms are of these; `predict` takes those of `encode`.
        """
        ...

    @property
    def picked_at_once(self) -> int | None:
        """Number of prompts that `pick` takes without much memory; None for any number.

        A model of which it is None has the same states, to the last bit, whatever is read beside them.
        """
        ...

    def pick(self, prompts: Sequence[str], places_of: PlacesOf) -> PickedTexts:
        """Return prompts with the states of `read` at some places.

        Where the model allows it, a beginning that several prompts share is read once, and no prompt further than its
        last place.

        Args:
            prompts: Texts.
            places_of: Function of the prompts, as they are encoded, and their tokens to the places that are read.
        """
        ...

    def encode_ids(self, ids: Int[Tensor, "n tokens"]) -> Conditioning:
        """Return the states of rows of token ids, which no tokenizer touches again; with gradient.

        Args:
            ids: Rows of the first tokenizer, padded to the model's length; a second tokenizer pads in its own way.

        Raises:
            InputError: The rows are not of the model's length, or its tokenizers differ.
        """
        ...

    def unconditional(self) -> Conditioning:
        """Return the one row that the model samples with as its unconditional prompt (zeros where it uses zeros)."""
        ...

    def negative(self, prompts: Sequence[str]) -> Conditioning:
        """Return texts as the pipeline encodes a negative prompt: some put an instruction before prompts alone."""
        ...

    def text_arguments(self, conditioning: Conditioning, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the denoiser's arguments that hold the text, by name; the others say sizes."""
        ...

    def parameters(self, which: Callable[[str], bool]) -> dict[str, nn.Parameter]:
        """Return the parameters of denoiser and text encoders whose full name `which` accepts."""
        ...

    def weights(self, which: Callable[[str], bool]) -> dict[str, Tensor]:
        """Return the values of the parameters that `which` accepts, read from the files where they are there alone."""
        ...

    def weights_present(self, *names: str) -> AbstractContextManager[torch.device | None]:
        """Have the weights of text encoders or of parts of the denoiser in reach, for the length of a `with`.

        Those of a model that stays on the disk are read layer by layer inside. The `with` gives the device to encode
        on; None is the pipeline's own.

        Args:
            names: Full names of the modules.
        """
        ...

    def predict(
        self, latents: Float[Tensor, "n c h w"], timestep: Timestep, conditioning: Conditioning
    ) -> Float[Tensor, "n c h w"]:
        """Return the denoiser's output, with gradient.

        Args:
            latents: Noisy latents, scaled as the denoiser expects them in training.
            timestep: Timestep of the schedule, one for all or one each.
            conditioning: One row for each latent.
        """
        ...

    def call_arguments(
        self, latents: Tensor, conditioning: Conditioning, negative: Conditioning | None, guidance_scale: float
    ) -> dict[str, Any]:
        """Return latents, texts and guidance as the pipeline's call takes them.

        Args:
            latents: Noise of the shape that `latent_shape` gives, one for each row.
            conditioning: One row for each image.
            negative: Rows in the place of the unconditional prompt; None samples without classifier-free guidance.
            guidance_scale: Scale of the guidance.
        """
        ...

    def unpacked(self, latents: Tensor, height: int | None = None, width: int | None = None) -> Tensor:
        """Return latents of the pipeline's own layout as (n, channels, height, width); sizes in pixels."""
        ...

    def packed(self, latents: Tensor) -> Tensor:
        """Return latents (n, channels, height, width) in the pipeline's own layout."""
        ...

    def latents_in(self, sample: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """Return the latents of a call of the denoiser as (n, channels, height, width).

        Args:
            sample: Latents in the pipeline's own layout.
            arguments: The denoiser's other arguments, which say the size.
        """
        ...

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """Return channels, height and width of the latents of an image; sizes in pixels, None is the model's own.

        Raises:
            InputError: A size that the model cannot make.
        """
        ...

    def check_steps(self, steps: int) -> None:
        """Refuse a number of sampling steps that the pipeline's scheduler does not take.

        Raises:
            InputError: It does not take so many.
        """
        ...

    def fingerprint(self) -> str:
        """Return a digest of the weights that tells this model from others; the same for float16 and float32 copies."""
        ...
