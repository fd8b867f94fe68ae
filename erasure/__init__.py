"""Concept erasure for text-to-image diffusion models: remove, prove, hand back.

The public names load what they need when they are first used, so that `import erasure` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Each public name and the module that defines it.
_HOMES = {
    "Concept": ".concept",
    "Edit": ".edits",
    "ErasureError": ".errors",
    "Ledger": ".ledger",
    "Conditioning": ".backbones.conditioning",
    "backbone_of": ".backbones",
    "erase": ".api",
    "eraser_names": ".erasers",
    "load_model": ".loading",
    "make_eraser": ".erasers",
    "sample": ".sampling",
}

__all__ = [
    "Concept",
    "Conditioning",
    "Edit",
    "ErasureError",
    "Ledger",
    "__version__",
    "backbone_of",
    "erase",
    "eraser_names",
    "load_model",
    "make_eraser",
    "sample",
]

if TYPE_CHECKING:
    from .api import erase
    from .backbones import backbone_of
    from .backbones.conditioning import Conditioning
    from .concept import Concept
    from .edits import Edit
    from .erasers import eraser_names, make_eraser
    from .errors import ErasureError
    from .ledger import Ledger
    from .loading import load_model
    from .sampling import sample


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
