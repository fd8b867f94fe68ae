"""Edits: changes of a model as values."""
