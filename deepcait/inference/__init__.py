"""Fast and elsewhere: the folded model, the engines that run it, export with proof."""

from deepcait.inference.engines import ENGINES, Engine, build_engine
from deepcait.inference.flip import augmented
from deepcait.inference.precision import PRECISIONS

__all__ = ["ENGINES", "PRECISIONS", "Engine", "augmented", "build_engine"]
