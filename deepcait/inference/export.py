"""A model as a file for an engine, and the proof: the plain engine reads it back and is asked about real pictures."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from deepcait.data import Preprocessing, open_image, open_source
from deepcait.errors import ConfigError, WeightsError
from deepcait.inference.engines import open_onnx, open_openvino
from deepcait.inference.fold import FoldedCaiT, fold
from deepcait.inference.graph import INPUT, OUTPUT, require_packages, to_openvino, to_program, write_onnx
from deepcait.model.mode import evaluation_mode
from deepcait.optional import require
from deepcait.runtime.files import require_file

Form: TypeAlias = Literal["onnx", "openvino", "pt2"]
Runner: TypeAlias = Callable[[Tensor], Tensor]
SUFFIXES: dict[Form, str] = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}
# Largest difference of logits, in units of their spread. Engines in float32 agree within a few 1e-6; a tenth of this
# limit is what a change of one weight in a thousandth of its value makes of a small model.
MAX_DRIFT = 5e-5
BATCHES = (1, 3, 8)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What the file's own engine said about real pictures, against the model it was made from.

    Args:
        engine: the program that read the file, and its version.
        batches: numbers of images a call.
        num_images: asked about, all calls together.
        max_difference: of any logit.
        drift: the same in units of the logits' spread.
        agreed: images with the same best class (where two classes are equally good, either).
    """

    engine: str
    batches: tuple[int, ...]
    num_images: int
    max_difference: float
    drift: float
    agreed: int

    @property
    def holds(self) -> bool:
        """Whether the file computes what the model does."""
        return self.drift <= MAX_DRIFT and self.agreed == self.num_images

    def __str__(self) -> str:
        return (
            f"{self.engine}: {self.agreed} of {self.num_images} real images with the same best class, in batches of "
            f"{', '.join(map(str, self.batches))}; logits differ by at most {self.max_difference:.1e}, "
            f"{self.drift:.1e} of their spread"
        )


