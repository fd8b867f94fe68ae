"""Tiny real pipelines: diffusers' and transformers' own classes, random weights, no download, built in a moment."""

import gzip
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

Vocabulary = Literal["bytes", "clip"]

WIDTH = 32
T5_WIDTH = 64
POSITIONS = 77
# Pictures of 16 x 16 pixels, latents of 8 x 8.
PIXELS = 16


def sd1(*, seed: int = 0, vocabulary: Vocabulary = "bytes", prediction_type: str = "epsilon") -> Any:
    """Return a pipeline of the Stable Diffusion 1.x classes: epsilon prediction, padded with end-of-text tokens."""
    return _seeded(seed, lambda: _stable_diffusion(vocabulary, "<|endoftext|>", prediction_type, "quick_gelu"))


def sd2(*, seed: int = 0, vocabulary: Vocabulary = "bytes") -> Any:
    """Return a pipeline of the Stable Diffusion 2.x classes: v-prediction, padded with "!"."""
    return _seeded(seed, lambda: _stable_diffusion(vocabulary, "!", "v_prediction", "gelu"))


def clip() -> tuple[CLIPModel, CLIPProcessor]:
    """Return a CLIP model of text and pictures, and its processor."""
    tokens = tokenizer("clip")
    text = {"vocab_size": len(tokens), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "image_size": 32, "patch_size": 16}
    heads = {"num_attention_heads": 2}
    config = CLIPConfig(text_config=text | heads, vision_config=vision | heads, projection_dim=8)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = CLIPProcessor(image_processor=CLIPImageProcessor(**size), tokenizer=tokens)
    return CLIPModel(config).eval(), processor


def sdxl(*, seed: int = 0, vocabulary: Vocabulary = "bytes", second_width: int = WIDTH) -> Any:
    """Return a pipeline of the Stable Diffusion XL classes: two text encoders, sentence vector, sizes."""
    return _seeded(seed, lambda: _stable_diffusion_xl(vocabulary, second_width))


def sd3(*, seed: int = 0, t5: bool = True) -> Any:
    """Return a pipeline of the Stable Diffusion 3 classes: joint attention, flow matching, CLIP twice and T5."""
    return _seeded(seed, lambda: _stable_diffusion_3(t5))


def flux(*, seed: int = 0, guidance_embeds: bool = False) -> Any:
    """Return a pipeline of the FLUX.1 classes: joint and shared blocks, packed latents, T5 and CLIP's sentence vector.

    Args:
        seed: Seed of the weights.
        guidance_embeds: Whether the model is of the guidance-distilled kind.
    """
    return _seeded(seed, lambda: _flux(guidance_embeds))


def sd15(*, seed: int = 0) -> Any:
    """Return a pipeline of Stable Diffusion 1.5's own size: 860 M parameters of denoiser, random ones, 5 GiB in all."""
    return _seeded(seed, _stable_diffusion_15)


