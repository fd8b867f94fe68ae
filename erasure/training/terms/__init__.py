"""Terms that preserve what stands beside a concept, one a file; a file is found by its being here."""

from ...registry import Registry
from .base import Term

__all__ = ["TERMS", "Term"]

TERMS = Registry(Term, "term")
