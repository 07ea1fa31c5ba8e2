"""The time of a model's matrix products alone on this machine: a lower bound on its latency."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcait.bench.clock import Lane, waited_for
from deepcait.inference.engines import open_openvino, openvino_default
from deepcait.inference.linear import FoldedLinear, has_onednn
from deepcait.model import CaiTConfig
from deepcait.optional import require
from deepcait.runtime.device import has_bf16
from deepcait.runtime.environment import processor_flags


class Products(nn.Module):
    """The linear layers and attention products of the patch stage, one after the other, and nothing else.

    Left out: norms, GELU, residuals, biases, head mixing, softmax, the class stage, and the copies that arrange heads
    for the products (queries, keys and values already have the layout).

    Args:
        config: the model's.
    """

    def __init__(self, config: CaiTConfig) -> None:
        super().__init__()
        self.config = config
        D, hidden = config.embed_dim, config.hidden_dim
        shapes = {"qkv": (3 * D, D), "proj": (D, D), "fc1": (hidden, D), "fc2": (D, hidden)}
        pixels = config.in_chans * config.patch_size**2
        self.embed = nn.Parameter(torch.randn(D, pixels) / pixels**0.5)
        self.weights = nn.ModuleList(
            nn.ParameterDict({name: torch.randn(shape) / shape[1] ** 0.5 for name, shape in shapes.items()})
            for _ in range(config.depth)
        )
        self.requires_grad_(False)

    def inputs(self, batch: int) -> tuple[Tensor, ...]:
        """Patches (B N, C P P); queries (B A, N, E), keys (B A, E, N) and values (B A, N, E) of all heads."""
        c = self.config
        N, A, E = c.num_patches, c.num_heads, c.embed_dim // c.num_heads
        rows, heads = batch * N, batch * A
        # Scaled so that values neither overflow nor vanish over all blocks.
        keys = torch.randn(heads, E, N) / (N * E) ** 0.5
        return (
            torch.randn(rows, c.in_chans * c.patch_size**2),
            torch.randn(heads, N, E),
            keys,
            torch.randn(heads, N, E),
        )

    def forward(self, patches: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        """Return all products, so that no compiler removes one; a block reads the next one's queries."""
        x = F.linear(patches, self.embed)
        kept: list[Tensor] = []
        for block in self.weights:
            weight = cast("nn.ParameterDict", block)
            kept.append(F.linear(x, weight["qkv"])[:1])
            queries = torch.bmm(torch.bmm(queries, keys), values)
            x = F.linear(F.linear(F.linear(x, weight["proj"]), weight["fc1"]), weight["fc2"])
        return x, queries, *kept


def limit_lanes(
    config: CaiTConfig, batch: int, precision: str, openvino: bool, threads: int, device: torch.device
) -> list[Lane]:
    """Return the products on a device as lanes, one per library; none if it can't compute in the precision."""
    if device.type == "cpu":
        products = product_lanes(config, batch, openvino=openvino, threads=threads, precision=precision)
    else:
        products = {"PyTorch": waited_for(products_on(device, config, batch, precision), device)}
    return [Lane(name, run) for name, run in products.items()]


def describe_limit(lanes: list[Lane], limit: Lane, config: CaiTConfig, batch: int, precision: str) -> dict[str, Any]:
    """Return the precision, the fastest library, its time and speed, and the times of all libraries."""
    return {
        "precision": precision,
        "library": limit.name,
        "median_s": limit.median_s,
        "all_median_s": {lane.name: lane.median_s for lane in lanes},
        "gflops": 2e-9 * count_products(config) * batch / limit.median_s,
    }


