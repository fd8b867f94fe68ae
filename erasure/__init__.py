"""Concept erasure for text-to-image diffusion models: removal, proof, export.

The public names load their modules when they are first used, so that `import erasure` costs next to nothing. Every
eraser is a public name, those of other packages too: `erasure.UCE(reg=0.5)`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Each public name and the module that defines it.
_HOMES = {
    "ANT": ".erasers.ant",
    "Absent": ".erasers.absent",
    "AdaVD": ".erasers.adavd",
    "AdvUnlearn": ".erasers.advunlearn",
    "CA": ".erasers.ca",
    "CASteer": ".erasers.casteer",
    "CFE": ".erasers.cfe",
    "CapsuleEraser": ".erasers.capsule",
    "Concept": ".concept",
    "ConceptPrune": ".erasers.concept_prune",
    "Conditioning": ".backbones.conditioning",
    "DUGE": ".erasers.duge",
    "ESD": ".erasers.esd",
    "Edit": ".edits",
    "EraseAnything": ".erasers.eraseanything",
    "EraseFlow": ".erasers.eraseflow",
    "Eraser": ".erasers",
    "ErasureError": ".errors",
    "GEM": ".erasers.gem",
    "HiRM": ".erasers.hirm",
    "LECO": ".erasers.leco",
    "Ledger": ".ledger",
    "Localised": ".erasers.localised",
    "MACE": ".erasers.mace",
    "NegativePrompt": ".erasers.negative_prompt",
    "OCE": ".erasers.oce",
    "Progress": ".progress",
    "RECE": ".erasers.rece",
    "Receler": ".erasers.receler",
    "SAFREE": ".erasers.safree",
    "SLD": ".erasers.sld",
    "SPEED": ".erasers.speed",
    "SPM": ".erasers.spm",
    "STAMP": ".erasers.stamp",
    "STEREO": ".erasers.stereo",
    "SalUn": ".erasers.salun",
    "SamplingEdit": ".edits",
    "SamplingSettings": ".sampling",
    "SemanticSurgery": ".erasers.semantic_surgery",
    "Stack": ".erasers.stack",
    "TRCE": ".erasers.trce",
    "Tune": ".erasers.tune",
    "UCE": ".erasers.uce",
    "WeightEdit": ".edits",
    "backbone_of": ".backbones",
    "erase": ".api",
    "eraser_names": ".erasers",
    "load_model": ".loading",
    "make_eraser": ".erasers",
    "sample": ".sampling",
}

__all__ = [
    "ANT",
    "CA",
    "CFE",
    "DUGE",
    "ESD",
    "GEM",
    "LECO",
    "MACE",
    "OCE",
    "RECE",
    "SAFREE",
    "SLD",
    "SPEED",
    "SPM",
    "STAMP",
    "STEREO",
    "TRCE",
    "UCE",
    "Absent",
    "AdaVD",
    "AdvUnlearn",
    "CASteer",
    "CapsuleEraser",
    "Concept",
    "ConceptPrune",
    "Conditioning",
    "Edit",
    "EraseAnything",
    "EraseFlow",
    "Eraser",
    "ErasureError",
    "HiRM",
    "Ledger",
    "Localised",
    "NegativePrompt",
    "Progress",
    "Receler",
    "SalUn",
    "SamplingEdit",
    "SamplingSettings",
    "SemanticSurgery",
    "Stack",
    "Tune",
    "WeightEdit",
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
    from .edits import Edit, SamplingEdit, WeightEdit
    from .erasers import Eraser, eraser_names, make_eraser
    from .erasers.absent import Absent
    from .erasers.adavd import AdaVD
    from .erasers.advunlearn import AdvUnlearn
    from .erasers.ant import ANT
    from .erasers.ca import CA
    from .erasers.capsule import CapsuleEraser
    from .erasers.casteer import CASteer
    from .erasers.cfe import CFE
    from .erasers.concept_prune import ConceptPrune
    from .erasers.duge import DUGE
    from .erasers.eraseanything import EraseAnything
    from .erasers.eraseflow import EraseFlow
    from .erasers.esd import ESD
    from .erasers.gem import GEM
    from .erasers.hirm import HiRM
    from .erasers.leco import LECO
    from .erasers.localised import Localised
    from .erasers.mace import MACE
    from .erasers.negative_prompt import NegativePrompt
    from .erasers.oce import OCE
    from .erasers.rece import RECE
    from .erasers.receler import Receler
    from .erasers.safree import SAFREE
    from .erasers.salun import SalUn
    from .erasers.semantic_surgery import SemanticSurgery
    from .erasers.sld import SLD
    from .erasers.speed import SPEED
    from .erasers.spm import SPM
    from .erasers.stack import Stack
    from .erasers.stamp import STAMP
    from .erasers.stereo import STEREO
    from .erasers.trce import TRCE
    from .erasers.tune import Tune
    from .erasers.uce import UCE
    from .errors import ErasureError
    from .ledger import Ledger
    from .loading import load_model
    from .progress import Progress
    from .sampling import SamplingSettings, sample


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    if name[:1].isupper():  # an eraser of another package
        erasers = import_module(".erasers", __name__).ERASERS.classes().values()
        added = next((kind for kind in erasers if kind.__name__ == name), None)
        if added is not None:
            return added
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
