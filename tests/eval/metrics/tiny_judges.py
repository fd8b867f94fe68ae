"""Judges of the real classes at tiny random size, and pictures for them."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from erasure.eval.features.clip import OpenClip
from erasure.eval.features.image_features import FunctionExtractor

WORDS = ("a", "an", "the", "photo", "of", "dog", "cat", "bird", "empty", "street", "at", "night", "red", "blue")
WORDS += ("in", "on", "and", "house", "with", "tree")


def pictures(n: int, size: int = 32, seed: int = 0) -> list[Image.Image]:
    """Return pictures of random colours in blocks of 4 x 4 pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, size // 4, size // 4, 3), dtype=np.uint8)
    return [Image.fromarray(row.repeat(4, 0).repeat(4, 1)) for row in coarse]


def mean_colour() -> FunctionExtractor:
    """Return an extractor that can be checked by hand: mean red, green and blue, in [0, 1]."""
    return FunctionExtractor(
        lambda images: np.stack([np.asarray(image).mean((0, 1)) / 255 for image in images]), "mean colour"
    )


def seeded(build: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@cache
def open_clip_judge() -> OpenClip:
    """Return a CLIP of open_clip with its real tokenizer."""
    import open_clip

    model = seeded(lambda: open_clip.CLIP(**CLIP_CONFIG))
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    open_clip.set_model_preprocess_cfg(model, {"size": 32, "mode": "RGB", "mean": mean, "std": std})
    return OpenClip(model, open_clip.SimpleTokenizer(), "tiny:random")


def awake(model: Any) -> Any:
    """Give weights a spread at which a picture or a text reaches the output; transformers starts close to zero."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def bert_tokenizer() -> Any:
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer(vocab={word: at for at, word in enumerate(words)})


def image_processor() -> Any:
    from transformers import BlipImageProcessor

    return BlipImageProcessor(size={"height": 32, "width": 32})


@cache
def blip() -> tuple[Any, Any]:
    """Return BLIP 1 for retrieval and its processor."""
    from transformers import BlipConfig, BlipForImageTextRetrieval, BlipProcessor

    text = {
        "vocab_size": 64,
        "hidden_size": 32,
        "encoder_hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 16,
        "max_position_embeddings": 64,
        "bos_token_id": 2,
        "sep_token_id": 3,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=16, projection_dim=16)
    return seeded(lambda: awake(BlipForImageTextRetrieval(config))), BlipProcessor(image_processor(), bert_tokenizer())


@cache
def blip2(*, image_token: bool) -> tuple[Any, Any]:
    """Return BLIP-2 for retrieval and its processor; with an image token as the Hub's checkpoints have, or without."""
    from transformers import Blip2Config, Blip2ForImageTextRetrieval, Blip2Processor

    processor = Blip2Processor(image_processor(), bert_tokenizer(), num_query_tokens=4)
    config = Blip2Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        qformer_config={
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "encoder_hidden_size": 32,
            "use_qformer_text_input": True,
        },
        num_query_tokens=4,
        image_text_hidden_size=16,
        image_token_index=len(WORDS) + 5 if image_token else None,
    )
    return seeded(lambda: awake(Blip2ForImageTextRetrieval(config))), processor


def save_vision_transformer(folder: Path, kind: str) -> Path:
    """Save a tiny DINOv2 or ViT with its image processor, as the Hub's repositories hold them."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model, ViTConfig, ViTImageProcessor, ViTModel

    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}
    if kind == "dinov2":
        model = seeded(lambda: Dinov2Model(Dinov2Config(patch_size=14, **sizes)))
        processor: Any = BitImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, do_convert_rgb=True
        )
    else:
        config = ViTConfig(patch_size=14, intermediate_size=64, **sizes)
        model = seeded(lambda: ViTModel(config, add_pooling_layer=False))
        processor = ViTImageProcessor(size={"height": 28, "width": 28})
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