def product_lanes(
    config: CaiTConfig, batch: int, *, openvino: bool, threads: int | None, precision: str = "fp32"
) -> dict[str, Callable[[], object]]:
    """Return the products as callables, one per library.

    Args:
        config: the model's.
        batch: number of images.
        openvino: whether to include OpenVINO, whose products are oneDNN's.
        threads: threads of OpenVINO; None takes its default.
        precision: fp32; bf16, which a library may lack on this processor; or int8, for which there is PyTorch only, and
            nothing if the processor has no VNNI.
    """
    products = Products(config)
    inputs = products.inputs(batch)
    lanes: dict[str, Callable[[], object]] = {}
    if precision == "int8":
        return {"PyTorch, int8": _int8_products(products, inputs)} if multiplies_int8() else {}
    if precision == "bf16" and not (has_onednn() and has_bf16(torch.device("cpu"))):
        pass  # PyTorch would emulate it, or refuse to pack the weights
    elif has_onednn():
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        packed = [torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), None) for weight in _weights(products)]
        factors = [tensor.to(dtype) for tensor in inputs]
        lanes["PyTorch, oneDNN"] = lambda: _run_packed(packed, *factors)
    else:
        lanes["PyTorch"] = lambda: products(*inputs)
    if openvino and (precision == "fp32" or openvino_default() == precision):
        runtime = require("openvino", asked="bench", extra="openvino")
        compiled = open_openvino(runtime.convert_model(torch.export.export(products, inputs)), threads, precision)
        request = compiled.create_infer_request()
        arrays = [tensor.numpy() for tensor in inputs]
        lanes["OpenVINO"] = lambda: request.infer(arrays, share_inputs=True)
    return lanes


@functools.cache
def multiplies_int8() -> bool:
    """Whether the processor has VNNI, and PyTorch's int8 product is available and exact."""
    if "avx512_vnni" not in processor_flags().split():
        return False
    left, right = torch.arange(-64, 64, dtype=torch.int8).view(8, 16), torch.full((16, 8), 127, dtype=torch.int8)
    try:
        return torch.equal(torch._int_mm(left, right), left.int() @ right.int())
    except (AttributeError, RuntimeError):
        return False


def products_on(device: torch.device, config: CaiTConfig, batch: int, precision: str) -> Callable[[], object]:
    """Return the products on a GPU, in PyTorch, with inputs of this precision."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    products = Products(config).to(device, dtype)
    inputs = [tensor.to(device, dtype) for tensor in products.inputs(batch)]
    return lambda: products(*inputs)


def count_products(config: CaiTConfig) -> int:
    """Multiply-adds of `Products` per image."""
    D, N = config.embed_dim, config.num_patches
    linear = N * D * (4 * D + 2 * config.hidden_dim)
    return config.depth * (linear + 2 * N * N * D) + N * D * config.in_chans * config.patch_size**2


def _weights(products: Products) -> list[Tensor]:
    names = ("qkv", "proj", "fc1", "fc2")
    blocks = (cast("nn.ParameterDict", block)[name].detach() for block in products.weights for name in names)
    return [products.embed.detach(), *blocks]


def _int8_products(products: Products, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """The products as deepcait's int8 computes them: linear layers of blocks in int8, the others in float32.

    Layers read stored cells: how the sums of one layer become the cells of the next is not part of the products.
    """
    patches, queries, keys, values = inputs
    embed, *weights = _weights(products)
    linear = FoldedLinear(embed, torch.zeros(len(embed)), embed).plain
    # Stored as (in, out), which is faster here than the transposed view.
    layers = [_cells(weight.shape).t().contiguous() for weight in weights]
    rows = {layer.shape[0]: _cells((len(patches), layer.shape[0])) for layer in layers}
    sums = {layer.shape[1]: torch.empty(len(patches), layer.shape[1], dtype=torch.int32) for layer in layers}

    def run() -> Tensor:
        linear(patches)
        read = queries
        for layer in layers:
            torch._int_mm(rows[layer.shape[0]], layer, out=sums[layer.shape[1]])
        for _ in range(products.config.depth):
            read = torch.bmm(torch.bmm(read, keys), values)
        return read

    return run


def _cells(shape: Sequence[int]) -> Tensor:
    return torch.randint(-127, 128, tuple(shape), dtype=torch.int8)


def _run_packed(packed: list[Tensor], patches: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    linear = torch.ops.mkldnn._linear_pointwise
    x = linear(patches, packed[0], None, "none", [], "")
    for start in range(1, len(packed), 4):
        qkv, proj, fc1, fc2 = packed[start : start + 4]
        linear(x, qkv, None, "none", [], "")
        queries = torch.bmm(torch.bmm(queries, keys), values)
        for weight in (proj, fc1, fc2):
            x = linear(x, weight, None, "none", [], "")
    return x
