"""Show where a model looked: class attention of every head, rollout, gradients, checks, scores; PNG, HTML and .npz.

Examples:
    deepcait explain runs/pets cat.jpg --out looks              maps, a page (looks/index.html), and the numbers
    deepcait explain runs/pets photos/ --out looks --class dog  why, or why not, a dog
    deepcait explain runs/pets cat.jpg --out looks --method all  Integrated Gradients and occlusion too
    deepcait explain runs/pets photos/ --out looks --figures    what each layer of the model does
    deepcait explain cait_s24_384 tall.jpg --out looks --img-size 512x256
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from deepcait.cli.console import Console
from deepcait.cli.images import ImageArgs, image_options
from deepcait.errors import ConfigError

if TYPE_CHECKING:
    from deepcait.classifier import Classifier
    from deepcait.explain.gallery import Entry, Plate

_SHOWN_ANSWERS = 5


@dataclass(frozen=True)
class Args(ImageArgs):
    """Options of `deepcait explain`."""

    spec: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SPEC")]
    """The model: a name, hf-hub:owner/name, a model or run folder, a weights file."""
    images: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE ...", help_behavior_hint="(required)")
    ]
    """Pictures, or folders with pictures below them."""
    out: Path
    """Folder for page (index.html), PNGs and numbers: new, empty, or that of an earlier page, which goes."""
    method: str = "class-attention,rollout,gradient"
    """Maps with commas between: class-attention, rollout, gradient, integrated-gradients, occlusion; or all."""
    class_: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Name or index of the class asked about; without it the most probable of each picture."""
    steps: int = 16
    """Steps of deletion and insertion, which score the maps; 0 leaves the scores out."""
    figures: bool = False
    """Also the layers: strength of the branches, LayerScale, head mixing, attention; and accuracy against cost."""
    table: str | None = None
    """Results for accuracy against cost: .csv or .json with name, gmacs, params, top1; else the published ones."""
    img_size: str | None = None
    """Another size of the model's input in pixels, HEIGHTxWIDTH or one number; positions are resized."""
    device: str = "auto"
    """Where the model computes: auto, cpu, cuda, cuda:1."""
    json: bool = False
    """Print one JSON object and nothing else."""


def run(args: Args) -> int | None:
    """Explain every picture, and write what came of it."""
    from deepcait.classifier import load
    from deepcait.data import list_images, open_image
    from deepcait.explain.explanation import require_methods
    from deepcait.runtime.device import choose_device

    if not args.images:
        raise ConfigError("explain: expected a picture, got none.", remedy="deepcait explain SPEC picture.jpg --out F")
    require_methods(_methods(args))
    if args.steps < 0:
        raise ConfigError(f"--steps: expected 0 or more, got {args.steps}.", remedy="Give 16, or 0 for no scores.")
    _require_place(args.out)
    if args.table is not None and not args.figures:
        raise ConfigError("--table: expected --figures beside it, got none.", remedy="Give --figures too.")
    # What is missing or wrong is told before any work is done.
    if args.figures:
        _results(args)
    console = Console(json=args.json)
    paths = [path for place in args.images for path in list_images(place)]
    for path in paths:
        open_image(path, options=image_options(args))
    classifier = load(args.spec, img_size=_img_size(args.img_size), device=choose_device(args.device, 0))
    classifier.image_options = image_options(args, classifier.image_options)
    if args.class_ is not None:
        classifier.index(args.class_)
    facts = write_gallery(classifier, paths, args, console)
    for about in facts:
        console.say(
            f"{about['file']}: {about['class']['label']} {about['class']['probability']:.1%}  {about['folder']}"
        )
    console.say(f"page: {args.out / 'index.html'}")
    figures = len(list((args.out / "figures").glob("*.png"))) if args.figures else 0
    console.result({"page": str(args.out / "index.html"), "images": facts, "figures": figures})


def _require_place(out: Path) -> None:
    """Raise unless pictures may go into this folder: beside the classes of a data set they would be taken for one."""
    from deepcait.explain.markup import is_page

    if out.is_file():
        raise ConfigError(f"--out: expected a folder, got the file {out}.", remedy="Give another folder.")
    others = [path.name for path in sorted(out.iterdir()) if not _is_ours(path)] if out.is_dir() else []
    if others and not is_page(out / "index.html"):
        raise ConfigError(
            f"--out: expected a new or empty folder or that of an earlier page, got {out}, which holds {others[0]}.",
            remedy="Give another folder.",
        )


def _is_ours(folder: Path) -> bool:
    """Whether it may be left of a call that was interrupted before there was a page."""
    if not folder.is_dir() or not re.match(r"\d{3,}_|figures$", folder.name):
        return False
    return all(path.name in _file_names() or folder.name == "figures" for path in folder.iterdir())


def _file_names() -> set[str]:
    """Names of all files of a picture."""
    from deepcait.explain import METHODS

    return {"heads.png", "maps.npz"} | {f"{method.replace('-', '_')}.png" for method in METHODS}


