"""A word's attention where its object is (TokenCompose, Wang et al., CVPR 2024, arXiv:2312.03626)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def grounding_loss(maps: Float[Tensor, "n pixels"], masks: Bool[Tensor, "n pixels"]) -> Float[Tensor, " n"]:
    """Return for each map how far it is from lying on its object: the token loss plus the pixel loss.

        token = (1 - sum_{u in mask} A(u) / sum_u A(u))^2        pixel = binary cross-entropy of A against the mask

    Differs from the paper: the two have one weight, which the caller gives, and come a map each, so that the caller
    can weigh them by timestep.

    Args:
        maps: Cross-attention probabilities A in [0, 1] of a word, summed over its tokens.
        masks: The pixels of its object; at least one each.
    """
    inside = (maps * masks).sum(1) / maps.sum(1).clamp(min=1e-6)
    # Probabilities summed over tokens can pass 1 by rounding.
    wrong = torch.where(masks, maps, 1 - maps).clamp(1e-4, 1).log().neg()
    return (1 - inside).square() + wrong.mean(1)