def export_file(
    model: nn.Module, form: Form, out: Path, images_BCHW: Tensor, about: dict[str, Any]
) -> tuple[Proof, list[Path]]:
    """Write a model for an engine, and what a program must know of it as JSON beside it, if the proof holds.

    The files appear at their place when they have been read back and hold; what lay there before stays otherwise.

    Args:
        model: a CaiT.
        form: what to write.
        out: the file, .onnx, .xml (OpenVINO; its .bin lies beside) or .pt2; the JSON is `pets.onnx.json`, so that
            other forms of other models may lie beside.
        images_BCHW: real images, preprocessed, at least 8.
        about: goes into the JSON: preprocessing, classes and the like.

    Returns:
        The proof, and the files written (none where it does not hold).

    Raises:
        ConfigError: another suffix, no folder to write in, a missing package, another network than a CaiT.
        WeightsError: the place can't be written to.
    """
    require_out(form, out)
    require_packages(form)
    folded = fold(model)
    aside = out.parent / f".{out.name}.{secrets.token_hex(4)}.new"
    try:
        aside.mkdir()
        write_graph(folded, form, aside / out.name)
        proof = prove(model, form, aside / out.name, images_BCHW)
        if not proof.holds:
            return proof, []
        text = json.dumps(describe(folded, form, out, proof) | about, indent=2) + "\n"
        (aside / f"{out.name}.json").write_text(text, encoding="utf-8")
        # The graph itself comes last: whoever finds it finds the rest.
        files = sorted(aside.iterdir(), key=lambda path: (path.name == out.name, path.name))
        return proof, [path.replace(out.parent / path.name) for path in files]
    except OSError as error:
        raise WeightsError(
            f"{out}: expected to write here, got {error.strerror or error}.",
            remedy="Give a place with room that can be written to; what was there before is untouched.",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sample_images(preprocessing: Preprocessing, count: int = max(BATCHES)) -> Tensor:
    """Real photographs that travel in the package, preprocessed: (count, C, H, W)."""
    source = open_source("builtin:demo", "test")
    indices = range(0, len(source), len(source) // count)[:count]
    return torch.stack([preprocessing(open_image(source.read(index).data)) for index in indices])


def write_graph(model: FoldedCaiT, form: Form, path: Path) -> None:
    """Write the graph alone."""
    if form == "onnx":
        write_onnx(model, path)
    elif form == "openvino":
        openvino = require("openvino", asked="openvino", extra="openvino")
        # The default would store weights as 16 bits.
        openvino.save_model(to_openvino(model), str(path), compress_to_fp16=False)
    else:
        torch.export.save(to_program(model), path)


def open_graph(form: Form, path: Path) -> tuple[Runner, str]:
    """Open a file in the engine it is for; nothing of the model it was made from is used.

    Returns:
        What runs it, and the engine's name with its version.
    """
    if form == "onnx":
        session = open_onnx(path, None)
        version = require("onnxruntime", asked="onnx", extra="export").__version__
        return lambda images: torch.from_numpy(
            session.run([OUTPUT], {INPUT: images.numpy()})[0]
        ), f"ONNX Runtime {version}"
    if form == "openvino":
        openvino = require("openvino", asked="openvino", extra="openvino")
        compiled = open_openvino(str(path), None)
        version = openvino.__version__.partition("-")[0]
        return lambda images: torch.from_numpy(compiled({INPUT: images.numpy()})[OUTPUT]), f"OpenVINO {version}"
    return torch.export.load(path).module(), f"torch.export {torch.__version__}"


def prove(model: nn.Module, form: Form, path: Path, images_BCHW: Tensor, *, batches: Sequence[int] = BATCHES) -> Proof:
    """Ask a file and the model it was made from about the same images.

    Args:
        model: the model, not folded: what the fold did is under test too. It is asked in evaluation mode, and left
            in the mode it had.
        form: what the file is.
        path: the file.
        images_BCHW: preprocessed; as many as the largest batch.
        batches: numbers of images a call.

    Raises:
        ConfigError: fewer images than the largest batch.
    """
    if len(images_BCHW) < max(batches):
        raise ConfigError(
            f"images: expected {max(batches)} or more, got {len(images_BCHW)}.", remedy="Give real pictures."
        )
    ask, engine = open_graph(form, path)
    images_BCHW = images_BCHW.cpu().float().contiguous()
    parts = [images_BCHW[:count] for count in batches]
    with evaluation_mode(model):
        expected = torch.cat([model(part.to(_device(model))).cpu() for part in parts]).double()
        got = torch.cat([ask(part.contiguous()) for part in parts]).double()
    if not got.isfinite().all() or got.shape != expected.shape:
        worst = drift = float(torch.finfo(torch.float32).max)
        agreed = 0
    else:
        worst = (got - expected).abs().max().item()
        spread = expected.std().item()
        drift = worst / spread if spread else (0.0 if worst == 0 else float(torch.finfo(torch.float32).max))
        chosen = expected.gather(1, got.argmax(1, keepdim=True))[:, 0]
        agreed = int((chosen >= expected.amax(1) - MAX_DRIFT * spread).sum())
    return Proof(
        engine=engine,
        batches=tuple(batches),
        num_images=len(expected),
        max_difference=worst,
        drift=drift,
        agreed=agreed,
    )


def describe(model: FoldedCaiT, form: Form, out: Path, proof: Proof) -> dict[str, Any]:
    """What a program must know to use the file."""
    return {
        "file": out.name,
        "form": form,
        "input": {"name": INPUT, "shape": ["batch", model.config.in_chans, *model.config.img_size], "dtype": "float32"},
        "output": {"name": OUTPUT, "shape": ["batch", model.num_classes or model.num_features], "dtype": "float32"},
        "proof": asdict(proof),
    }


def require_out(form: Form, out: Path) -> None:
    """Tell of a wrong place before any work is done.

    Raises:
        ConfigError: another suffix than the form's, a folder, or no folder to write in.
    """
    if out.suffix != SUFFIXES[form]:
        raise ConfigError(
            f"--out: expected a file {SUFFIXES[form]} for {form}, got {out}.",
            remedy=f"Give {out.with_suffix(SUFFIXES[form])}." if out.name else "Give a file.",
        )
    require_file(out, (), "--out")


def _device(model: nn.Module) -> torch.device:
    return cast("torch.device", next((tensor.device for tensor in model.parameters()), torch.device("cpu")))
