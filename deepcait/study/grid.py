"""A study's definition: a YAML file with rows, columns, settings and the paper's results."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from deepcait.errors import ConfigError

GRIDS = Path(__file__).parent / "grids"


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row or a column of a study's table.

    Args:
        id: its name in commands and folders. title: its name in tables.
        set: recipe settings, as `key=value`.
        follows: id of the row whose trained model this one starts from, same column and seed.
        epochs: epochs of this row, as a multiple of the study's.
        teacher: whether it is distilled from the teacher.
        paper: the paper's top-1 in percent: a number, or numbers by column id.
    """

    id: str
    title: str = ""
    set: tuple[str, ...] = ()
    follows: str = ""
    epochs: float = 1.0
    teacher: bool = False
    paper: float | dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A study.

    Args:
        name, title: of the study. question: what it investigates.
        recipe: the recipe of every cell. set: settings of every cell.
        rows, columns: each a `Line`; a study without columns has one, "top1".
        across: what the rows are, for the table's corner.
        reference: id of the column (or of the row, if there is one column) that the others are compared with.
        paper: the source of the paper's results, and how reliable it is.
    """

    name: str
    title: str
    question: str
    recipe: str
    across: str
    reference: str
    paper: str
    rows: tuple[Line, ...]
    columns: tuple[Line, ...] = (Line(id="top1", title="top-1"),)
    set: tuple[str, ...] = field(default=())

    @property
    def needs_teacher(self) -> bool:
        """Whether any cell is distilled from a teacher."""
        return any(line.teacher for line in (*self.rows, *self.columns))

    def only(self, names: Sequence[str]) -> Grid:
        """Return the study with these rows and columns and the reference; without names of a kind, all of it.

        Raises:
            ConfigError: a name is neither a row nor a column.
        """
        known = [line.id for line in (*self.rows, *self.columns)]
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"Did you mean {near[0]}?" if near else f"The names are {', '.join(known)}."
                raise ConfigError(f"--only: expected rows or columns of {self.name}, got {name!r}.", remedy=hint)
        wanted = {*names, self.reference, *(line.follows for line in self.rows if line.id in names)}

        def kept(lines: tuple[Line, ...]) -> tuple[Line, ...]:
            return tuple(line for line in lines if line.id in wanted) if {x.id for x in lines} & set(names) else lines

        return dataclasses.replace(self, rows=kept(self.rows), columns=kept(self.columns))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a study."""

    row: Line
    column: Line
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.row.id}--{self.column.id}--seed{self.seed}"

    @property
    def start(self) -> str | None:
        """The folder name of the cell that it starts from."""
        return f"{self.row.follows}--{self.column.id}--seed{self.seed}" if self.row.follows else None

    @property
    def settings(self) -> tuple[str, ...]:
        """Settings in addition to the study's."""
        return (*self.row.set, *self.column.set)

    @property
    def teacher(self) -> bool:
        """Whether it is distilled from the teacher."""
        return self.row.teacher or self.column.teacher


def cells_of(grid: Grid, seeds: int) -> list[Cell]:
    """Return every cell, seed after seed, so that a study that is stopped early has complete tables."""
    return [Cell(row=r, column=c, seed=seed) for seed in range(seeds) for r in grid.rows for c in grid.columns]


def grid_names() -> list[str]:
    """Return the names of the studies in the package."""
    return sorted(path.stem for path in GRIDS.glob("*.yaml"))


def load_grid(name: str) -> Grid:
    """Return a study by name.

    Raises:
        ConfigError: there is no such study, or its file is not valid.
    """
    if name not in grid_names():
        near = difflib.get_close_matches(name, grid_names(), n=1)
        hint = f"Did you mean {near[0]}?" if near else f"The studies are {', '.join(grid_names())}."
        raise ConfigError(f"There is no study {name!r}.", remedy=hint)
    return parse_grid(name, (GRIDS / f"{name}.yaml").read_text(encoding="utf-8"))


def parse_grid(name: str, text: str) -> Grid:
    """Read a study from YAML.

    Raises:
        ConfigError: a key is unknown or missing, an id is used twice, or `follows` names no row.
    """
    content: dict[str, Any] = yaml.safe_load(text)
    try:
        kinds = [kind for kind in ("rows", "columns") if kind in content]
        lines = {kind: tuple(_line(entry) for entry in content.pop(kind)) for kind in kinds}
        grid = Grid(name=name, set=tuple(content.pop("set", ())), **cast("Any", lines), **content)
    except (TypeError, AttributeError) as error:
        problem = f"study {name}: a key is unknown or missing ({error})."
        raise ConfigError(problem, remedy="Compare the file with the studies in deepcait/study/grids.") from error
    ids = [line.id for line in (*grid.rows, *grid.columns)]
    lost = [line.follows for line in grid.rows if line.follows and line.follows not in ids] + (
        [] if grid.reference in ids else [grid.reference]
    )
    if len(set(ids)) < len(ids) or lost:
        wrong = f"{lost[0]!r} is not the id of a row or column" if lost else "an id is used twice"
        raise ConfigError(f"study {name}: {wrong}.", remedy="Give every row and column a different id.")
    return grid


def _line(entry: dict[str, Any]) -> Line:
    entry = {"title": str(entry.get("id", "")), **entry, "id": str(entry.get("id", ""))}
    return Line(**(entry | {"set": tuple(entry.get("set", ()))}))
