"""Metrics, one a file: a pure function and a streaming class each; a file is found by its being here."""

from erasure.registry import Registry

from .base import Metric

__all__ = ["METRICS", "Metric", "metric_class", "metric_names"]

METRICS = Registry(Metric, "metric")
metric_class, metric_names = METRICS.get, METRICS.names
