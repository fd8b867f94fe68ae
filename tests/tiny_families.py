"""Tiny real pipelines of further families, of diffusers' and transformers' own classes; see `tests.tiny`.

An encoder of random weights tells prompts apart by its table of words alone, so that table is scaled up; gates that
start at zero would hide the text, so they get noise.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    LlamaTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralImageProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.tiny import T5_WIDTH, t5, t5_tokenizer, text_config, tokenizer, visible
from tests.tiny import WIDTH as CLIP_WIDTH

WIDTH = 16  # of a language model's states
_LANGUAGE = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1200,
}
_CHAT = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def flow(*, dynamic: bool = True, shift: float = 1.0) -> FlowMatchEulerDiscreteScheduler:
    """Return a scheduler of flow matching."""
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=dynamic, shift=shift)


def vae(**further: Any) -> AutoencoderKL:
    """Return an autoencoder of 16 x 16 pixels and 8 x 8 latents."""
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        **further,
    ).eval()


def loud(encoder: Any) -> Any:
    """Return an encoder whose words have large rows."""
    encoder.get_input_embeddings().weight.data.normal_(std=1.0)
    return encoder.eval()


@cache
def _byte_characters() -> tuple[str, ...]:
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printing]
    return tuple(chr(byte) for byte in printing) + tuple(chr(256 + i) for i in range(len(others)))


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Return a tokenizer of bytes with Qwen's special tokens and a chat template."""
    words = {word: i for i, word in enumerate([*_byte_characters(), "<|endoftext|>"])}
    special = [f"<|{name}|>" for name in ("im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")]
    made = Qwen2Tokenizer(vocab=words, merges=[], additional_special_tokens=special)
    made.chat_template = _CHAT
    return made


def qwen_image() -> Any:
    """Return a pipeline of the Qwen-Image classes."""
    tokenizer = qwen_tokenizer()
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        text_config={**_LANGUAGE, "vocab_size": len(tokenizer), "rope_parameters": rope, "rope_scaling": rope},
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16},
    )
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    autoencoder = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    pipe = QwenImagePipeline(
        transformer=visible(transformer),
        scheduler=flow(),
        vae=autoencoder.eval(),
        text_encoder=loud(Qwen2_5_VLForConditionalGeneration(config)),
        tokenizer=tokenizer,
    )
    pipe.default_sample_size = 8
    return pipe


def z_image() -> Any:
    """Return a pipeline of the Z-Image classes."""
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[512, 32, 32],
    )
    pipe = ZImagePipeline(
        transformer=visible(transformer),
        scheduler=flow(dynamic=False, shift=3.0),
        vae=vae(shift_factor=0.1),
        text_encoder=qwen3().model,
        tokenizer=qwen_tokenizer(),
    )
    pipe.default_sample_size = 8
    return pipe


def qwen3() -> Qwen3ForCausalLM:
    """Return a language model of Qwen3's classes."""
    return loud(Qwen3ForCausalLM(Qwen3Config(**_LANGUAGE, head_dim=8, vocab_size=len(qwen_tokenizer()))))


def _flux2_parts(guidance_embeds: bool) -> dict[str, Any]:
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    autoencoder = AutoencoderKLFlux2(
        latent_channels=4,
        patch_size=(2, 2),
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
    )
    autoencoder.bn.running_mean.normal_(std=0.1)
    return {"transformer": visible(transformer), "scheduler": flow(), "vae": autoencoder.eval()}


class TinyFlux2(Flux2Pipeline):
    """The pipeline with the layers of an encoder of four."""

    def encode_prompt(self, *args: Any, text_encoder_out_layers: Any = (1, 2, 3), **kwargs: Any) -> Any:
        return super().encode_prompt(*args, text_encoder_out_layers=text_encoder_out_layers, **kwargs)


class TinyFlux2Klein(Flux2KleinPipeline):
    """The pipeline with the layers of an encoder of four."""

    def encode_prompt(self, *args: Any, text_encoder_out_layers: Any = (1, 2, 3), **kwargs: Any) -> Any:
        return super().encode_prompt(*args, text_encoder_out_layers=text_encoder_out_layers, **kwargs)


# Saved, they are the pipelines themselves.
TinyFlux2.__name__, TinyFlux2Klein.__name__ = "Flux2Pipeline", "Flux2KleinPipeline"


def flux2() -> Any:
    """Return a pipeline of the FLUX.2 dev classes."""
    processor = mistral_processor()
    text = MistralConfig(**_LANGUAGE, head_dim=8, vocab_size=len(processor.tokenizer))
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Mistral3Config(
        text_config=text, vision_config=PixtralVisionConfig(**vision, image_size=32, patch_size=16), image_token_index=9
    )
    encoder = loud(Mistral3ForConditionalGeneration(config))
    pipe = TinyFlux2(text_encoder=encoder, tokenizer=processor, **_flux2_parts(guidance_embeds=True))
    pipe.default_sample_size = 8
    return pipe


