"""A model as erasers see it.

A method never names a model family, and a family never names a method: this protocol is all that the two share.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .conditioning import TextStates
from .schedule import NoiseSchedule, PredictionType, Timestep
from .sites import Role, Sites


@runtime_checkable
class Backbone(Protocol):
    """A loaded diffusers pipeline, wrapped and left unchanged."""

    @property
    def pipe(self) -> Any:
        """The pipeline itself."""
        ...

    @property
    def family(self) -> str:
        """The model family: "sd1", "sd2", "sdxl"."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What the denoiser computes in."""
        ...

    @property
    def prediction_type(self) -> PredictionType:
        """What the denoiser predicts."""
        ...

    @property
    def alphas_cumprod(self) -> Float[Tensor, " t"]:
        """The signal's share of the variance at each training timestep, in [0, 1], float32 on the model's device."""
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

    def tokenizers(self) -> dict[str, Any]:
        """Return the tokenizer of each text encoder, by the encoder's name as a component."""
        ...

    def encode(self, prompts: Sequence[str], *, trailing: bool = True) -> TextStates:
        """Return the states of the prompts, in order, as the pipeline would compute them; no gradient.

        Args:
            prompts: Texts, each of which is encoded once.
            trailing: Whether the states after a row's first end-of-text token are wanted. Without them prompts of like
                length are read together and padding is not read at all: no state depends on what follows it. The rows
                are then as long as the longest prompt, and their states after the end of text are nan.

        Raises:
            InputError: There are no prompts, or one text was given instead of a sequence.
        """
        ...

    def encode_ids(self, ids: Int[Tensor, "n tokens"]) -> TextStates:
        """Return the states of rows of token ids, which no tokenizer touches again; with gradient.

        Args:
            ids: Of the first tokenizer: start of text, tokens, end of text, and padding to the model's length. A second
                tokenizer with the same vocabulary pads in its own way.

        Raises:
            InputError: The rows are not of the model's length, or its tokenizers differ.
        """
        ...

    def unconditional(self) -> TextStates:
        """Return the one row that the model samples with as its unconditional prompt (zeros where it uses zeros)."""
        ...

    def text_projections(self) -> dict[str, nn.Linear]:
        """Return the layers that read text states, by name: "unet.….attn2.to_k", "unet.….attn2.to_v"."""
        ...

    def parameters(self, which: Callable[[str], bool]) -> dict[str, nn.Parameter]:
        """Return the parameters of denoiser and text encoders whose full name `which` accepts."""
        ...

    def predict(
        self, latents: Float[Tensor, "n c h w"], timestep: Timestep, states: TextStates
    ) -> Float[Tensor, "n c h w"]:
        """Return the denoiser's output, with gradient.

        Args:
            latents: Noisy latents, scaled as the denoiser expects them in training.
            timestep: Of training, one for all or one each.
            states: One row for each latent.
        """
        ...

    def to_epsilon(
        self,
        output: Float[Tensor, "n c h w"],
        latents: Float[Tensor, "n c h w"],
        timestep: Timestep,
    ) -> Float[Tensor, "n c h w"]:
        """Return the noise that a raw output of `predict` stands for."""
        ...

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """Return channels, height and width of the latents of a picture; sizes in pixels, None is the model's own.

        Raises:
            InputError: A size that the model cannot make.
        """
        ...

    def fingerprint(self) -> str:
        """Return what tells this model from others by its weights; the same for float16 and float32 copies."""
        ...
