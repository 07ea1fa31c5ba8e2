"""Read Keras SavedModels of cait-tf without TensorFlow, into the keys of the released checkpoints.

The variables' names do not identify them (every LayerScale is called `Variable`), and they are numbered in order of
creation. The checkpoint's object graph does: `blocks/0/layer_with_weights-1/qkv/kernel`.

Layout: sayakpaul/cait-tf, `cait/models.py`. Dense kernels are transposed there, and the patch kernel is HWIO.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deepcait.errors import WeightsError
from deepcait.weights.layouts import StateDict
from deepcait.weights.tensor_bundle import BFLOAT16, Node, TensorBundle

SAVED_MODEL_FILES = ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001")
# Stage -> the Dense layers in its attention, with deepcait's names.
ATTENTION = {"blocks": ("qkv", "proj", "proj_l", "proj_w"), "blocks_token_only": ("q", "k", "v", "proj")}
UNLOADED_NORM = (
    "the final norm in this SavedModel has its initial values: cait-tf never loaded it into its feature extractors "
    "(`_fe`), so these features are not those of the released model; take norm.* from the classifier of the same size"
)


def is_saved_model(folder: Path) -> bool:
    """Whether a folder is a SavedModel."""
    return (folder / SAVED_MODEL_FILES[0]).is_file()


def read_saved_model(folder: Path, *, shapes_only: bool = False) -> tuple[StateDict, list[str]]:
    """Read the weights in a SavedModel of cait-tf.

    Args:
        folder: with `variables/`; saved_model.pb is never opened, so no code runs.
        shapes_only: return tensors on the meta device without reading their values.

    Returns:
        The state dict, and notes for the user (sentences; usually none).

    Raises:
        WeightsError: a file is missing, damaged or compressed, or the model is not a CaiT of this layout.
    """
    bundle = TensorBundle(folder / "variables" / "variables")
    names = _Objects(folder, bundle.read_objects()).name_tensors()
    state_dict: StateDict = {}
    for key, (checkpoint_key, form) in names.items():
        state_dict[key] = (
            _shape_of(bundle, checkpoint_key, form) if shapes_only else _read(bundle, checkpoint_key, form)
        )
    notes = []
    if "head.weight" not in state_dict and not shapes_only and _is_untouched(state_dict):
        notes.append(UNLOADED_NORM)
    return state_dict, notes


class _Objects:
    """The objects of a saved CaiT, and the tensor for each key.

    Form of a tensor: "as is", "dense" (transposed), "patch" (HWIO).
    """

    def __init__(self, folder: Path, nodes: list[Node]) -> None:
        self.folder = folder
        self.nodes = nodes
        self.found: dict[str, tuple[str, str]] = {}

    def name_tensors(self) -> dict[str, tuple[str, str]]:
        """Key -> key in the checkpoint, and form; in the order of the released checkpoints."""
        root = self.nodes[0] if self.nodes else Node()
        self._variable("cls_token", root, "cls_token")
        self._variable("pos_embed", root, "pos_embed")
        projection = self._layers(self._child(root, "projection", "projection"), "projection", 1)
        self._variable("patch_embed.proj.weight", projection[0], "kernel", "patch")
        self._variable("patch_embed.proj.bias", projection[0], "bias")
        for stage, parts in ATTENTION.items():
            blocks = self._numbered(self._child(root, stage, stage), "")
            for number, block in enumerate(blocks):
                self._block(f"{stage}.{number}", block, parts)
        self._norm("norm", self._child(root, "norm", "norm"))
        if "head" in root.children and "kernel" in self._child(root, "head", "head").children:
            self._dense("head", self._child(root, "head", "head"))
        return self.found

    def _block(self, name: str, block: Node, parts: tuple[str, ...]) -> None:
        """LayerNorm, attention, LayerScale, LayerNorm, Dense, Dense, LayerScale."""
        norm1, attention, gamma_1, norm2, fc1, fc2, gamma_2 = self._layers(block, name, 7)
        self._variable(f"{name}.gamma_1", gamma_1, "gamma")
        self._variable(f"{name}.gamma_2", gamma_2, "gamma")
        self._norm(f"{name}.norm1", norm1)
        for part in parts:
            self._dense(f"{name}.attn.{part}", self._child(attention, part, f"{name}.attn"))
        self._norm(f"{name}.norm2", norm2)
        self._dense(f"{name}.mlp.fc1", fc1)
        self._dense(f"{name}.mlp.fc2", fc2)

    def _norm(self, name: str, layer: Node) -> None:
        self._variable(f"{name}.weight", layer, "gamma")
        self._variable(f"{name}.bias", layer, "beta")

    def _dense(self, name: str, layer: Node) -> None:
        self._variable(f"{name}.weight", layer, "kernel", "dense")
        self._variable(f"{name}.bias", layer, "bias")

    def _variable(self, name: str, owner: Node, attribute: str, form: str = "as is") -> None:
        node = self._child(owner, attribute, name)
        if node.checkpoint_key is None:
            raise self._other(f"a variable for {name}")
        self.found[name] = (node.checkpoint_key, form)

    def _layers(self, model: Node, name: str, count: int) -> list[Node]:
        layers = self._numbered(model, "layer_with_weights-")
        if len(layers) != count:
            raise self._other(f"{count} layers with weights in {name}, not {len(layers)}")
        return layers

    def _numbered(self, owner: Node, prefix: str) -> list[Node]:
        """Children called prefix0, prefix1, ...: by number, not by name (10 comes after 9)."""
        numbers = [child.removeprefix(prefix) for child in owner.children if child.startswith(prefix)]
        ordered = sorted(int(number) for number in numbers if number.isdecimal())
        return [self.nodes[owner.children[f"{prefix}{number}"]] for number in ordered]

    def _child(self, owner: Node, attribute: str, name: str) -> Node:
        if attribute not in owner.children:
            raise self._other(f"{attribute} of {name}")
        return self.nodes[owner.children[attribute]]

    def _other(self, expected: str) -> WeightsError:
        held = ", ".join(list(self.nodes[0].children)[:8]) if self.nodes else "nothing"
        return WeightsError(
            f"{self.folder}: this is not a CaiT as saved by cait-tf: it has no {expected}; it contains {held}.",
            remedy="Other Keras models are not supported; use the .pth file or hub repository of the same model.",
        )


def _read(bundle: TensorBundle, key: str, form: str) -> Tensor:
    values = bundle.read(key)
    if bundle.entries[key].dtype == BFLOAT16:
        tensor = torch.from_numpy(values.astype(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(values.copy())
    return tensor.permute(_axes(form, tensor.ndim)).contiguous()


def _shape_of(bundle: TensorBundle, key: str, form: str) -> Tensor:
    shape = bundle.entries[key].shape
    return torch.empty([shape[axis] for axis in _axes(form, len(shape))], device="meta")


def _axes(form: str, ndim: int) -> tuple[int, ...]:
    """The permutation of axes; a tensor of unexpected rank is kept and fails the shape check."""
    if form == "patch" and ndim == 4:
        return 3, 2, 0, 1
    return (1, 0) if form == "dense" and ndim == 2 else tuple(range(ndim))


def _is_untouched(state_dict: StateDict) -> bool:
    weight, bias = state_dict["norm.weight"], state_dict["norm.bias"]
    return bool((weight == 1).all() and (bias == 0).all())
