"""Write the table and the plots of docs/guides/study.md, and the page of each study of this folder.

    python docs/results/studies.py

Reads `study_*.json`, which `deepcait study NAME --results docs/results` writes, in a fixed order; a study without a
file is left out. What is between the marks of docs/guides/study.md is replaced, and each `study_*.md` too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deepcait.study.grid import Grid, load_grid
from deepcait.study.table import markdown

RESULTS = Path(__file__).parent
ROOT = RESULTS.parent.parent
QUESTIONS = {
    "layerscale": "Which residual rule makes deep networks trainable?",
    "class-token": "At which block should the class token be inserted?",
    "resolution": "What does fine-tuning at a higher resolution add?",
    "talking-heads": "What do talking heads add?",
    "heads": "How many heads?",
    "drop-path": "Uniform or rising drop-path?",
    "augmentation": "How much augmentation?",
}
# Studies of other scales, which have a page and their own paragraph in the guide.
OTHERS = ("deep-layerscale", "distillation")
# The scale in the table's head; a study of another scale is refused.
SCALE = ("CIFAR-10", "10,000 training images", "width 96", "2 seeds")
HEAD = [
    "| question | top-1 %: CIFAR-10, 10,000 training images, 16 tokens unless given, width 96, 2 seeds "
    "| reported: ImageNet |",
    "| --- | --- | --- |",
]


def read_studies(folder: Path) -> list[dict[str, Any]]:
    """The results of the studies that have a file in a folder, in the order of QUESTIONS.

    Raises:
        ValueError: a study of another scale than the table's head says.
    """
    paths = [folder / f"{stem(name)}.json" for name in QUESTIONS]
    studies = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    for found in studies:
        if lacking := [fact for fact in SCALE if fact not in found["scale"]]:
            raise ValueError(f"{found['study']}: expected a study of {', '.join(lacking)}, got {found['scale']}.")
    return studies


def read_others(folder: Path) -> list[dict[str, Any]]:
    """The results of the studies of OTHERS."""
    return [json.loads((folder / f"{stem(name)}.json").read_text(encoding="utf-8")) for name in OTHERS]


def table(studies: list[dict[str, Any]]) -> str:
    """The table: one line per study, with the reported values."""
    return "\n".join([*HEAD, *map(line, studies)])


def line(found: dict[str, Any]) -> str:
    """One study: its question with links, the measured and the reported values."""
    grid = grid_of(found)
    ours, paper = _by_columns(found, grid) if len(grid.columns) > 1 else _by_rows(found, grid)
    place = f"../results/{stem(found['study'])}"
    links = f"[table]({place}.md), [data]({place}.json)"
    cells = [
        f"{QUESTIONS[found['study']]} ({links})",
        f"{found['plan']['epochs']} epochs: {'; '.join(ours)}",
        "; ".join(paper) or "-",
    ]
    return f"| {' | '.join(cells)} |"


def plots(studies: list[dict[str, Any]]) -> str:
    """The plots as the page on studies shows them."""
    return "\n\n".join(f"![{found['title']}](../results/{stem(found['study'])}.png)" for found in studies)


def page(found: dict[str, Any]) -> str:
    """The page of one study."""
    return markdown(found, grid_of(found))


def stem(study: str) -> str:
    """What a study's files here are called, before the dot."""
    return f"study_{study.replace('-', '_')}"


def grid_of(found: dict[str, Any]) -> Grid:
    """The rows and columns that a study's results are of."""
    grid = load_grid(found["study"])
    return grid.only(found["plan"]["only"]) if found["plan"]["only"] else grid


def put_between(text: str, first: str, last: str, body: str) -> str:
    """The text with `body` between two marks, an empty line around it.

    Raises:
        ValueError: a mark is not in the text.
    """
    before, rest = text[: text.index(first) + len(first)], text[text.index(last) :]
    return f"{before}\n\n{body}\n\n{rest}"


def _by_rows(found: dict[str, Any], grid: Grid) -> tuple[list[str], list[str]]:
    """Ours and the paper's, of a study with one column: each row by its title."""
    places = list(zip(grid.rows, found["table"], strict=True))
    reported = [(row, place["paper_percent"]) for row, place in places if place["paper_percent"] is not None]
    paper = [f"{_title(row.title)} {percent}" for row, percent in reported]
    return [_figure(row.title, place) for row, place in places], paper


def _by_columns(found: dict[str, Any], grid: Grid) -> tuple[list[str], list[str]]:
    """Ours and the paper's, of a study with several columns: each row's figures in their order."""
    at = {(place["row"], place["column"]): place for place in found["table"]}
    ours, paper = [], []
    for row in grid.rows:
        places = [at[row.id, column.id] for column in grid.columns]
        figures = [_figure(column.title, place) for column, place in zip(grid.columns, places, strict=True)]
        ours.append(f"{row.title}: {', '.join(figures)}")
        reported = [place["paper_percent"] for place in places]
        if any(value is not None for value in reported):
            shown = [f"{_title(c.title)} {v}" for c, v in zip(grid.columns, reported, strict=True) if v is not None]
            paper.append(f"{row.title}: {', '.join(shown)}")
    return ours, paper


def _figure(title: str, place: dict[str, Any]) -> str:
    """An accuracy in percent, behind it how it differs from the reference; words where there is none."""
    title = _title(title)
    if place["mean"] is None:
        return f"{title} {'failed' if place['failed'] else 'not done yet'}"
    compared = place["compared"].replace("n.s. (", "n.s., ").removesuffix(")")
    return f"{title} {100 * place['mean']:.2f}" + ("" if compared == "reference" else f" ({compared})")


def _title(title: str) -> str:
    """A title to stand before a number: with a colon where it ends with one itself."""
    return f"{title}:" if title[-1].isdecimal() else title


def main() -> None:
    """Write all of them."""
    studies = read_studies(RESULTS)
    for found in [*studies, *read_others(RESULTS)]:
        (RESULTS / f"{stem(found['study'])}.md").write_text(page(found), encoding="utf-8")
    page_path = ROOT / "docs" / "guides" / "study.md"
    text = page_path.read_text(encoding="utf-8")
    text = put_between(text, "<!-- studies -->", "<!-- end of studies -->", table(studies))
    text = put_between(text, "<!-- plots -->", "<!-- end of plots -->", plots(studies))
    page_path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
