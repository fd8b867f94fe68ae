"""Judges: which images show a concept."""
