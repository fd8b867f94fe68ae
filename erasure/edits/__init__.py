"""Edits: changes of a model as values."""

from .changes import Change, DenseChange, LowRankChange, MapChange, SolvedChange, SumChange
from .edit import Edit
from .lora import Lora
from .metadata import EditMetadata
from .sampling_edit import SamplingEdit, joint, weights_of
from .switch import Switch
from .ties import ties
from .weight_edit import WeightEdit

__all__ = [
    "Change",
    "DenseChange",
    "Edit",
    "EditMetadata",
    "Lora",
    "LowRankChange",
    "MapChange",
    "SamplingEdit",
    "SolvedChange",
    "SumChange",
    "Switch",
    "WeightEdit",
    "joint",
    "ties",
    "weights_of",
]
