"""`python -m tests.nullgpu.compiled FORM DEPTH BUDGET`: what a compiled step of XXS24 asks of the pretended GPU.

FORM: timm (the whole model compiled, as its scripts do) or blocks (ours, as `compute.compile: auto`). BUDGET: share of
the activations that is stored. Batch 128 in bf16. Prints one JSON line. Bytes are the compiler's own count, of each
compiled graph once: blocks that share a graph are counted once, so `patch` (ours without compiled class blocks) at
depth 1 has those of one patch block.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # a cached graph counts no bytes

import logging

import timm
import torch
import torch._functorch.config
import torch._inductor.metrics as metrics
import torch.nn.functional as F
from torch._inductor.compile_fx import inductor_metrics_log

import deepcait
from deepcait.training.compute import compile_blocks, set_compute
from deepcait.training.settings import Compute
from tests.nullgpu.meter import Meter

BATCH = 128
# Without cuDNN a convolution is a copy of the patches and a product per image, forward and backward.
IM2COL = 4 * BATCH


def build(form: str, depth: int) -> torch.nn.Module:
    """The network on the device, with what of it is compiled."""
    name, settings = "cait_xxs24_224", {"depth": depth, "drop_path_rate": 0.05}
    if form == "timm":
        return torch.compile(timm.create_model(name, **settings).cuda().train(), fullgraph=True)
    model = deepcait.create_model(name, **settings).cuda().train()
    set_compute(model, Compute(backend="reference"))
    if form == "patch":
        model.blocks_token_only = torch.nn.ModuleList()
    compile_blocks(model)
    return model


def main(form: str, depth: int, budget: float) -> None:
    """Compile in a first step, and count in a third."""
    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.set_float32_matmul_precision("high")
    inductor_metrics_log.setLevel(logging.INFO)  # else it counts no bytes
    torch._functorch.config.activation_memory_budget = budget
    net = build(form, depth)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-4, fused=True)
    images_BCHW = torch.empty(BATCH, 3, 224, 224, device="cuda")
    labels_B = torch.zeros(BATCH, dtype=torch.long, device="cuda")

    def forward() -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return F.cross_entropy(net(images_BCHW), labels_B)

    def finish(loss: torch.Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    metrics.reset()
    for _ in range(2):
        finish(forward())
    before = torch.cuda.memory_allocated()
    with Meter() as meter:
        loss = forward()
        kept = torch.cuda.memory_allocated() - before
        finish(loss)
    facts = {"launches": meter.launches - IM2COL, "bytes": metrics.num_bytes_accessed, "kept_bytes": kept}
    print(json.dumps(facts), flush=True)
    os._exit(0)  # the compiler's processes may keep a pretended device open


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
