"""Explanations of a CaiT: attention maps of an image, plots of a model's layers, and HTML pages with them."""

from deepcait.explain.explanation import DEFAULT_METHODS, METHODS, Explanation, Map, Original, explain_image
from deepcait.explain.faithfulness import Faithfulness, measure_faithfulness
from deepcait.explain.maps import class_attention, gradient_attention, positive_mean, rollout

__all__ = [
    "DEFAULT_METHODS",
    "METHODS",
    "Explanation",
    "Faithfulness",
    "Map",
    "Original",
    "class_attention",
    "explain_image",
    "gradient_attention",
    "measure_faithfulness",
    "positive_mean",
    "rollout",
]
