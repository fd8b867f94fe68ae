"""Metrics, one a file: each is a pure function and a streaming class."""
