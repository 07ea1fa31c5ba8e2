"""int8: deepcait's engine, NNCF for OpenVINO, ONNX Runtime's quantizer, torchao with torch.compile.

    python docs/results/int8_libraries.py MODEL --images FOLDER [--labels] [--most N] [--rounds N] [--out FILE.json]

Needs nncf and torchao beside deepcait[export,openvino]; what is missing or fails is named in the results. NNCF and the
calibrated quantizer see some of the images, mirrored. A model name takes seeded random weights with LayerScale of order
1.
Errors are those of the logits against the network itself, over their standard deviation.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcait.bench.clock import Lane, ratio, take_turns
from deepcait.bench.inference import build_pair, logit_error, open_model
from deepcait.data import Preprocessing, list_images, open_image
from deepcait.inference.engines import build_engine, open_onnx, open_openvino
from deepcait.inference.fold import fold
from deepcait.inference.graph import INPUT, OUTPUT, to_openvino, write_onnx
from deepcait.runtime.environment import environment, processor

Run = Callable[[Tensor], Tensor]
NUM_CALIBRATION = 32


def quantize_openvino(network: torch.nn.Module, images: Tensor, threads: int) -> Run:
    """NNCF's post-training quantization, for transformers, weights per channel."""
    import nncf

    graph = to_openvino(network)
    data = nncf.Dataset([{INPUT: image[None].numpy()} for image in images])
    graph = nncf.quantize(graph, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(images))
    request = open_openvino(graph, threads).create_infer_request()
    return lambda batch: torch.from_numpy(request.infer({INPUT: batch.numpy()}, share_inputs=True)[OUTPUT].copy())


def quantize_onnx(model: torch.nn.Module, images: Tensor, threads: int, *, static: bool) -> Run:
    """ONNX Runtime's quantizer: activations with ranges from the images, or of each call; weights per channel."""
    from onnxruntime import quantization as q

    with tempfile.TemporaryDirectory() as folder:
        plain, short = Path(folder, "plain.onnx"), Path(folder, "short.onnx")
        write_onnx(fold(model), plain)
        if static:

            class Images(q.CalibrationDataReader):
                def __init__(self) -> None:
                    self.rest = iter(images)

                def get_next(self) -> dict[str, Any] | None:
                    image = next(self.rest, None)
                    return None if image is None else {INPUT: image[None].numpy()}

            q.quantize_static(plain, short, Images(), per_channel=True, op_types_to_quantize=["MatMul", "Gemm"])
        else:
            q.quantize_dynamic(plain, short, per_channel=True, weight_type=q.QuantType.QInt8)
        session = open_onnx(short, threads)
    return lambda batch: torch.from_numpy(session.run([OUTPUT], {INPUT: batch.numpy()})[0])


def quantize_torchao(model: torch.nn.Module, peer: torch.nn.Module) -> Run:
    """torchao: activations per token and weights per channel in int8, through torch.compile, on timm's network."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(peer, Int8DynamicActivationInt8WeightConfig())
    return torch.compile(peer, dynamic=True)


def build(model: torch.nn.Module, peer: torch.nn.Module, images: Tensor, threads: int) -> tuple[dict[str, Run], dict]:
    """Return what runs, and why the rest does not."""
    found: dict[str, Run] = {}
    left_out: dict[str, str] = {}
    makers: dict[str, Callable[[], Run]] = {
        "eager fp32": lambda: build_engine("eager", model, threads=threads),
        "eager bf16": lambda: build_engine("eager", model, threads=threads, precision="bf16"),
        "eager int8": lambda: build_engine("eager", model, threads=threads, precision="int8"),
        "openvino fp32": lambda: build_engine("openvino", model, threads=threads),
        "openvino bf16": lambda: build_engine("openvino", model, threads=threads, precision="bf16"),
        "openvino int8, NNCF": lambda: quantize_openvino(fold(model), images, threads),
        "onnx int8, ranges of each call": lambda: quantize_onnx(model, images, threads, static=False),
        "onnx int8, calibrated": lambda: quantize_onnx(model, images, threads, static=True),
        "compile int8, torchao": lambda: quantize_torchao(model, peer),
    }
    for name, make in makers.items():
        try:
            run = make()
            with torch.inference_mode():
                run(images[:2]), run(images[:1])
            found[name] = run
        except Exception as error:  # noqa: BLE001 - a library that fails is a result
            left_out[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        print(name, left_out.get(name, "runs"), flush=True)
    return found, left_out


def read_images(folder: str, preprocessing: Preprocessing, most: int) -> tuple[Tensor, list[str]]:
    """Images below the folder, at most so many, and the folders that they lie in."""
    paths = list_images(folder)
    paths = paths[:: max(1, len(paths) // most)][:most]
    return torch.stack([preprocessing(open_image(path)) for path in paths]), [path.parent.name for path in paths]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Build, compare, and time in turns."""
    torch.set_num_threads(args.threads)
    model = open_model(args.model)
    _, peer = build_pair(args.model)
    preprocessing = Preprocessing.from_pretrained_cfg(model.pretrained_cfg)
    images, names = read_images(args.images, preprocessing, args.most)
    step = max(1, len(images) // NUM_CALIBRATION)
    runs, left_out = build(model, peer, images[::step][:NUM_CALIBRATION].flip(-1).contiguous(), args.threads)
    with torch.inference_mode():
        answers = {
            name: torch.cat([run(part).clone() for part in images.split(8)])
            for name, run in {"network": model, **runs}.items()
        }
    labels = torch.tensor([sorted(set(names)).index(name) for name in names])
    expected = answers["network"]
    rows = {
        name: logit_error(answers[name], expected)
        | {"same_top1": int((answers[name].argmax(1) == expected.argmax(1)).sum())}
        | ({"correct": int((answers[name].argmax(1) == labels).sum())} if args.labels else {})
        for name in answers
    }
    for batch in (1, 8):
        lanes = {name: Lane(name, lambda run=run, n=batch: run(images[:n])) for name, run in runs.items()}
        with torch.inference_mode():
            take_turns(list(lanes.values()), args.rounds)
        for name, lane in lanes.items():
            rows[name][f"images_per_s_{batch}"] = batch / lane.median_s
            rows[name][f"times_eager_int8_{batch}"] = ratio(lane, lanes["eager int8"])["ratio"]
    return {"rows": rows, "left_out": left_out, "num_images": len(images)}


def table(path: Path) -> list[str]:
    """The lines of a table in docs/dev/speed.md, from a results file."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    counts = "correct" in facts["rows"]["network"]
    head = ["engine", "images/s, batch 1", "batch 8", "rms error", "largest", "same best class"]
    lines = [head + ["correct"] * counts, ["---"] * (len(head) + counts)]
    for name, row in facts["rows"].items():
        speeds = [f"{row[f'images_per_s_{batch}']:.1f}" if name != "network" else "" for batch in (1, 8)]
        errors = [f"{row[key]:.1e}" if name != "network" else "" for key in ("rms", "drift")]
        cells = [name, *speeds, *errors, f"{row['same_top1']:,} of {facts['num_images']:,}"]
        lines.append(cells + ([f"{row['correct']:,}"] if counts else []))
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--images", required=True)
    parser.add_argument("--labels", action="store_true", help="the folders are the model's classes, in their order")
    parser.add_argument("--most", type=int, default=10_000, help="images, evenly spread")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    result = measure(args)
    facts = {"model": args.model, "threads": args.threads, "rounds": args.rounds, "cpu": processor()}
    versions = {}
    for package in ("nncf", "torchao", "onnxruntime", "openvino"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    result = facts | result | {"environment": environment() | {"engines": versions}}
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
