"""Put a model into a repository of the Hugging Face hub, with a card; deepcait and timm load it from there.

Examples:
    deepcait push runs/pets owner/pets --data "photos of pets" --license cc-by-4.0
    deepcait push runs/pets owner/pets --private
    deepcait push runs/pets owner/pets --dry-run --out pets-card      writes the folder and sends nothing

The token comes from `hf auth login` or HF_TOKEN; HF_ENDPOINT is supported.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from deepcait.cli.console import Console
from deepcait.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

    from deepcait.weights import Resolved

_SIDE_PX = 224


@dataclass(frozen=True)
class Args:
    """Options of `deepcait push`."""

    spec: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """The model: a run folder (its best model), a model folder, a weights file, a name."""
    repository: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")]
    """Repository on the hub; created if it does not exist."""
    license: Annotated[str | None, tyro.conf.arg(aliases=("--licence",))] = None
    """License identifier of the hub, such as apache-2.0 (default: the model's own)."""
    data: str | None = None
    """Description of the training data for the card."""
    image: Annotated[Path | None, tyro.conf.arg(aliases=("--picture",))] = None
    """Image for the class-attention example on the card (default: one of CIFAR-10 if the model has its classes)."""
    private: bool = False
    """Create a new repository as private."""
    dry_run: bool = False
    """Write the folder that would be pushed; needs no token and sends nothing."""
    out: Path | None = None
    """Folder for --dry-run (default: the repository's name, in the current folder)."""
    json: bool = False
    """Print one JSON object and nothing else."""


def run(args: Args) -> int | None:
    """Write the folder, and push it."""
    from deepcait.runtime.files import require_folder
    from deepcait.weights.push import push_folder, require_repository, require_token

    console = Console(json=args.json)
    name = require_repository(args.repository)
    if args.out is not None and not args.dry_run:
        raise ConfigError("--out is only used with --dry-run.", remedy="Add --dry-run, or omit --out.")
    if args.dry_run:
        folder = args.out or Path(name.partition("/")[2])
        require_folder(folder, "--out")
        _write(args, name, folder, console)
        files = _list(folder, console)
        console.say(f"dry run: nothing was sent; {folder} holds what would be pushed to {name}")
        console.result({"repository": name, "folder": str(folder), "files": files, "url": None})
        return
    require_token()  # before the work
    with tempfile.TemporaryDirectory(prefix="deepcait-push-") as temporary:
        folder = Path(temporary) / "model"
        _write(args, name, folder, console)
        files = _list(folder, console)
        url = push_folder(folder, name, private=args.private, message=f"deepcait push {Path(args.spec).name}")
    console.say(f"pushed: {url}")
    console.say(f"try:    deepcait predict hf-hub:{name} IMAGE")
    console.result({"repository": name, "folder": None, "files": files, "url": url})


def _write(args: Args, name: str, folder: Path, console: Console) -> None:
    """Write the content of the repository: model, card and image."""
    from deepcait.runtime.files import write_bytes
    from deepcait.weights import resolve
    from deepcait.weights.card import IMAGE_FILE, model_card
    from deepcait.weights.push import save_for_hub

    found = resolve(args.spec)
    image = _draw(found, args.image, console)
    card = model_card(name, found, licence=args.license, data=args.data, image=image is not None)
    save_for_hub(folder, found)
    if image is not None:
        image.save(folder / IMAGE_FILE, optimize=True)
    write_bytes(folder / "README.md", card.encode())


def _list(folder: Path, console: Console) -> list[str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        console.say(f"{path.stat().st_size:>13,} bytes  {path.relative_to(folder).as_posix()}")
    return [path.relative_to(folder).as_posix() for path in files]


def _draw(found: Resolved, path: Path | None, console: Console) -> Image.Image | None:
    """The model's input and its class attention side by side; None without an image of its kind."""
    import torch
    from PIL import Image

    from deepcait.data import Preprocessing, open_image
    from deepcait.data.samples import sample_images
    from deepcait.model.networks import require_cait

    model = require_cait(found.model)
    if found.model.config.in_chans not in (1, 3):
        console.note(f"no class-attention image: the model's inputs have {found.model.config.in_chans} channels")
        return None
    path = path or sample_images(found.classes).get("horse")
    if path is None:
        console.note("no class-attention image on the card: give an image with --image")
        return None
    preprocessing = Preprocessing.from_pretrained_cfg(found.pretrained_cfg)
    image = open_image(path)
    with torch.no_grad():
        weights_T = model.class_attention(preprocessing(image)[None])[0, -1].mean(0)
    map_RC = weights_T[1:].reshape(model.config.grid)
    map_RC = 0.15 + 0.85 * map_RC / map_RC.max().clamp(min=1e-12)
    seen = preprocessing.frame(image).convert("RGB")
    height = _SIDE_PX
    width = round(height * seen.width / seen.height)
    seen = seen.resize((width, height), Image.Resampling.BICUBIC)
    light = Image.fromarray((map_RC * 255).round().byte().numpy()).resize((width, height), Image.Resampling.BILINEAR)
    figure = Image.new("RGB", (2 * width + 8, height), "white")
    figure.paste(seen, (0, 0))
    figure.paste(Image.composite(seen, Image.new("RGB", seen.size), light), (width + 8, 0))
    return figure
