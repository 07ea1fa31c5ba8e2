"""What the documents say about the project is so: tree, links, make commands, the table of models."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from deepcait.model.variants import variant_config
from deepcait.weights.published import published

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def tree_entries(text: str) -> dict[str, str]:
    """The entries of the block that begins with `deepcait/`, each with its comment."""
    block = re.search(r"^```\ndeepcait/\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert block, "no block begins with the line deepcait/"
    return {name: comment.strip() for name, comment in re.findall(r"^  (\S+)(.*)$", block[1], re.MULTILINE)}


def real_entries(folder: Path) -> set[str]:
    """What stands in the folder: files, and folders (with a slash) that hold any file but caches."""

    def holds_files(path: Path) -> bool:
        return any(file.is_file() and "__pycache__" not in file.parts for file in path.rglob("*"))

    files = {path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    return files | {f"{path.name}/" for path in folder.iterdir() if path.is_dir() and holds_files(path)}


def broken_links(text: str, folder: Path) -> list[str]:
    """Links to files that are not there, and to headings that the file does not have."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, heading = link.partition("#")
        target = (folder / name) if name else None
        if target is not None and not target.exists():
            broken.append(link)
        elif heading and heading not in headings(text if target is None else read_page(target)):
            broken.append(link)
    return broken


def read_page(path: Path) -> str:
    """A document with the files that it includes."""
    text = path.read_text(encoding="utf-8")
    included = re.findall(r"^```\{include\} (\S+)$", text, re.MULTILINE)
    return "\n".join([text, *((path.parent / name).read_text(encoding="utf-8") for name in included)])


def headings(text: str) -> set[str]:
    """The anchors of a document's headings."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def make_targets(text: str) -> set[str]:
    """The targets that a Makefile documents."""
    return set(re.findall(r"^([a-z]+):.*## ", text, re.MULTILINE))


def make_commands(text: str) -> set[str]:
    """The targets that a document tells the reader to make, in code."""
    code = re.findall(r"^```.*?^```$|`[^`\n]+`", text, re.MULTILINE | re.DOTALL)
    return {target for piece in code for target in re.findall(r"(?:^|`)make ([a-z]+)", piece, re.MULTILINE)}


def test_the_tree_in_contributing_is_the_real_tree():
    entries = tree_entries(CONTRIBUTING)
    assert set(entries) == real_entries(ROOT / "deepcait")
    assert all(entries.values()), f"no comment: {[name for name, comment in entries.items() if not comment]}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(path):
    assert broken_links(path.read_text(encoding="utf-8"), path.parent) == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_make_commands_exist(name):
    targets = make_targets((ROOT / "Makefile").read_text(encoding="utf-8"))
    assert make_commands((ROOT / name).read_text(encoding="utf-8")) <= targets


def test_readme_has_both_commands():
    assert {"demo", "test"} <= make_commands(README)


def test_the_table_of_models_has_the_computed_and_the_reported_values():
    rows = re.findall(r"^\| `(cait_\w+)` \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|", README, re.MULTILINE)
    assert len(rows) == 10
    for name, num_params, gmacs, top1 in rows:
        config = variant_config(name)
        assert (num_params, gmacs) == (f"{config.num_params():,}", f"{config.macs() / 1e9:.2f}"), name
        assert top1 == f"{100 * published(name)['top1']:.1f}", name


def test_the_model_zoo_has_the_computed_and_the_reported_values():
    zoo = (ROOT / "docs" / "reference" / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(cait_\w+)` \| (.+) \|$", zoo, re.MULTILINE)
    assert len(rows) == 10
    for name, cells in rows:
        config, reported = variant_config(name), published(name)
        computed = [f"{config.num_params():,}", f"{config.macs() / 1e9:.2f}"]
        assert cells.split(" | ") == computed + [f"{100 * reported[key]:.1f}" for key in ("top1", "real", "v2")], name


def test_each_check_can_say_no(tmp_path):
    text = (
        "# A b\n\n```\ndeepcait/\n  model/   tensors\n  gone.py\n```\n[x](gone.md) [y](#a-b) [z](#c)\n\n`make gone`\n"
    )
    assert tree_entries(text) == {"model/": "tensors", "gone.py": ""}
    (tmp_path / "empty" / "__pycache__").mkdir(parents=True)
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "file.py").touch()
    assert real_entries(tmp_path) == {"room/"}
    assert broken_links(text, tmp_path) == ["gone.md", "#c"]
    assert make_commands(text) == {"gone"}
    assert make_targets("demo: x  ## text\nother: y\n") == {"demo"}


def accuracies(found) -> set[str]:
    """Every measured accuracy in a results file, as README prints it."""
    if isinstance(found, dict):
        own = {f"{100 * found[key]:.2f}" for key in ("top1", "top5") if isinstance(found.get(key), float)}
        return own.union(*map(accuracies, found.values()))
    return set().union(*map(accuracies, found)) if isinstance(found, list) else set()


def unmeasured(text: str) -> list[str]:
    """Accuracies in a text that no file in docs/results/ holds."""
    measured = set()
    for path in (ROOT / "docs" / "results").glob("*.json"):
        results = json.loads(path.read_text(encoding="utf-8"))
        assert results["command"], f"{path.name}: which command writes it again?"
        measured |= accuracies(results)
    return [number for number in re.findall(r"(\d+\.\d\d) %", text) if number not in measured]


def test_an_accuracy_that_was_not_measured_is_found():
    assert unmeasured("93.06 % and 55.40 %") == ["55.40"]
    assert unmeasured(README) == []
