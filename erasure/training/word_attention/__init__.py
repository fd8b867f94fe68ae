"""Training against attention to the words of a concept, as MACE does (arXiv:2403.06135)."""
