"""From counts to metrics: how good a model is on labelled images, exactly."""

from deepcait.evaluation.classes import describe_mapping, map_classes, model_classes
from deepcait.evaluation.counts import Counts, Metrics
from deepcait.evaluation.evaluate import PROTOCOLS, evaluate, model_preprocessing, open_for, require_protocol

__all__ = [
    "PROTOCOLS",
    "Counts",
    "Metrics",
    "describe_mapping",
    "evaluate",
    "map_classes",
    "model_classes",
    "model_preprocessing",
    "open_for",
    "require_protocol",
]
