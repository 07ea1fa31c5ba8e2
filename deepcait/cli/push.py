"""Put a model into a repository of the Hugging Face hub, with a card; deepcait and timm load it from there.

Examples:
    deepcait push runs/pets owner/pets --data "photos of pets" --licence cc-by-4.0
    deepcait push runs/pets owner/pets --private
    deepcait push runs/pets owner/pets --dry-run --out look-at-it     writes the folder and sends nothing

The token is that of `hf auth login` or HF_TOKEN; HF_ENDPOINT is honoured.
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
_DEMO_PICTURE = Path(__file__).parent.parent / "assets" / "demo" / "test" / "horse"


@dataclass(frozen=True)
class Args:
    """Options of `deepcait push`."""

    spec: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SPEC")]
    """The model: a run folder (its best model), a model folder, a weights file, a name."""
    repository: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")]
    """Where to; made if it is not there."""
    licence: str | None = None
    """The hub's identifier of the licence, such as apache-2.0; without it the model's own, else unknown."""
    data: str | None = None
    """What the model was trained on, in words for the card."""
    picture: Path | None = None
    """Image for the class-attention figure; without it one of the package."""
    private: bool = False
    """Make a new repository private."""
    dry_run: bool = False
    """Write the folder that would be pushed; needs no token and sends nothing."""
    out: Path | None = None
    """Folder of --dry-run; without it the repository's name, in the current folder."""
    json: bool = False
    """Print one JSON object and nothing else."""


def run(args: Args) -> int | None:
    """Write the folder, and push it."""
    from deepcait.weights.push import push_folder, require_repository, require_token

    console = Console(json=args.json)
    name = require_repository(args.repository)
    if args.out is not None and not args.dry_run:
        raise ConfigError("--out: expected it with --dry-run, got it alone.", remedy="Add --dry-run, or leave it out.")
    if args.dry_run:
        folder = args.out or Path(name.partition("/")[2])
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
    console.say(f"try:    deepcait predict hf-hub:{name} PICTURE")
    console.result({"repository": name, "folder": None, "files": files, "url": url})


def _write(args: Args, name: str, folder: Path, console: Console) -> None:
    """Model, card and image, as the repository shall hold them."""
    from deepcait.runtime.files import write_bytes
    from deepcait.weights import resolve
    from deepcait.weights.card import PICTURE_FILE, model_card
    from deepcait.weights.push import save_for_hub

    found = resolve(args.spec)
    picture = _draw(found, args.picture, console)
    card = model_card(name, found, licence=args.licence, data=args.data, picture=picture is not None)
    save_for_hub(folder, found)
    if picture is not None:
        picture.save(folder / PICTURE_FILE, optimize=True)
    write_bytes(folder / "README.md", card.encode())


def _list(folder: Path, console: Console) -> list[str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        console.say(f"{path.stat().st_size:>13,} bytes  {path.relative_to(folder).as_posix()}")
    return [path.relative_to(folder).as_posix() for path in files]


def _draw(found: Resolved, path: Path | None, console: Console) -> Image.Image | None:
    """What the model sees, and beside it where its class token looks; None where it sees no ordinary images."""
    import torch
    from PIL import Image

    from deepcait.data import Preprocessing, open_image
    from deepcait.model.networks import require_cait

    model = require_cait(found.model)
    if found.model.config.in_chans not in (1, 3):
        console.note(f"no class-attention image: the model sees {found.model.config.in_chans} channels")
        return None
    preprocessing = Preprocessing.from_pretrained_cfg(found.pretrained_cfg)
    image = open_image(path or min(_DEMO_PICTURE.glob("*.png")))
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
