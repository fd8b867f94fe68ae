"""Experiments: one script each, run from a checkout, results under results/."""
