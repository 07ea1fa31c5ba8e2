"""Explain predictions by attention maps: class attention of every head, rollout, gradients; PNG, HTML and .npz.

Examples:
    deepcait explain runs/pets cat.jpg --out maps                maps, a page (maps/index.html), and arrays
    deepcait explain runs/pets photos/ --out maps --class dog    the target class is dog
    deepcait explain runs/pets cat.jpg --out maps --method all   also Integrated Gradients and occlusion
    deepcait explain runs/pets photos/ --out maps --steps 16     also faithfulness scores of the maps
    deepcait explain runs/pets photos/ --out maps --figures      also plots of the model's layers
    deepcait explain cait_s24_384 tall.jpg --out maps --img-size 512x256
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from deepcait.cli.console import Console
from deepcait.cli.images import ImageArgs, image_options
from deepcait.cli.options import image_size
from deepcait.errors import ConfigError


@dataclass(frozen=True)
class Args(ImageArgs):
    """Options of `deepcait explain`."""

    spec: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """The model: a name, hf-hub:owner/name, a model or run folder, a weights file."""
    images: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE ...", help_behavior_hint="(required)")
    ]
    """Image files, or folders of images."""
    out: Path
    """Output folder; must be new, empty, or that of an earlier `explain`, which is overwritten."""
    method: str = "class-attention,rollout,gradient"
    """Maps, separated by commas: class-attention, rollout, gradient, integrated-gradients, occlusion; or all."""
    class_: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Name or index of the target class (default: the most probable of each image)."""
    steps: int = 0
    """Number of deletion and insertion steps to score each map, such as 16; 0 means no scores."""
    figures: bool = False
    """Also plot the layers (branches, LayerScale, head mixing, attention) and accuracy against cost."""
    table: str | None = None
    """Results for accuracy against cost: .csv or .json with name, gmacs, params, top1 (default: published ones)."""
    img_size: str | None = None
    """Another input size in pixels, HEIGHTxWIDTH or one number; position embeddings are resized."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1."""
    json: bool = False
    """Print one JSON object and nothing else."""


def run(args: Args) -> int | None:
    """Explain every image, and write the page."""
    from deepcait.classifier import load
    from deepcait.data import list_images
    from deepcait.explain.folder import FIGURES_FOLDER, PAGE_FILE, require_place
    from deepcait.explain.writer import write_gallery
    from deepcait.runtime.claim import hold
    from deepcait.runtime.device import choose_device

    img_size = None if args.img_size is None else image_size(args.img_size, "--img-size")
    methods = _require_sound(args)
    require_place(args.out)
    results = _results(args)
    console = Console(json=args.json)
    paths = [path for place in args.images for path in list_images(place)]
    classifier = load(args.spec, img_size=img_size, device=choose_device(args.device))
    classifier.image_options = image_options(args, classifier.image_options)
    target = None if args.class_ is None else classifier.index(args.class_)
    what = {"name": args.spec, "target": target, "methods": methods, "steps": args.steps}
    with hold(args.out), console.progress("explaining") as progress:
        facts = write_gallery(
            classifier, paths, args.out, **what, results=results, published=args.table is None, progress=progress
        )
    figures = args.out / FIGURES_FOLDER
    if args.figures:
        console.say(f"plots: {figures}")
    for about in facts:
        console.say(
            f"{about['file']}: {about['class']['label']} {100 * about['class']['probability']:.1f} %  {about['folder']}"
        )
    page = str(args.out / PAGE_FILE)
    console.say(f"page: {page}")
    num_figures = len(list(figures.glob("*.png"))) if args.figures else 0
    console.result({"page": page, "images": facts, "figures": num_figures})


def _require_sound(args: Args) -> tuple[str, ...]:
    """Check the options before anything is read; return the methods."""
    from deepcait.explain.explanation import METHODS, require_methods

    if not args.images:
        raise ConfigError("explain: no image was given.", remedy="Use deepcait explain MODEL image.jpg --out FOLDER.")
    methods = METHODS if args.method == "all" else tuple(method.strip() for method in args.method.split(","))
    require_methods(methods)
    if args.steps < 0:
        raise ConfigError(f"--steps: expected 0 or more, got {args.steps}.", remedy="Use 16, or 0 for no scores.")
    if args.table is not None and not args.figures:
        raise ConfigError("--table is only used with --figures.", remedy="Add --figures, or omit --table.")
    return methods


def _results(args: Args) -> list[dict[str, Any]] | None:
    """The table for accuracy against cost; None without --figures."""
    from deepcait.explain.figures import read_results
    from deepcait.optional import require

    if not args.figures:
        return None
    require("matplotlib", asked="--figures", extra="explain")
    return read_results(args.table)
