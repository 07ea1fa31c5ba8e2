"""From bytes to batches: safe image opening, preprocessing, sources, splits, loaders."""

from deepcait.data.columns import Columns
from deepcait.data.dataset import NO_LABEL, ImageDataset, RaisingLoader, evaluation_loader
from deepcait.data.folder import FolderSource, find_splits, open_folder
from deepcait.data.formats import IMAGE_SUFFIXES
from deepcait.data.holding import open_parts, open_split
from deepcait.data.image import ImageOptions, open_image
from deepcait.data.listing import list_images
from deepcait.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from deepcait.data.source import Sample, Source, Subset, describe
from deepcait.data.spec import list_splits, open_source, parse_spec
from deepcait.data.split import stratified_split
from deepcait.data.workers import worker_context
from deepcait.data.writing import write_split

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "IMAGE_SUFFIXES",
    "ImageOptions",
    "NO_LABEL",
    "Columns",
    "FolderSource",
    "ImageDataset",
    "Preprocessing",
    "RaisingLoader",
    "Sample",
    "Source",
    "Subset",
    "describe",
    "evaluation_loader",
    "find_splits",
    "list_images",
    "list_splits",
    "open_folder",
    "open_image",
    "open_parts",
    "open_source",
    "open_split",
    "parse_spec",
    "stratified_split",
    "worker_context",
    "write_split",
]
