"""The attention layers whose maps show where in the image a word is read, and the size of these maps."""

from collections.abc import Sequence

from diffusers import FluxTransformer2DModel
from torch import nn

from ..errors import InputError
from .joint_attention import is_joint

# 512 pixels give maps of 16 x 16 there, Stable Diffusion's best for layout (Hertz et al., arXiv:2208.01626).
_DOWNSAMPLING = 4


def attends_to_text(name: str, module: nn.Module) -> bool:
    """Return True for a layer with attention from image to text."""
    return is_joint(module) or (name.endswith("attn2") and getattr(module, "is_cross_attention", True))


def map_layers(denoiser: nn.Module, names: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """Return the cross-attention layers whose maps guide, by their names in the denoiser.

    By default those at a quarter of the latents' size: 16 x 16 in the down and up blocks of Stable Diffusion 1.x at
    512 pixels. Where the middle block is of that size too (SDXL), the up blocks are left out, so that the pass ends
    early. A denoiser without such layers is read where its maps are finest, on the way up, if it has any there: these
    know most of the image.

    Raises:
        InputError: A name that is no cross-attention layer of the denoiser, or layers of several sizes.
    """
    known = {name: module for name, module in denoiser.named_modules() if attends_to_text(name, module)}
    if names is not None:
        missing = [name for name in names if name not in known]
        if missing or not names:
            raise InputError(
                f"layers: expected cross-attention layers of the denoiser, got {missing or list(names)}."
                f" It has {', '.join(known)}."
            )
        sizes = {downsampling_of(name, denoiser) for name in names}
        if len(sizes) > 1:
            raise InputError(f"layers: expected layers of one size, got {list(names)}. Choose those of one block.")
        return {name: known[name] for name in names}
    size = {name: downsampling_of(name, denoiser) for name in known}
    at_quarter = [name for name in known if size[name] == _DOWNSAMPLING]
    if any(not name.startswith("mid_block") for name in at_quarter):
        if any(name.startswith("mid_block") for name in at_quarter):
            at_quarter = [name for name in at_quarter if not name.startswith("up_blocks")]
        return {name: known[name] for name in at_quarter}
    finest = [name for name in known if size[name] == min(size.values())]
    on_the_way_up = [name for name in finest if name.startswith("up_blocks")]
    return {name: known[name] for name in on_the_way_up or finest}


def downsampling_of(layer: str, denoiser: nn.Module) -> int:
    """Return the number of latents along a side that a pixel of an attention layer's maps stands for.

    In a UNet by the name of the layer: the number of pixels does not tell two sizes apart for some aspect ratios.
    """
    if not hasattr(denoiser, "down_blocks"):
        return int(getattr(denoiser.config, "patch_size", None) or 1) * _packing(denoiser)
    blocks = len(denoiser.get_submodule("down_blocks")._modules)
    block, _, rest = layer.partition(".")
    halvings = {"mid_block": blocks - 1}.get(block)
    if halvings is None:
        place = int(rest.partition(".")[0])
        halvings = place if block == "down_blocks" else blocks - 1 - place
    return 2**halvings


def _packing(denoiser: nn.Module) -> int:
    """Return the number of latents along a side that the pipeline packs into one token."""
    return 2 if isinstance(denoiser, FluxTransformer2DModel) else 1
