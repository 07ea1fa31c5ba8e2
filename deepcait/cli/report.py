"""Write the report of a run, or a comparison of two runs, as a self-contained HTML page.

Examples:
    deepcait report runs/pets                        writes runs/pets/report.html
    deepcait report runs/pets --out pets.html
    deepcait report runs/a runs/b                    writes comparison.html: curves, results, settings that differ
    deepcait report runs/pets --data moved/photos    if the images have moved
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from deepcait.cli.console import Console
from deepcait.errors import ConfigError


@dataclass(frozen=True)
class Args:
    """Options of `deepcait report`."""

    runs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN]", help_behavior_hint="(required)")
    ]
    """One run folder, or two to compare."""
    out: Path | None = None
    """File to write (default: report.html in the run, or comparison.html in the current folder)."""
    data: str | None = None
    """DATA in place of the run's own, if the images have moved."""
    images: int = 10_000
    """Largest number of validation images to evaluate; if there are more, evenly spaced ones are used."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1."""
    json: bool = False
    """Print one JSON object and nothing else."""


def run(args: Args) -> int | None:
    """Write the page."""
    from deepcait.report import write_comparison, write_report
    from deepcait.report.compare import FILE_NAME
    from deepcait.runtime.device import choose_device
    from deepcait.runtime.files import require_file

    if not 1 <= len(args.runs) <= 2:
        raise ConfigError(f"report: expected one or two runs, got {len(args.runs)}.", remedy="Use deepcait report RUN.")
    if args.images < 1:
        raise ConfigError(f"--images: expected 1 or more, got {args.images}.", remedy="Omit it for 10,000.")
    if args.out is not None:
        require_file(args.out, (), "--out")
    console = Console(json=args.json)
    device = choose_device(args.device, 0)
    with console.progress("evaluating the best model") as progress:
        options = {"data": args.data, "max_images": args.images, "device": device, "progress": progress}
        if len(args.runs) == 1:
            path = write_report(args.runs[0], args.out, **options)
        else:
            path = write_comparison(args.runs[0], args.runs[1], args.out or Path(FILE_NAME), **options)
    console.say(f"report: {path}")
    console.result({"report": str(path), "runs": [str(folder) for folder in args.runs]})