def write_gallery(classifier: Classifier, paths: Sequence[Path], args: Args, console: Console) -> list[dict[str, Any]]:
    """Explain pictures into `args.out`: PNGs, numbers, and the page index.html; return the facts of each picture."""
    from deepcait.explain.gallery import gallery
    from deepcait.runtime.files import write_bytes

    entries, facts = [], []
    with console.progress("explaining") as progress:
        for number, path in enumerate(paths):
            entry, about = _explain(classifier, path, number, args)
            entries.append(entry)
            facts.append(about)
            progress(number + 1, len(paths))
    plates = _figures(classifier, paths, _results(args), args, console) if args.figures else []
    page = gallery(args.spec, _sentence(classifier), entries, plates)
    write_bytes(args.out / "index.html", page.encode())
    _remove_earlier(args.out, facts, figures=args.figures)
    return facts


def _remove_earlier(out: Path, facts: Sequence[dict[str, Any]], *, figures: bool) -> None:
    """Take away what an earlier call wrote into `out` and the page does not show any more.

    Only files by our names, and folders that are empty then: whatever else lies there stays.

    Args:
        facts: of the pictures on the page, as `write_gallery` returns them.
        figures: the page shows figures of the model.
    """
    kept = {Path(about["folder"]) / name for about in facts for name in about["files"]}
    for folder in out.iterdir():
        if re.match(r"\d{3,}_", folder.name) and not folder.is_symlink() and (folder / "maps.npz").is_file():
            _remove(folder, {folder / name for name in _file_names()} - kept)
    numbers = out / "figures" / "figures.json"
    if not figures and numbers.is_file():
        with suppress(OSError, ValueError, KeyError, TypeError):  # not of our making
            titles = json.loads(numbers.read_text(encoding="utf-8"))["captions"]
            drawn = {numbers.parent / Path(_figure_file(title)).name for title in titles}
            _remove(numbers.parent, drawn | {numbers})


def _figure_file(title: str) -> str:
    return f"{title.lower().replace(' ', '_')}.png"


def _remove(folder: Path, files: set[Path]) -> None:
    with suppress(OSError):  # not empty, or not ours to change
        for path in files:
            path.unlink(missing_ok=True)
        folder.rmdir()


def _methods(args: Args) -> tuple[str, ...]:
    from deepcait.explain import METHODS

    return METHODS if args.method == "all" else tuple(method.strip() for method in args.method.split(","))


def _explain(classifier: Classifier, path: Path, number: int, args: Args) -> tuple[Entry, dict[str, Any]]:
    from deepcait.explain.gallery import Entry

    found = classifier.explain(path, target=args.class_, methods=_methods(args), steps=args.steps)
    (answers,) = classifier.predict(path, topk=_SHOWN_ANSWERS)
    # Numbered: two folders may hold pictures of one name.
    folder = args.out / f"{number:03d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', path.stem)[:80]}"
    files = found.save(folder)
    entry = Entry(
        name=path.name,
        folder=folder.name,
        explanation=found,
        predictions=[tuple(answer) for answer in answers],
    )
    about = {
        "file": str(path),
        "folder": str(folder),
        "class": {"index": found.target, "label": found.label, "probability": found.probability},
        "predictions": [answer._asdict() for answer in answers],
        "files": [file.name for file in files],
        "maps": {
            made.method: {
                "caption": made.caption,
                "faithfulness": None if made.faithfulness is None else made.faithfulness.to_dict(),
            }
            for made in found.maps.values()
        },
    }
    return entry, about


def _results(args: Args) -> list[dict[str, Any]]:
    """The table for accuracy against cost, where the figures can be drawn at all."""
    from deepcait.explain.figures import read_results
    from deepcait.optional import require

    require("matplotlib", asked="--figures", extra="explain")
    return read_results(args.table)


def _figures(
    classifier: Classifier, paths: Sequence[Path], results: list[dict[str, Any]], args: Args, console: Console
) -> list[Plate]:
    """The figures of the model over the pictures, also as PNG and JSON."""
    from deepcait.explain.figures import accuracy_plate, layer_plates
    from deepcait.explain.layers import measure_layers
    from deepcait.explain.picture import to_bytes
    from deepcait.runtime.files import write_bytes

    pictures = (classifier.preprocessing(classifier.open(path)).to(classifier.device) for path in paths)
    measures = measure_layers(classifier.model, pictures)
    plates = [*layer_plates(measures), accuracy_plate(results, published=args.table is None)]
    folder = args.out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for plate in plates:
        write_bytes(folder / _figure_file(plate.title), to_bytes(plate.image))
    captions = {plate.title: plate.caption for plate in plates}
    numbers = {"captions": captions, "layers": measures.to_dict(), "accuracy": results}
    write_bytes(folder / "figures.json", (json.dumps(numbers, indent=1) + "\n").encode())
    console.say(f"figures: {folder}")
    return plates


def _sentence(classifier: Classifier) -> str:
    config = classifier.model.config
    rows, columns = config.grid
    return (
        f"{config.depth} patch blocks and {config.cls_depth} class blocks, {config.num_heads} heads, "
        f"{rows} x {columns} patches of {config.patch_size} px, {config.num_params():,} parameters, "
        f"{config.num_classes:,} classes."
    )


def _img_size(text: str | None) -> int | tuple[int, int] | None:
    if text is None:
        return None
    sides = text.lower().split("x")
    if not (1 <= len(sides) <= 2 and all(side.isdecimal() and int(side) > 0 for side in sides)):
        raise ConfigError(
            f"--img-size: expected a side or HEIGHTxWIDTH in pixels, got {text!r}.", remedy="For example 512x256."
        )
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))
