"""Inference: the folded model, engines that run it, and verified export."""

from deepcait.inference.engines import ENGINES, Engine, build_engine
from deepcait.inference.flip import augmented
from deepcait.inference.precision import PRECISIONS

__all__ = ["ENGINES", "PRECISIONS", "Engine", "augmented", "build_engine"]
