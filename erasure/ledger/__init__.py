"""The ledger: the record of removals on one base model."""

from .ledger import Ledger, slug
from .record import Base, Entry, Origin
from .renamed import present_settings

__all__ = ["Base", "Entry", "Ledger", "Origin", "present_settings", "slug"]
