"""The parts of the tiny world's model, untrained: diffusers' and transformers' own classes at small sizes."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH = 128
POSITIONS = 32
LATENTS = 16  # along a side
VOCABULARY_SIZE = 1024
_SUFFIX = "</w>"
_SPLIT = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def train_tokenizer(captions: Iterable[str], folder: Path) -> CLIPTokenizer:
    """Train a byte-level BPE of at most 1,024 tokens and return it as diffusers' pipelines know it.

    The alphabet holds all 256 bytes, inside and at the end of a word, so any text can be encoded.

    Args:
        captions: The texts to learn merges from.
        folder: Folder that vocab.json and merges.txt are written to.
    """
    bpe = Tokenizer(models.BPE(end_of_word_suffix=_SUFFIX))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY_SIZE, initial_alphabet=alphabet, end_of_word_suffix=_SUFFIX, show_progress=False
        ),
    )
    merges = [tuple(m) for m in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(a + _SUFFIX for a in alphabet)]
    merges = merges[: VOCABULARY_SIZE - len(tokens) - 2]
    tokens = list(dict.fromkeys([*tokens, *("".join(m) for m in merges)]))
    tokens = [*tokens, "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")
    tokenizer = CLIPTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        model_max_length=POSITIONS,
        pad_token="<|endoftext|>",
    )
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def token_id(value: object) -> int:
    """Return a special token's id, which the tokenizer's types leave open.

    Raises:
        TypeError: The tokenizer has none.
    """
    if not isinstance(value, int):
        raise TypeError(f"expected the id of a special token, got {value!r}")
    return value


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build the text tower: 4 layers, 128 wide, pooled at the first end of text as in CLIP."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        bos_token_id=token_id(tokenizer.bos_token_id),
        eos_token_id=token_id(tokenizer.eos_token_id),
        pad_token_id=token_id(tokenizer.pad_token_id),
    )
    return CLIPTextModel(config)


def vae() -> AutoencoderKL:
    """Build the autoencoder: 64 x 64 pictures to 4 x 16 x 16 latents."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 48),  # type: ignore[arg-type]
        down_block_types=("DownEncoderBlock2D",) * 3,  # type: ignore[arg-type]
        up_block_types=("UpDecoderBlock2D",) * 3,  # type: ignore[arg-type]
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,  # a norm over few channels takes a picture's colour away
        sample_size=64,
        scaling_factor=1.0,
    )


def unet() -> UNet2DConditionModel:
    """Build the denoiser: 4.7 M parameters, cross-attention at 16 x 16 (up), 8 x 8 (down, up) and 4 x 4 (middle)."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(64, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def scheduler() -> DDIMScheduler:
    """Build the noise schedule of Stable Diffusion 1, sampled by DDIM."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def assemble(
    unet: nn.Module, text: CLIPTextModel, vae: AutoencoderKL, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    """Assemble the trained parts to an ordinary pipeline."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,  # type: ignore[arg-type]
        scheduler=scheduler(),  # type: ignore[arg-type]
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )


def transformer(
    *, heads: int = 6, head_dim: int = 32, double_blocks: int = 2, single_blocks: int = 4
) -> FluxTransformer2DModel:
    """Build the denoiser of FLUX's classes: 5.1 M parameters, 192 wide, a token for 2 x 2 latents.

    It starts as DiT does (arXiv:2212.09748, section 3.2): Xavier's weights, and zeros in the modulations and in the
    last layer, so that every block begins as the identity. diffusers' own start has neither.

    Args:
        heads: Number of attention heads.
        head_dim: Width of a head: 8, which no position turns, and as much again for row and for column.
        double_blocks: Number of blocks with weights of their own for image and text.
        single_blocks: Number of blocks whose weights image and text share.
    """
    net = FluxTransformer2DModel(
        in_channels=16,
        num_layers=double_blocks,
        num_single_layers=single_blocks,
        attention_head_dim=head_dim,
        num_attention_heads=heads,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, (head_dim - 8) // 2, (head_dim - 8) // 2),
    )
    with torch.no_grad():
        for name, module in net.named_modules():
            if isinstance(module, nn.Linear):
                starts_at_zero = "norm" in name or name == "proj_out"
                nn.init.zeros_(module.weight) if starts_at_zero else nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
    return net


def flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Build the noise levels of flow matching, unshifted: so few latents need no more steps at high noise."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


def assemble_flux(
    transformer: nn.Module, text: CLIPTextModel, vae: AutoencoderKL, tokenizer: CLIPTokenizer
) -> FluxPipeline:
    """Assemble the trained parts to an ordinary pipeline of FLUX's; the text tower is both of its encoders."""
    vae.register_to_config(shift_factor=0.0)  # FLUX adds it, and the autoencoder's own default is none
    pipe = FluxPipeline(
        scheduler=flow_scheduler(),
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        text_encoder_2=text,  # type: ignore[arg-type]
        tokenizer_2=tokenizer,  # type: ignore[arg-type]
        transformer=transformer,  # type: ignore[arg-type]
    )
    pipe.default_sample_size = LATENTS
    return pipe
