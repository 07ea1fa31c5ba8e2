"""Trained models on disk: weights files of other programs, model folders, the hub, and resolving MODEL."""

from deepcait.weights.adapt import AdaptReport as AdaptReport
from deepcait.weights.adapt import adapt_state_dict as adapt_state_dict
from deepcait.weights.adapt import build_loaded as build_loaded
from deepcait.weights.adapt import load_into as load_into
from deepcait.weights.artefact import StoredModel as StoredModel
from deepcait.weights.artefact import read_artefact as read_artefact
from deepcait.weights.artefact import save_artefact as save_artefact
from deepcait.weights.create import create_model as create_model
from deepcait.weights.layouts import infer_config as infer_config
from deepcait.weights.layouts import official_layout as official_layout
from deepcait.weights.layouts import read_checkpoint as read_checkpoint
from deepcait.weights.published import published as published
from deepcait.weights.registry import RELEASED as RELEASED
from deepcait.weights.registry import list_models as list_models
from deepcait.weights.spec import Resolved as Resolved
from deepcait.weights.spec import describe as describe
from deepcait.weights.spec import describe_models as describe_models
from deepcait.weights.spec import resolve as resolve
