"""The notebooks run from start to end and show an image each; their outputs in the repository are small.

`python -m tests.ecosystem.test_notebooks` executes them and writes their outputs again.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parent.parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
CELL_S = 500  # for a busy machine; on two free cores a whole notebook takes less than a minute
MAX_BYTES = 200_000
# Lines on stderr: notes on another block and on frozen random weights; each is printed once, not once per copy.
NOTES = {"own_loss_and_block": 3}


def execute(path: Path, folder: Path):
    """The notebook with new outputs; its files are written into the folder."""
    notebook = nbformat.read(path, as_version=4)
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=CELL_S, kernel_name="python3", resources=resources).execute()
    return notebook


def outputs(notebook) -> list[dict]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def kinds(notebook) -> list[str]:
    return [kind for output in outputs(notebook) for kind in output.get("data", {})]


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["finetune_and_explain", "own_loss_and_block"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_there_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < MAX_BYTES
    assert "image/png" in kinds(notebook)
    assert "**On Colab**" in notebook.cells[0].source
    assert "error" not in {output.output_type for output in outputs(notebook)}
    assert str(Path.home()) not in path.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_shows_an_image(path, tmp_path):
    notebook = execute(path, tmp_path)
    shown = kinds(notebook)
    assert shown.count("image/png") >= 1
    assert shown.count("text/html") >= 3
    bars = [output for output in outputs(notebook) if "<progress" in output.get("data", {}).get("text/html", "")]
    assert 1 <= len(bars) <= 2  # training's, and evaluation's while it runs
    streams = [output for output in outputs(notebook) if output.output_type == "stream"]
    assert len(streams) <= NOTES.get(path.stem, 0), streams
    assert {output["name"] for output in streams} <= {"stderr"}


if __name__ == "__main__":
    import tempfile

    for place in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as empty:
            done = execute(place, Path(empty))
        for cell in done.cells:
            cell.metadata.pop("execution", None)
        nbformat.write(done, place)
        print(f"{place.name}: {place.stat().st_size:,} bytes", file=sys.stderr)