def full_vae(**further: Any) -> Any:
    """Return an autoencoder of Stable Diffusion's own size, with further settings."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
        **further,
    )


def text_weights(backbone: Any) -> dict[str, torch.nn.Parameter]:
    """Return the weights that read the text states, by full name."""
    return backbone.parameters(backbone.sites(reads="text").__contains__)


# Every family, for tests that run over all of them.
FAMILIES: dict[str, Callable[..., Any]] = {"sd1": sd1, "sd2": sd2, "sdxl": sdxl}
# Those with a transformer with joint attention.
JOINT: dict[str, Callable[..., Any]] = {"sd3": sd3, "flux": flux}
EVERY = {**FAMILIES, **JOINT}


@cache
def tokenizer_parts(vocabulary: Vocabulary) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return vocabulary and merges of a CLIP tokenizer: bytes alone, or CLIP's own, which open_clip's package holds."""
    characters = list(_bytes_to_unicode().values())
    merges = _clip_merges() if vocabulary == "clip" else []
    words = [*characters, *(f"{character}</w>" for character in characters), *map("".join, merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return {word: at for at, word in enumerate(words)}, merges


def tokenizer(vocabulary: Vocabulary = "bytes", *, pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """Return a CLIP tokenizer of 77 positions."""
    words, merges = tokenizer_parts(vocabulary)
    return CLIPTokenizer(vocab=dict(words), merges=list(merges), pad_token=pad_token, model_max_length=POSITIONS)


def _seeded(seed: int, build: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = build()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _stable_diffusion(vocabulary: Vocabulary, pad_token: str, prediction_type: str, activation: str) -> Any:
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    tokens = tokenizer(vocabulary, pad_token=pad_token)
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(text_config(tokens, activation)).eval(),
        tokenizer=tokens,
        unet=unet(WIDTH),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _stable_diffusion_15() -> Any:
    pipe = _stable_diffusion("clip", "<|endoftext|>", "epsilon", "quick_gelu")
    # The usual initialisation of so many parameters takes most of a minute, and their values do not matter here.
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    for parameter in unet.to_empty(device="cpu").parameters():
        parameter.data.normal_(std=0.02)
    text = text_config(pipe.tokenizer, "quick_gelu")
    text.update({"hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768})
    text.update({"num_hidden_layers": 12, "num_attention_heads": 12})
    vae = full_vae().eval()
    return StableDiffusionPipeline(
        **{**pipe.components, "unet": unet.eval(), "text_encoder": CLIPTextModel(text).eval(), "vae": vae},
        requires_safety_checker=False,
    )


def _stable_diffusion_xl(vocabulary: Vocabulary, second_width: int) -> Any:
    first, second = tokenizer(vocabulary), tokenizer(vocabulary, pad_token="!")
    second_config = text_config(second, "gelu")
    second_config.update({"hidden_size": second_width, "intermediate_size": 2 * second_width})
    denoiser = unet(
        WIDTH + second_width,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(text_config(first, "quick_gelu")).eval(),
        text_encoder_2=CLIPTextModelWithProjection(second_config).eval(),
        tokenizer=first,
        tokenizer_2=second,
        unet=denoiser,
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    )


def _stable_diffusion_3(with_t5: bool) -> Any:
    first, second = tokenizer(), tokenizer(pad_token="!")
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=visible(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(shift_factor=0.1),
        text_encoder=CLIPTextModelWithProjection(text_config(first, "quick_gelu")).eval(),
        tokenizer=first,
        text_encoder_2=CLIPTextModelWithProjection(text_config(second, "gelu")).eval(),
        tokenizer_2=second,
        text_encoder_3=t5() if with_t5 else None,
        tokenizer_3=t5_tokenizer() if with_t5 else None,
    )


def _flux(guidance_embeds: bool) -> Any:
    tokens = tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    )
    pipe = FluxPipeline(
        transformer=visible(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_vae(shift_factor=0.1),
        text_encoder=CLIPTextModel(text_config(tokens, "quick_gelu")).eval(),
        tokenizer=tokens,
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
    )
    pipe.default_sample_size = 8  # 128 latents for every model, whatever its transformer
    return pipe


def visible(transformer: Any) -> Any:
    """Return a transformer with noise in the parameters that start at zero, whose gates would hide the text."""
    for parameter in transformer.parameters():
        if not parameter.any():
            parameter.data.normal_(std=0.1)
    return transformer.eval()


def t5_tokenizer(longest: int = 64, words: int = 0) -> T5Tokenizer:
    """Return a T5 tokenizer of single characters, and of words that occur in no prompt."""
    characters = [chr(code) for code in range(33, 127)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((char, -3.0) for char in characters)]
    vocabulary += [(f"▁word{number}", -9.0) for number in range(words)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=longest)


def t5() -> Any:
    """Return an encoder of T5's classes whose words have large rows."""
    config = T5Config(
        vocab_size=128, d_model=T5_WIDTH, d_kv=16, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    encoder = T5EncoderModel(config).eval()
    encoder.shared.weight.data.normal_(std=1.0)
    return encoder


def text_config(tokens: CLIPTokenizer, activation: str, positions: int = POSITIONS) -> CLIPTextConfig:
    """Return the configuration of a CLIP text encoder."""
    return CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=positions,
        hidden_act=activation,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )


def unet(cross_attention_dim: int, **conditions: Any) -> Any:
    """Return a UNet with cross-attention to states of a width."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=8,
        cross_attention_dim=cross_attention_dim,
        **conditions,
    ).eval()


def _vae(**further: Any) -> Any:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=PIXELS,
        **further,
    ).eval()


def _bytes_to_unicode() -> dict[int, str]:
    """Return CLIP's character for each byte: itself where it prints, else one of the next free ones."""
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printing]
    return {byte: chr(byte) for byte in printing} | {byte: chr(256 + at) for at, byte in enumerate(others)}


def _clip_merges() -> list[tuple[str, str]]:
    import open_clip  # an extra of the evaluation

    path = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    # The file holds more merges than CLIP uses, whose 49,408 tokens are 512 single ones, these and two special ones.
    pairs = [line.split() for line in lines[1 : 49152 - 256 - 2 + 1]]
    return [(left, right) for left, right in pairs]
