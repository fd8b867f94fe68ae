"""Feature extractors and the weights that they need."""