def mistral_processor() -> PixtralProcessor:
    """Return a processor of bytes with the special tokens of Mistral's chat, padded on the left."""
    special = ["<s>", "</s>", "<pad>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"]
    special += ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    tokenizer = byte_tokenizer(special, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left")
    chat = (
        "<s>{% for m in messages %}{% if m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content[0].text }}[/SYSTEM_PROMPT]"
        "{% else %}[INST]{{ m.content[0].text }}[/INST]{% endif %}{% endfor %}"
    )
    tokenizer.chat_template = chat
    return PixtralProcessor(PixtralImageProcessor(), tokenizer, chat_template=chat, patch_size=16)


def byte_tokenizer(special: list[str], **settings: Any) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes with special tokens."""
    words = {word: i for i, word in enumerate([*_byte_characters()])}
    model = Tokenizer(models.BPE(vocab=words, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=model, model_max_length=1024, **settings)


def flux2_klein() -> Any:
    """Return a pipeline of the FLUX.2 klein classes."""
    parts = _flux2_parts(guidance_embeds=False)
    pipe = TinyFlux2Klein(text_encoder=qwen3(), tokenizer=qwen_tokenizer(), **parts)
    pipe.default_sample_size = 8
    return pipe


def chroma() -> Any:
    """Return a pipeline of the Chroma classes."""
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    pipe = ChromaPipeline(
        transformer=visible(transformer),
        scheduler=flow(),
        vae=vae(shift_factor=0.1),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
    )
    pipe.default_sample_size = 8
    return pipe


def aura_flow() -> Any:
    """Return a pipeline of the AuraFlow classes."""
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=32,
        pos_embed_max_size=64,
    )
    config = UMT5Config(vocab_size=128, d_model=T5_WIDTH, d_kv=16, d_ff=64, num_layers=2, num_heads=4)
    return AuraFlowPipeline(
        transformer=visible(transformer),
        scheduler=flow(dynamic=False, shift=1.73),
        vae=vae(),
        text_encoder=loud(UMT5EncoderModel(config)),
        tokenizer=t5_tokenizer(),
    )


def gemma(phrases: Sequence[str] = ()) -> dict[str, Any]:
    """Return a language model of Gemma 2's classes and its tokenizer, with a token for each of some phrases."""
    characters = [chr(code) for code in range(33, 127)]
    words = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *characters]
    tokenizer = GemmaTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    tokenizer.add_tokens(list(phrases))
    config = Gemma2Config(**_LANGUAGE, head_dim=8, vocab_size=len(tokenizer), query_pre_attn_scalar=8)
    return {"text_encoder": loud(Gemma2Model(config)), "tokenizer": tokenizer}


def lumina2() -> Any:
    """Return a pipeline of the Lumina 2 classes."""
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(512, 32, 32),
        cap_feat_dim=WIDTH,
    )
    parts = {"transformer": visible(transformer), "scheduler": flow(), "vae": vae(shift_factor=0.1)}
    pipe = Lumina2Pipeline(**parts, **gemma())
    pipe.vae_scale_factor = 2  # 8 for every model, whatever its autoencoder
    return pipe


def sana() -> Any:
    """Return a pipeline of the SANA classes."""
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=WIDTH,
        sample_size=16,  # the call takes multiples of 32 pixels
    )
    autoencoder = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        attention_head_dim=4,
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="stride_conv",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.4,
    )
    scheduler = flow(dynamic=False, shift=3.0)
    instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    parts = gemma(instruction)  # each line a token: of bytes they would take most of the tests' time
    return SanaPipeline(transformer=visible(transformer), scheduler=scheduler, vae=autoencoder.eval(), **parts)


def pixart() -> Any:
    """Return a pipeline of the PixArt-Sigma classes."""
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=32,
        caption_channels=T5_WIDTH,
        sample_size=8,
        use_additional_conditions=False,
    )
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return PixArtSigmaPipeline(
        transformer=visible(transformer),
        scheduler=scheduler,
        vae=vae(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
    )


def cogview4() -> Any:
    """Return a pipeline of the CogView4 classes."""
    transformer = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=16,
        condition_dim=8,
        sample_size=8,
        rope_axes_dim=(8, 8),
    )
    special = ["[gMASK]", "<sop>", "<|endoftext|>"]
    settings = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "padding_side": "left"}
    tokenizer = byte_tokenizer(special, **settings)
    pairs = [(word, tokenizer.convert_tokens_to_ids(word)) for word in special[:2]]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[gMASK] <sop> $A", special_tokens=pairs
    )
    config = GlmConfig(**_LANGUAGE, head_dim=8, vocab_size=len(tokenizer), pad_token_id=0)
    return CogView4Pipeline(
        transformer=visible(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear"
        ),
        vae=vae(shift_factor=0.1),
        text_encoder=loud(GlmModel(config)),
        tokenizer=tokenizer,
    )


