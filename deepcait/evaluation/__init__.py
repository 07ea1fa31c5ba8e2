"""Evaluate models on labelled images: exact counts, metrics, protocols."""

from deepcait.evaluation.classes import class_names, describe_mapping, map_classes, model_classes
from deepcait.evaluation.compare import Paired, compare, mcnemar
from deepcait.evaluation.counts import Counts, Metrics
from deepcait.evaluation.evaluate import evaluate, model_preprocessing
from deepcait.evaluation.expected import Expected, expected_accuracy
from deepcait.evaluation.intervals import bootstrap_mean, wilson
from deepcait.evaluation.masks import read_mask
from deepcait.evaluation.metrics import (
    calibration,
    confusion,
    count_cells,
    list_classes,
    list_confusion,
    list_reliability,
    most_errors,
    per_class,
    summarise,
)
from deepcait.evaluation.protocols import PROTOCOLS, open_for, open_with_roles, require_protocol
from deepcait.evaluation.records import Records

__all__ = [
    "PROTOCOLS",
    "Counts",
    "Expected",
    "Metrics",
    "Paired",
    "Records",
    "bootstrap_mean",
    "calibration",
    "class_names",
    "compare",
    "confusion",
    "count_cells",
    "describe_mapping",
    "evaluate",
    "expected_accuracy",
    "list_classes",
    "list_confusion",
    "list_reliability",
    "map_classes",
    "mcnemar",
    "model_classes",
    "model_preprocessing",
    "most_errors",
    "open_for",
    "open_with_roles",
    "per_class",
    "read_mask",
    "require_protocol",
    "summarise",
    "wilson",
]
