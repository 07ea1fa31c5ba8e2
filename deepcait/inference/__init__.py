"""Fast and elsewhere: the folded model, the engines that run it, export with proof."""

from deepcait.inference.engines import ENGINES, Engine, build_engine

__all__ = ["ENGINES", "Engine", "build_engine"]
