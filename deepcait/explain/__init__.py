"""What a CaiT looks at: maps of one image, figures of one model, and pages that show them."""

from deepcait.explain.explanation import DEFAULT_METHODS, METHODS, Explanation, Map, explain_image
from deepcait.explain.faithfulness import Faithfulness, measure_faithfulness
from deepcait.explain.maps import class_attention, gradient_attention, positive_mean, rollout

__all__ = [
    "DEFAULT_METHODS",
    "METHODS",
    "Explanation",
    "Faithfulness",
    "Map",
    "class_attention",
    "explain_image",
    "gradient_attention",
    "measure_faithfulness",
    "positive_mean",
    "rollout",
]
