"""Places in a denoiser where an edit can be written, by their role instead of a family's layer names."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

Role = str
"""A role in dotted form, the general part first: "cross.k", "joint.text.out".

A family uses the roles that apply to it:

- `text.in`: first projection of a stream of text states, before any attention.
- `text.mean`: first projection of the mean of a stream's states.
- `pooled.in`: first projection of the sentence vector; `pooled`: the further ones.
- `cross.q|k|v|out|norm`: attention from image to text.
- `self.q|k|v|out|norm`: attention from image to image.
- `joint.q|k|v|out|norm`: the image's part of joint attention; `joint.text.q|k|v|out|norm`: the text's part.
- `shared.q|k|v|norm|in|out`: blocks that treat image and text tokens alike.
- `refiner.q|k|v|norm|in|out`: blocks of the text's tokens alone, behind its first projection.
- `projection`: layers into and out of a group of blocks.
- `ff.in|out`: feed-forward layers; `ff.text.in|out`: those of the text's part of a joint block.
- `time`: embedding of the timestep; `modulation`: scales and shifts of a block made from it.
- `in`, `out`: first and last layers; `conv`, `norm`, `other`: the rest.
"""


@dataclass(frozen=True, kw_only=True)
class Site:
    """One parameter of a denoiser.

    Attributes:
        name: Full parameter name, "unet.….attn2.to_k.weight".
        role: Role of the parameter; see `Role`.
        reads: Stream whose states are the direct input of the parameter's layer; None if its input also depends on the
            latents.
        columns: Number of leading columns of the weight that the stream is multiplied with; None is all of them.
    """

    name: str
    role: Role
    reads: str | None = None
    columns: int | None = None

    @property
    def module(self) -> str:
        """Full name of the layer that has the parameter."""
        return self.name.rpartition(".")[0]


Sites = Mapping[str, Site]
"""Sites by parameter name, in the order of the model."""


def has_role(site: Site, roles: Collection[Role]) -> bool:
    """Return True if the site has one of the roles, or a part of one: "cross" includes "cross.k"."""
    return any(site.role == role or site.role.startswith(f"{role}.") for role in roles)


def sites_of(
    names: Iterable[str],
    component: str,
    role_of: Callable[[str], Role],
    reads: Mapping[Role, str],
    columns: Mapping[Role, int],
) -> dict[str, Site]:
    """Return the sites of a denoiser.

    Args:
        names: Parameter names inside the denoiser.
        component: Name of the denoiser as a component.
        role_of: Returns the role of a parameter from its name inside the denoiser.
        reads: Stream that the weights of a role read.
        columns: Leading columns that a stream is multiplied with, for roles whose layers read more beside it.
    """
    sites: dict[str, Site] = {}
    for inner in names:
        role = role_of(inner)
        stream = reads.get(role) if inner.endswith(".weight") else None
        full = f"{component}.{inner}"
        sites[full] = Site(name=full, role=role, reads=stream, columns=columns.get(role) if stream else None)
    return sites


# Roles of modules at the top of a denoiser.
_UNET_TOP = {"conv_in": "in", "conv_norm_out": "out", "conv_out": "out", "time_embedding": "time"}
_JOINT_TOP = {
    "context_embedder": "text.in",
    "x_embedder": "in",
    "pos_embed": "in",
    "norm_out": "out",
    "proj_out": "out",
}


def unet_role(name: str) -> Role:
    """Return the role of a parameter of a UNet with cross-attention."""
    top, _, _ = name.partition(".")
    if top in _UNET_TOP:
        return _UNET_TOP[top]
    if top == "add_embedding":
        return "pooled.in" if name == "add_embedding.linear_1.weight" else "pooled"
    for layer, role in ((".attn1.", "self"), (".attn2.", "cross")):
        if layer in name:
            return f"{role}.{_attention_part(name.partition(layer)[2])}"
    if ".ff." in name:
        return "ff.out" if ".ff.net.2." in name else "ff.in"
    if ".norm" in name:
        return "norm"
    if ".proj_in." in name or ".proj_out." in name:
        return "projection"
    return "conv" if ".conv" in name else "other"


def joint_transformer_role(name: str) -> Role:
    """Return the role of a parameter of a transformer with joint attention, whose single blocks are shared."""
    top, _, rest = name.partition(".")
    if top in _JOINT_TOP:
        return _JOINT_TOP[top]
    if top == "time_text_embed":
        if rest == "text_embedder.linear_1.weight":
            return "pooled.in"
        return "pooled" if rest.startswith("text_embedder.") else "time"
    if top == "single_transformer_blocks":
        return _shared_role(name)
    if ".attn2." in name:  # of the image alone, in Stable Diffusion 3.5
        return f"self.{_attention_part(name.partition('.attn2.')[2])}"
    if ".attn." in name:
        return f"joint.{_attention_part(name.partition('.attn.')[2])}"
    for layer, role in ((".ff.", "ff"), (".ff_context.", "ff.text")):
        if layer in name:
            return f"{role}.out" if f"{layer}net.2." in name else f"{role}.in"
    return "modulation" if ".norm" in name else "other"


def attention_roles(layers: str, role: Role) -> dict[str, Role]:
    """Return the roles of the parts of attention layers, by patterns of parameter names.

    Args:
        layers: Pattern of the layers' names: "context_refiner.*.attention".
        role: Role of the layers: "refiner".
    """
    parts = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out": "out", "norm": "norm"}
    return {f"{layers}.{layer}*": f"{role}.{part}" for layer, part in parts.items()}


def _shared_role(name: str) -> Role:
    if ".attn." in name:
        return f"shared.{_attention_part(name.partition('.attn.')[2])}"
    if ".proj_mlp." in name:
        return "shared.in"
    return "shared.out" if ".proj_out." in name else "modulation"


def _attention_part(inner: str) -> str:
    """Return the part of an attention layer that a parameter belongs to, from its name inside the layer."""
    layer = inner.partition(".")[0]
    parts = {
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out": "out",
        "add_q_proj": "text.q",
        "add_k_proj": "text.k",
        "add_v_proj": "text.v",
        "to_add_out": "text.out",
        "norm_added_q": "text.norm",
        "norm_added_k": "text.norm",
    }
    return parts.get(layer, "norm")
