"""The ledger: the record of removals on one base model."""

from .ledger import Ledger, slug
from .record import Base, Entry, Origin

__all__ = ["Base", "Entry", "Ledger", "Origin", "slug"]
