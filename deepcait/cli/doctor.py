"""Check a data set before training: read every image once and report problems. Changes nothing.

Examples:
    deepcait doctor --data photos                           problems, with up to five paths per kind
    deepcait doctor --data photos --strict                  exit code 3 if there are errors
    deepcait doctor --data photos --fix-list leave_out.txt  then: deepcait train ... --set data.exclude=leave_out.txt
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepcait.cli.console import Console
from deepcait.cli.exits import Refused
from deepcait.cli.images import ImageArgs, image_options
from deepcait.cli.tables import TableArgs, table_columns
from deepcait.errors import ConfigError

if TYPE_CHECKING:
    from deepcait.data.findings import Diagnosis

_NUM_SHOWN = 5


@dataclass(frozen=True)
class Args(TableArgs, ImageArgs):
    """Options of `deepcait doctor`."""

    data: str
    """Images: a folder of class folders (optionally below train, val, test), or another DATA."""
    strict: bool = False
    """Exit with code 3 if there are errors."""
    group: str = ""
    """Column of the data, such as patient, whose values must not be in two splits or folds (default: a column with such
    a name)."""
    fix_list: Path | None = None
    """Write the paths to exclude from training to this file, one per line; nothing is deleted."""
    workers: int | None = None
    """Worker processes that read images (default: one per core; none for a few images)."""
    json: bool = False
    """Print one JSON object, with every path, and nothing else."""


def run(args: Args) -> int | None:
    """Examine the data, and print the findings."""
    from deepcait.data.doctor import examine
    from deepcait.data.fix_list import write_fix_list
    from deepcait.runtime.files import require_file

    if args.workers is not None and args.workers < 0:
        raise ConfigError(
            f"--workers: expected 0 or more, got {args.workers}.", remedy="Use --workers 0 for none, or 2."
        )
    if args.fix_list is not None:
        require_file(args.fix_list, (), "--fix-list")
    console = Console(json=args.json)
    with console.progress("examining") as progress:
        diagnosis = examine(
            args.data,
            num_workers=args.workers,
            options=image_options(args),
            columns=table_columns(args),
            group=args.group,
            progress=progress,
        )
    _print(console, diagnosis)
    if args.fix_list is not None:
        write_fix_list(args.fix_list, diagnosis.leave_out, diagnosis.reasons)
        console.say(f"fix list   {args.fix_list}: {len(diagnosis.leave_out):,} paths")
    console.result({"data": args.data, **diagnosis.to_dict()})
    num_errors = diagnosis.count("error")
    if args.strict and num_errors:
        raise Refused(f"{args.data}: {num_errors:,} error{'' if num_errors == 1 else 's'}")


def _print(console: Console, diagnosis: Diagnosis) -> None:
    """Each kind with a few of its findings; --json has them all."""
    from deepcait.data.findings import KINDS, SEVERITIES

    images = ", ".join(f"{split} {num:,}" for split, num in diagnosis.num_images.items())
    console.say(f"data       {diagnosis.kind}: {images} images, {len(diagnosis.classes):,} classes")
    for kind, (severity, meaning) in KINDS.items():
        lines = [
            f"{path}: {finding.text}" if len(finding.paths) == 1 else path
            for finding in diagnosis.findings
            if finding.kind == kind
            for path in ([] if len(finding.paths) == 1 else [finding.text]) + list(finding.paths)
        ]
        if lines:
            console.say(f"{severity.ljust(10)} {meaning} ({kind})")
            for line in lines[: _NUM_SHOWN + 1]:
                console.say(f"             {line}")
            if len(lines) > _NUM_SHOWN + 1:
                console.say(f"             and {len(lines) - _NUM_SHOWN - 1:,} more; --json has them all")
    counts = {severity: diagnosis.count(severity) for severity in SEVERITIES}
    texts = [f"{num:,} {severity}{'' if num == 1 else 's'}" for severity, num in counts.items()]
    console.say(f"summary    {', '.join(texts)}")
