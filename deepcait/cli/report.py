"""Write the report of a run, or a comparison of several runs, as a self-contained HTML page.

Examples:
    deepcait report runs/pets                        writes runs/pets/report.html
    deepcait report runs/pets --out pets.html
    deepcait report runs/a runs/b                    writes comparison.html: curves, results, settings that differ
    deepcait report runs/fold0 runs/fold1 runs/fold2 --json    numbers of each run, mean and standard deviation
    deepcait report runs/pets --data moved/photos    if the images have moved
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from deepcait.cli.console import Console
from deepcait.errors import ConfigError, RunError

if TYPE_CHECKING:
    from deepcait.report.several import Several


@dataclass(frozen=True)
class Args:
    """Options of `deepcait report`."""

    runs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)")
    ]
    """One run folder, or several to compare."""
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
    from deepcait.report import compare_runs, write_comparison, write_report, write_several
    from deepcait.report.compare import FILE_NAME
    from deepcait.runtime.device import choose_device
    from deepcait.runtime.files import require_file

    if not args.runs:
        raise ConfigError("report: no run was given.", remedy="Use deepcait report RUN.")
    if args.images < 1:
        raise ConfigError(f"--images: expected 1 or more, got {args.images}.", remedy="Omit it for 10,000.")
    if args.out is not None:
        require_file(args.out, (), "--out")
    console = Console(json=args.json)
    device = choose_device(args.device)
    several: Several | None = None
    reason = ""
    with console.progress("evaluating the best model") as progress:
        options = {"data": args.data, "max_images": args.images, "device": device, "progress": progress}
        out = args.out or Path(FILE_NAME)
        if len(args.runs) == 1:
            path = write_report(args.runs[0], args.out, **options)
        else:
            try:
                several = compare_runs(args.runs, **options)
            except RunError as error:  # two runs can be compared all the same
                if len(args.runs) > 2:
                    raise
                reason = error.problem
            path = (
                write_several(several, out)
                if several and len(args.runs) > 2
                else write_comparison(*args.runs, out=out, **options)
            )
    if reason:
        console.say(reason)
    if several is not None:
        table = several.table()
        console.table(table.columns, table.rows)
        for note in several.notes:
            console.say(note)
    console.say(f"report: {path}")
    facts = {"report": str(path), "runs": [str(folder) for folder in args.runs]}
    console.result(facts | (several.to_dict() if several is not None else {}))
