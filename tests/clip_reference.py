"""Reference of the tiny text encoder, by the equations of CLIP (Radford et al., arXiv:2103.00020)."""

import torch
from torch import Tensor, nn


def clip_states(encoder: nn.Module, embedded: Tensor) -> Tensor:
    """Return the final states of CLIP's text transformer for embeddings (tokens, width), by its equations."""
    weights = {name: weight.detach() for name, weight in encoder.named_parameters()}
    heads, tokens = 4, len(embedded)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def normal(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = centred.square().mean(-1, keepdim=True).add(1e-5).sqrt()
        return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = embedded
    for i in range(2):
        layer = f"encoder.layers.{i}"
        h = normal(x, f"{layer}.layer_norm1")
        q, k, v = (
            linear(h, f"{layer}.self_attn.{part}_proj").reshape(tokens, heads, -1).transpose(0, 1) for part in "qkv"
        )
        scores = q @ k.mT / q.shape[-1] ** 0.5 + torch.full((tokens, tokens), -torch.inf).triu(1)
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(tokens, -1)
        x = x + linear(mixed, f"{layer}.self_attn.out_proj")
        h = linear(normal(x, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1")
        x = x + linear(h * torch.sigmoid(1.702 * h), f"{layer}.mlp.fc2")
    return normal(x, "final_layer_norm")
