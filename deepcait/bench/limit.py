"""How fast this machine multiplies the matrices of a model and nothing else: a limit to come near to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcait.inference.engines import open_openvino
from deepcait.model import CaiTConfig


class Products(nn.Module):
    """The linear layers and attention products of the patch stage, back to back, without anything between them.

    No norm, GELU, residual, bias, mixing, softmax, class stage: what a model does beyond its matrices is left out, as
    well as the copies that lay heads out for the products (queries, keys and values lie ready).

    Args:
        config: of the model.
    """

    def __init__(self, config: CaiTConfig) -> None:
        super().__init__()
        self.config = config
        D, hidden = config.embed_dim, config.hidden_dim
        shapes = {"qkv": (3 * D, D), "proj": (D, D), "fc1": (hidden, D), "fc2": (D, hidden)}
        pixels = config.in_chans * config.patch_size**2
        self.embed = nn.Parameter(torch.randn(D, pixels) / pixels**0.5)
        self.weights = [
            {name: torch.randn(shape) / shape[1] ** 0.5 for name, shape in shapes.items()} for _ in range(config.depth)
        ]
        self.requires_grad_(False)

    def inputs(self, batch: int) -> tuple[Tensor, ...]:
        """Patches (B N, C P P); queries, keys (transposed) and maps of all heads."""
        c = self.config
        N, A, E = c.num_patches, c.num_heads, c.embed_dim // c.num_heads
        rows = batch * N
        heads = batch * A
        return (
            torch.randn(rows, c.in_chans * c.patch_size**2),
            torch.randn(heads, N, E),
            torch.randn(heads, E, N),
            torch.randn(heads, N, N),
        )

    def forward(self, patches: Tensor, queries: Tensor, keys: Tensor, maps: Tensor) -> tuple[Tensor, ...]:
        """Return what was made last of each kind, so that no program may leave a product out."""
        x = F.linear(patches, self.embed)
        kept: list[Tensor] = []
        for weight in self.weights:
            wide = F.linear(x, weight["qkv"])
            scores = torch.bmm(queries, keys)
            read = torch.bmm(maps, queries)
            x = F.linear(F.linear(F.linear(x, weight["proj"]), weight["fc1"]), weight["fc2"])
            kept += [wide[:1], scores[:1, :1], read[:1, :1]]
        return x, *kept


def product_lanes(
    config: CaiTConfig, batch: int, *, openvino: bool, threads: int | None
) -> dict[str, Callable[[], object]]:
    """Return the same products in each library that may be the fastest.

    Args:
        config: of the model.
        batch: images.
        openvino: whether to add OpenVINO.
        threads: of OpenVINO; None leaves it to it.
    """
    products = Products(config)
    inputs = products.inputs(batch)
    lanes: dict[str, Callable[[], object]] = {"PyTorch (MKL)": lambda: products(*inputs)}
    if torch.backends.mkldnn.is_available():
        packed = _pack(products)
        lanes["PyTorch (oneDNN, packed weights; MKL for attention)"] = lambda: _run_packed(packed, *inputs)
    if openvino:
        import openvino as runtime

        # One layer at a time shares its inputs with the next: the graph must not notice that they are equal.
        compiled = open_openvino(runtime.convert_model(torch.export.export(_Distinct(products), inputs)), threads)
        request = compiled.create_infer_request()
        arrays = [tensor.numpy() for tensor in inputs]
        lanes["OpenVINO"] = lambda: request.infer(arrays, share_inputs=True)
    return lanes


class _Distinct(nn.Module):
    """The products for a compiler that would compute equal ones once: each block's are of inputs of its own."""

    def __init__(self, products: Products) -> None:
        super().__init__()
        self.products = products

    def forward(self, patches: Tensor, queries: Tensor, keys: Tensor, maps: Tensor) -> tuple[Tensor, ...]:
        """As `Products`, the maps of a block being the scores of the one before."""
        x = F.linear(patches, self.products.embed)
        kept: list[Tensor] = []
        for weight in self.products.weights:
            wide = F.linear(x, weight["qkv"])
            maps = torch.bmm(queries, keys)
            queries = torch.bmm(maps, queries)
            x = F.linear(F.linear(F.linear(x, weight["proj"]), weight["fc1"]), weight["fc2"])
            kept.append(wide[:1])
        return x, queries, maps, *kept


def _pack(products: Products) -> list[Tensor]:
    weights = [products.embed, *(w for block in products.weights for w in block.values())]
    return [torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None) for weight in weights]


def _run_packed(packed: list[Tensor], patches: Tensor, queries: Tensor, keys: Tensor, maps: Tensor) -> Tensor:
    linear = torch.ops.mkldnn._linear_pointwise
    x = linear(patches, packed[0], None, "none", [], "")
    for start in range(1, len(packed), 4):
        qkv, proj, fc1, fc2 = packed[start : start + 4]
        linear(x, qkv, None, "none", [], "")
        torch.bmm(queries, keys)
        torch.bmm(maps, queries)
        for weight in (proj, fc1, fc2):
            x = linear(x, weight, None, "none", [], "")
    return x
