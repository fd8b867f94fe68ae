"""The ledger: the record of removals on one base model."""

from .checks import check_anchors
from .ledger import Ledger, slug
from .record import Base, Entry, Origin, is_ledger
from .renamed import present_settings, recorded_eraser
from .store import starting

__all__ = [
    "Base",
    "Entry",
    "Ledger",
    "Origin",
    "check_anchors",
    "is_ledger",
    "present_settings",
    "recorded_eraser",
    "slug",
    "starting",
]
