"""Loading of models by their names."""

from .models import Attention, attend_by, attend_once_by_xformers, load_model, load_stored

__all__ = ["Attention", "attend_by", "attend_once_by_xformers", "load_model", "load_stored"]
