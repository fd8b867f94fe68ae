"""Metrics, one a file: a pure function and a streaming class each."""
