"""Least-squares edits of the projections that read the same text stream."""