def hidream() -> Any:
    """Return a pipeline of the HiDream-I1 classes."""
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[T5_WIDTH, WIDTH],
        text_emb_dim=2 * CLIP_WIDTH,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(8, 4, 4),
        max_resolution=(16, 16),
        llama_layers=[0, 1],
        force_inference_output=True,
    )
    characters = [chr(code) for code in range(33, 127)]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *characters]
    llama = LlamaTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=128, padding_side="right"
    )
    config = LlamaConfig(**_LANGUAGE, vocab_size=len(llama), attn_implementation="eager")
    parts = {"transformer": visible(transformer), "scheduler": flow(dynamic=False, shift=3.0)}
    for number in ("", "_2"):
        parts[f"tokenizer{number}"] = tokenizer()
        parts[f"text_encoder{number}"] = CLIPTextModelWithProjection(text_config(tokenizer(), "gelu", 218)).eval()
    pipe = HiDreamImagePipeline(
        **parts,
        vae=vae(shift_factor=0.1),
        text_encoder_3=t5(),
        tokenizer_3=t5_tokenizer(128),
        text_encoder_4=loud(LlamaForCausalLM(config)),
        tokenizer_4=llama,
    )
    pipe.default_sample_size = 8
    return pipe


def wan() -> Any:
    """Return a pipeline of the Wan 2.1 text-to-video classes."""
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=T5_WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    autoencoder = AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    config = UMT5Config(vocab_size=128, d_model=T5_WIDTH, d_kv=16, d_ff=64, num_layers=2, num_heads=4)
    pipe = WanPipeline(
        transformer=visible(transformer),
        scheduler=flow(dynamic=False, shift=3.0),
        vae=autoencoder.eval(),
        text_encoder=loud(UMT5EncoderModel(config)),
        tokenizer=t5_tokenizer(),
    )
    pipe.default_sample_size = 8
    return pipe


def ltx() -> Any:
    """Return a pipeline of the LTX-Video classes."""
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=T5_WIDTH,
        num_layers=1,
    )
    autoencoder = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    pipe = LTXPipeline(
        transformer=visible(transformer),
        scheduler=flow(),
        vae=autoencoder.eval(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(128),
    )
    pipe.default_sample_size = 8
    return pipe


def cogvideox() -> Any:
    """Return a pipeline of the CogVideoX classes."""
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=T5_WIDTH,
        num_layers=1,
        sample_width=8,
        sample_height=8,
        sample_frames=1,
        max_text_seq_length=226,
    )
    autoencoder = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    )
    pipe = CogVideoXPipeline(
        transformer=visible(transformer),
        scheduler=CogVideoXDDIMScheduler(prediction_type="v_prediction"),
        vae=autoencoder.eval(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
    )
    pipe.default_sample_size = 8
    return pipe


_USER = {"template": "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>", "crop_start": 8}


class TinyHunyuanVideo(HunyuanVideoPipeline):
    """The pipeline with a template that is short in bytes."""

    def encode_prompt(self, *args: Any, prompt_template: Any = _USER, **kwargs: Any) -> Any:
        return super().encode_prompt(*args, prompt_template=prompt_template, **kwargs)


TinyHunyuanVideo.__name__ = "HunyuanVideoPipeline"


def hunyuan_video() -> Any:
    """Return a pipeline of the HunyuanVideo text-to-video classes."""
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        rope_axes_dim=(4, 6, 6),
    )
    autoencoder = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    words = byte_tokenizer(special, eos_token="<|end_of_text|>", pad_token="<|end_of_text|>", padding_side="right")
    pipe = TinyHunyuanVideo(
        transformer=visible(transformer),
        scheduler=flow(dynamic=False, shift=7.0),
        vae=autoencoder.eval(),
        text_encoder=loud(LlamaModel(LlamaConfig(**_LANGUAGE, vocab_size=len(words)))),
        tokenizer=words,
        text_encoder_2=CLIPTextModel(text_config(tokenizer(), "quick_gelu")).eval(),
        tokenizer_2=tokenizer(),
    )
    pipe.default_sample_size = 8
    return pipe


def mochi() -> Any:
    """Return a pipeline of the Mochi 1 classes."""
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=T5_WIDTH,
        time_embed_dim=8,
    )
    autoencoder = AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        latent_channels=4,
        layers_per_block=(1, 1, 1, 1, 1),
        latents_mean=(0.0,) * 4,
        latents_std=(1.0,) * 4,
    )
    pipe = MochiPipeline(
        transformer=visible(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=autoencoder.eval(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(256),
    )
    pipe.default_sample_size = 8
    return pipe


BUILDERS: dict[str, Callable[..., Any]] = {
    "qwen-image": qwen_image,
    "z-image": z_image,
    "flux2": flux2,
    "flux2-klein": flux2_klein,
    "sana": sana,
    "pixart": pixart,
    "lumina2": lumina2,
    "chroma": chroma,
    "aura-flow": aura_flow,
    "cogview4": cogview4,
    "hidream": hidream,
    "wan": wan,
    "ltx": ltx,
    "cogvideox": cogvideox,
    "hunyuan-video": hunyuan_video,
    "mochi": mochi,
}


def built(family: str, seed: int = 0) -> Any:
    """Return a pipeline of a family with weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = BUILDERS[family]()
    pipe.set_progress_bar_config(disable=True)
    return pipe
